"""Add up what tests cost: by folder, by module, and the dearest of them.

TORCHETCD_TEST_COSTS=/tmp/costs make test-python; python tools/test_costs.py /tmp/costs
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--top", type=int, default=40)
    options = parser.parse_args()
    costs = [json.loads(line) for line in options.file.read_text().splitlines()]
    for title, key in (
        ("folders", lambda test: test.split("/")[1]),
        ("modules", lambda test: test.split("::")[0]),
        ("functions", lambda test: test.split("[")[0]),
    ):
        _table(title, costs, key, options.top)
    print(f"{sum(cost['cpu'] for cost in costs):9.1f} s of CPU in {len(costs)} tests")


def _table(title: str, costs: list[dict[str, float]], key: Callable[[str], str], top: int) -> None:
    cpu: Counter[str] = Counter()
    wall: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for cost in costs:
        name = key(str(cost["test"]))
        cpu[name] += cost["cpu"]
        wall[name] += cost["wall"]
        count[name] += 1
    print(f"    CPU s    wall s  tests  {title}")
    for name, seconds in cpu.most_common(top):
        print(f"{seconds:9.1f} {wall[name]:9.1f} {count[name]:6}  {name}")
    print()


if __name__ == "__main__":
    main()
