"""Run the fault bench with new seeds until the time is over; every failure names its seed.

python tools/soak.py --seconds 3600
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HISTORIES = [
    "tests/faults/test_store_histories.py",
    "tests/faults/test_rendezvous_histories.py",
    "tests/quorum/test_schedules.py",
]


def totals(report: Path) -> str:
    """Say how much was run, by kind."""
    sums: dict[str, Counter[str]] = {}
    for line in report.read_text().splitlines():
        entry = json.loads(line)
        kind = sums.setdefault(entry.pop("kind"), Counter())
        entry.pop("seed")
        kind.update({"schedules": 1, **entry})
    return "\n".join(f"{kind}: {dict(counts)}" for kind, counts in sums.items())


def main() -> int:
    """Go on with the next seeds also when some fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--first", type=int, default=random.randrange(10**6, 10**8))
    parser.add_argument("--seeds", type=int, default=4, help="of each kind in one round")
    parser.add_argument("-k", dest="choice", default="not given")
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds
    first, failed = options.first, 0
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.jsonl"
        report.touch()
        while time.monotonic() < ends:
            seeds = {
                "TORCHETCD_FAULT_FIRST": str(first),
                "TORCHETCD_FAULT_SEEDS": str(options.seeds),
            }
            print(f"seeds {first} to {first + options.seeds - 1}", flush=True)
            command = [sys.executable, "-m", "pytest", "--quiet", *HISTORIES, "-k", options.choice]
            env = os.environ | seeds | {"TORCHETCD_FAULT_REPORT": str(report)}
            env.pop("TORCHETCD_FAULT_SEED", None)
            failed += subprocess.run(command, env=env, check=False).returncode != 0
            first += options.seeds
        print(totals(report))
    print(f"{failed} rounds failed" if failed else "nothing failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
