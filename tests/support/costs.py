"""What each test costs: seconds, and those of the CPU, by this process and all below it.

TORCHETCD_TEST_COSTS names a file that gets a line for each test; `tools/test_costs.py` adds them up. What a
server does that tests share counts to the test that is under way.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

_TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def counted(test: str) -> Iterator[None]:
    """Write what the block costs, if that is wanted."""
    file = os.environ.get("TORCHETCD_TEST_COSTS")
    if not file:
        yield
        return
    begun, cpu = time.monotonic(), cpu_seconds()
    try:
        yield
    finally:
        costs = {"test": test, "wall": time.monotonic() - begun, "cpu": cpu_seconds() - cpu}
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(costs) + "\n")


def cpu_seconds() -> float:
    """The CPU time of this process and of all that it has started, those included that have ended."""
    children: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat:
                # Behind the name, which may hold anything.
                fields = stat.read().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(name))
        used[int(name)] = sum(map(int, fields[11:15]))
    below, total = [os.getpid()], 0
    while below:
        pid = below.pop()
        total += used.get(pid, 0)
        below += children.get(pid, [])
    return total / _TICKS
