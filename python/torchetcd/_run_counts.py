"""What this process has seen of its runs and barriers, as numbers; `metrics.py` shows them.

All handlers count here, so nothing is imported that only readers need.
"""

from __future__ import annotations

import contextlib
import os
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

from torchetcd import _native

#: What the native half counts, by the name of the metric, with the name of its label.
NATIVE = {
    "rpc_retries": ("retries", "cause"),
    "connections": ("connections", "result"),
    "logins": ("logins", "result"),
    "watches": ("watches", "event"),
    "lease_renewals": ("lease_renewals", "result"),
}
BOUNDS_S = (
    0.01,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    1800.0,
)
#: Why a round is over: in the words of the native half's `Cause`, and where more nodes wait, and that is all.
NODES_WAITING = "nodes_waiting"
CAUSES = ("member_lost", "lease_lost", NODES_WAITING, "next_round", "excluded")
#: A process that makes one handler after the other must not grow.
_RUNS = 64


class Durations:
    """A histogram."""

    def __init__(self) -> None:
        self.classes = [0] * (len(BOUNDS_S) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.classes[bisect_left(BOUNDS_S, seconds)] += 1
        self.seconds += seconds


class OfQuorum:
    """What an agent sees of the quorum of its job."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.runs_member = False
        #: As last seen; `None` for an agent that does not look, as it is a client only.
        self.members: int | None = None
        self.replacements = self.restarts = 0


class OfRun:
    def __init__(self) -> None:
        self.barriers: dict[str, Durations] = {}
        self.last_calls = Durations()
        self.place: tuple[int, int, int] | None = None
        self.changes = dict.fromkeys(CAUSES, 0)
        self.closes = 0
        #: With an endpoint `job://...` only.
        self.quorum: OfQuorum | None = None


class _Barriers:
    """What this process has seen of its runs; changed at transitions only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, OfRun] = OrderedDict()

    @contextlib.contextmanager
    def run(self, run_id: str) -> Iterator[OfRun]:
        with self._lock:
            run = self._runs.setdefault(run_id, OfRun())
            self._runs.move_to_end(run_id)
            while len(self._runs) > _RUNS:
                self._runs.popitem(last=False)
            yield run

    @contextlib.contextmanager
    def all(self) -> Iterator[Iterable[tuple[str, OfRun]]]:
        with self._lock:
            yield self._runs.items()


barriers = _Barriers()


def _begin_in_child() -> None:
    global barriers  # noqa: PLW0603 - a process's own
    # The lock may have been held by a thread that is not here.
    barriers = _Barriers()


os.register_at_fork(after_in_child=_begin_in_child)


def barrier_ended(
    run_id: str,
    outcome: str,
    seconds: float,
    last_call_s: float | None,
    place: tuple[int, int, int] | None,
) -> None:
    """Count a barrier, well ended or not; `place` is round, rank and world size."""
    with barriers.run(run_id) as run:
        run.barriers.setdefault(outcome, Durations()).add(seconds)
        if last_call_s is not None:
            run.last_calls.add(last_call_s)
        run.place = place or run.place


def world_changes(run_id: str, cause: str) -> None:
    """Count a round of this node that is over, or must be formed again.

    Args:
        run_id: The run.
        cause: One of `CAUSES`.
    """
    with barriers.run(run_id) as run:
        run.changes[cause] += 1


def run_closed(run_id: str) -> None:
    """Count a close."""
    with barriers.run(run_id) as run:
        run.closes += 1


@contextlib.contextmanager
def quorum(run_id: str, size: int) -> Iterator[OfQuorum]:
    """Change what this agent sees of the quorum of its job, which has so many members."""
    with barriers.run(run_id) as run:
        run.quorum = run.quorum or OfQuorum(size)
        yield run.quorum


def native() -> dict[str, Any]:
    """Return what the native half has counted."""
    return _native.metrics()
