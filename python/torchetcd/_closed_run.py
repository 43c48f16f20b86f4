"""What an agent is told that comes to a closed run, or waits in one that is closed. Imports no torch."""

from __future__ import annotations

import shlex
from typing import TypeAlias

from torchetcd._phrasing import ago, clock, duration, plain

#: The reason that an agent gives by itself. How the job ended says more.
SHUTDOWN = "shutdown() was called"


ClosedTold: TypeAlias = (
    "tuple[str, str, float, str | None, str | None, int | None, int | None, float]"
)


class Closed:
    """A closed run, as the native module tells it."""

    by: str
    reason: str
    at: float
    #: `succeeded`, `failed` or `signal`; `None` where somebody closed the run by hand.
    result: str | None
    text: str | None
    #: The last round that was completed, and its number of nodes.
    round: int | None
    world: int | None
    run_ttl_s: float

    def __init__(self, told: ClosedTold) -> None:
        # No NamedTuple: every agent imports this, and the class of one takes half a millisecond to make.
        self.by, self.reason, self.at, self.result, self.text, *_ = told
        *_, self.round, self.world, self.run_ttl_s = told


def how_it_ended(text: str | None, reason: str | None) -> str:
    """Say in one clause how a run ended, or for what reason it was closed."""
    told, given = plain(text or "").rstrip(". "), plain(reason or "").rstrip(". ")
    if not told:
        return given or "no reason was given"
    return told if given in {"", SHUTDOWN, told} else f"{told} ({given})"


def closed_text(run_id: str, closed: Closed, now: float) -> str:
    """Say when and by whom a run was closed, how it ended, and what can be done."""
    name = plain(run_id)
    how = how_it_ended(closed.text, closed.reason)
    if closed.reason == SHUTDOWN and closed.text:
        # The node closed it by itself: neither an operator nor a script did.
        how = f"{how} ({SHUTDOWN})"
    when = f" at {clock(closed.at)}, {ago(closed.at, now)}," if closed.at > 0 else ""
    return (
        f"The run '{name}' is closed. It was closed{when} by {plain(closed.by) or '?'}: "
        f"{how}. To go on: start the job with another --rdzv-id; or "
        f"open this run again by `torchetcd reopen {shlex.quote(name)} --reason ...`, or by "
        "if_closed=reopen in --rdzv-conf. By itself it is forgotten "
        f"{duration(closed.run_ttl_s)} after its last agent has gone."
    )
