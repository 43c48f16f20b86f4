"""Why a run is not complete: what has to be asked for the paragraph that says it, and the paragraph."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

from torchetcd._run_model import Run, Timeline
from torchetcd.aio import _history, _reading
from torchetcd.aio._raw_client import RawClient
from torchetcd.aio._run_errors import RunNotFoundError
from torchetcd.aio._run_keys import RunKeys
from torchetcd.diagnosis import _explanation
from torchetcd.diagnosis._absence import departed, still_needed
from torchetcd.etcd._exceptions import EtcdException, EtcdInsufficientPermissions

_T = TypeVar("_T")

#: etcd's history may be long and its runs many, and somebody waits for the paragraph.
PATIENCE_S = 3.0


class Known(NamedTuple):
    """What is known of a run and around it."""

    #: `None` if there is none.
    run: Run | None
    #: Other runs below the same prefix, where there is none or nodes lack.
    others: tuple[Run, ...] = ()
    #: What happened, where nodes lack.
    timeline: Timeline | None = None


async def ask(raw: RawClient, keys: RunKeys, limit: float) -> Known:
    """Ask for a run; for the others where there is none, and for these and its history where nodes lack."""
    limit = min(limit, PATIENCE_S)
    try:
        run = await _reading.describe(raw, keys, leases=False)
    except RunNotFoundError:
        try:
            return Known(None, tuple(await _reading.list_runs(raw, keys.prefix)))
        except EtcdInsufficientPermissions:  # a role for one run
            return Known(None)
    if run.state != "open" or still_needed(run) == 0:
        return Known(run)
    timeline, others = await asyncio.gather(
        _if_there(_history.timeline(raw, keys, limit), limit),
        _if_there(_reading.list_runs(raw, keys.prefix), limit),
    )
    return Known(run, tuple(other for other in others or () if other.id != run.id), timeline)


async def _if_there(call: Coroutine[Any, Any, _T], limit: float) -> _T | None:
    """Wait for what the paragraph is worth having without."""
    try:
        return await asyncio.wait_for(call, limit)
    except (RunNotFoundError, EtcdException, asyncio.TimeoutError):
        return None


def nothing(run_id: str, prefix: str) -> Run:
    """Make the run of which nothing is there."""
    return Run(
        id=run_id,
        prefix=prefix,
        revision=0,
        state="none",
        problem=None,
        round=0,
        world=None,
        min_nodes=None,
        max_nodes=None,
        joined=(),
        members=(),
        waiting=(),
        spares=(),
        missing=(),
        coordinator=None,
        last_call_left_s=None,
        opened_at=None,
        opened_by=None,
        why=None,
        completed_at=None,
        closed=None,
        loss=None,
        master_addr=None,
        master_port=None,
        rounds=(),
        denied=(),
        observed_at=0.0,
    )


def explain(
    run: Run,
    others: Sequence[Run] = (),
    timeline: Timeline | None = None,
    expected: Sequence[str] = (),
) -> str:
    """Say in one paragraph what a run waits for, or what else its state is.

    Nothing is asked: `Client.why` asks for all of these.

    Args:
        run: The run.
        others: Other runs below the same prefix: some may have nodes of this one.
        timeline: What happened in the run: who came and went is in there.
        expected: Who should be there, by host, `node_id` or infra rank.
    """
    left = departed(timeline) if timeline is not None else []
    return _explanation.explain(run, others, left, expected)
