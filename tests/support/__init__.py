"""What tests are made of: etcd servers and what stands before them, processes, stores, runs, documents.

The fixtures are in `conftest.py`; no test module imports another one, or a `conftest`.
"""

from pathlib import Path

#: The repository.
ROOT = Path(__file__).parents[2]
