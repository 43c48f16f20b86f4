"""What an operator writes into the keys of a run, with a client of the test's own."""

from __future__ import annotations

import json
import time
from typing import Any

from support.processes.nodes import Run
from torchetcd import aio
from torchetcd._torchetcd import reopening

BY = "ann@ops"
REASON = "disk replaced"


def operate(run: Run, *operations: tuple[Any, ...], control: int | None = None) -> bool:
    """Write what an operator writes; where a revision of the control record is given, only if it has it."""
    native = run.client._native
    key = f"{run.path}/rdzv/head/control".encode()
    guards = [] if control is None else [("mod", key, "=", control)]
    return bool(native.txn(guards, list(operations), [])[0])


def run_lease(run: Run) -> int:
    """The lease that the run's records are under."""
    return int(run.client.read(f"{run.path}/rdzv/head/control").lease)


def deny(run: Run, name: str) -> None:
    """Put a name on the deny list."""
    value = json.dumps({"v": 1, "by": BY, "reason": REASON, "at": int(time.time())}).encode()
    operate(run, ("put", f"{run.path}/rdzv/head/denied/{name}".encode(), value, run_lease(run)))


def allow(run: Run, name: str) -> None:
    """Take a name off the deny list."""
    operate(run, ("delete", f"{run.path}/rdzv/head/denied/{name}".encode(), None))


def reopen(run: Run) -> bool:
    """Open a closed run again."""
    record = run.client.read(f"{run.path}/rdzv/head/control")
    assert json.loads(record.value)["state"] == "closed"
    why, at = f"reopened by {BY}: {REASON}", int(time.time())
    assert record.modifiedIndex is not None
    compares, operations = reopening(
        record.value.encode(), record.modifiedIndex, run.path, BY, why, at, False
    )
    return bool(run.client._native.txn(compares, operations, [])[0])


def members(run: Run, round_: int = 1) -> dict[int, str]:
    """The node (16 hex digits) of each process that is a member."""
    found = {}
    for key in run.keys(f"/rdzv/round/{round_}/member"):
        found[json.loads(run.client.read(key).value)["pid"]] = key.rsplit("/", 1)[1]
    return found


async def describe(run: Run) -> aio.Run:
    """What an operator is shown."""
    async with aio.Client(run.client.base_uri) as client:
        return await client.describe(run.run_id)
