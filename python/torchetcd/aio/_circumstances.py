"""What must be known of a run and around it to explain it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar

from torchetcd._run_model import Run, Timeline
from torchetcd.aio import _history, _reading
from torchetcd.aio._raw_client import RawClient
from torchetcd.aio._run_errors import RunNotFoundError
from torchetcd.aio._run_keys import RunKeys
from torchetcd.diagnosis import still_needed
from torchetcd.etcd import EtcdException, EtcdInsufficientPermissions

_T = TypeVar("_T")

#: etcd's history may be long and its runs many, and somebody waits for the paragraph.
PATIENCE_S = 3.0


class Circumstances(NamedTuple):
    """What is known of a run and around it."""

    #: `None` if there is none.
    run: Run | None
    #: Other runs below the same prefix, where there is none or nodes lack.
    others: tuple[Run, ...] = ()
    #: What happened, where nodes lack.
    timeline: Timeline | None = None


async def ask(raw: RawClient, keys: RunKeys, limit: float) -> Circumstances:
    """Ask for a run; for the others where there is none, and for these and its history where nodes lack."""
    limit = min(limit, PATIENCE_S)
    try:
        run = await _reading.describe(raw, keys, leases=False)
    except RunNotFoundError:
        try:
            return Circumstances(None, tuple(await _reading.list_runs(raw, keys.prefix)))
        except EtcdInsufficientPermissions:  # a role for one run
            return Circumstances(None)
    if run.state != "open" or still_needed(run) == 0:
        return Circumstances(run)
    timeline, others = await asyncio.gather(
        _if_there(_history.timeline(raw, keys, limit), limit),
        _if_there(_reading.list_runs(raw, keys.prefix), limit),
    )
    return Circumstances(
        run, tuple(other for other in others or () if other.id != run.id), timeline
    )


async def _if_there(call: Coroutine[Any, Any, _T], limit: float) -> _T | None:
    """Wait for what the paragraph is worth having without."""
    try:
        return await asyncio.wait_for(call, limit)
    except (RunNotFoundError, EtcdException, asyncio.TimeoutError):
        return None
