"""Events as sentences."""

from __future__ import annotations

from torchetcd import aio
from torchetcd._closed_run import how_it_ended
from torchetcd._phrasing import count, plain
from torchetcd.aio import Event, Node, Run
from torchetcd.diagnosis import denied_as


def sentence(event: Event) -> str:
    """Say what happened, and how far the run is then."""
    text = _what(event)
    return f"{text}{_progress(event.run)}" if isinstance(event, _MOVES) else text


# After these the number of nodes is news.
_MOVES = (aio.Joined, aio.Left, aio.Opened, aio.Reopened, aio.LastCall)


def _what(event: Event) -> str:  # noqa: PLR0911, PLR0912 - one line for each kind of event
    match event:
        case aio.Snapshot():
            return state_sentence(event.run)
        case aio.Joined():
            return f"{who(event.node)} joined"
        case aio.Waiting():
            kind = "waits as a spare" if event.node.state == "spare" else "waits for the next round"
            return f"{who(event.node)} {kind}"
        case aio.Left():
            return f"{who(event.node)} left"
        case aio.Lost():
            return f"{who(event.node)} is lost"
        case aio.LastCall():
            return "last call for more nodes" if event.begun else "the last call is withdrawn"
        case aio.Opened() | aio.Reopened():
            verb = "opened" if isinstance(event, aio.Opened) else "opened, in a run that was closed"
            return f"round {event.round} is {verb}" + (f": {plain(event.why)}" if event.why else "")
        case aio.Final():
            return f"round {event.round} is complete: {count(event.world, 'node')}"
        case aio.RunClosed():
            return f"closed by {plain(event.by)}: {how_it_ended(event.text, event.reason)}"
        case aio.Denied():
            by = f"by decision of {plain(event.by)}: {plain(event.reason)}"
            return f"{_denied(event)} may not join, {by}"
        case aio.Allowed():
            return f"{plain(event.name)} may join again"
        case aio.Gone():
            return "nothing of the run is left"
        case _:  # of a newer version
            return type(event).__name__


def _denied(event: aio.Denied) -> str:
    known = [denied_as(denial) for denial in event.run.denied if denial.name == event.name]
    return known[0] if known else plain(event.name)


def who(node: Node) -> str:
    """Name a node: its id and rank where it has them, its host and process."""
    host = f"{plain(node.host)} (pid {node.pid}"
    name = (
        f"{plain(node.node_id)} on {host}" if node.node_id and node.node_id != node.host else host
    )
    return f"{name}, rank {node.rank})" if node.rank is not None else f"{name})"


def state_sentence(run: Run) -> str:
    """Say what a run is."""
    if run.state == "none":
        return "nothing of the run is there yet"
    if run.state == "closed" and run.closed is not None:
        how = how_it_ended(run.closed.text, run.closed.reason)
        return f"closed by {plain(run.closed.by)}: {how}"
    if run.state == "final":
        there = f", {len(run.members)} of them there" if len(run.members) != run.world else ""
        return f"round {run.round} is complete: {count(run.world or 0, 'node')}{there}"
    if run.state == "open":
        return f"round {run.round} is open{_progress(run)}"
    return run.problem or run.state


def _progress(run: Run) -> str:
    if run.state != "open":
        return ""
    least = "" if run.min_nodes is None else f" of {run.min_nodes}"
    return f" ({len(run.joined)}{least} in round {run.round})"
