"""Link the benchmarks that cargo built to names without a hash.

Reads `cargo bench --no-run --message-format json` and takes the directory to put the links in.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Link them."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for line in sys.stdin:
        message = json.loads(line)
        target = message.get("target", {})
        if message.get("executable") and target.get("kind") == ["bench"]:
            link = directory / target["name"]
            link.unlink(missing_ok=True)
            link.symlink_to(message["executable"])


if __name__ == "__main__":
    main()
