"""A timeline as a table, and what its other forms have in common with that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from torchetcd._phrasing import clock, plain
from torchetcd.cli.output import cell, table
from torchetcd.cli.views.event_text import who

if TYPE_CHECKING:
    from torchetcd.aio import Timeline, TimelineEvent

_STYLES = {
    "lost": "red",
    "closed": "red",
    "final": "green",
    "opened": "yellow",
    "reopened": "yellow",
}


def notes(timeline: Timeline) -> list[str]:
    """Say what the timeline does not show."""
    return [plain(timeline.problem)] if timeline.problem else []


_NODE_EVENTS = {
    "joined": "joined",
    "waiting": "waits for the next round",
    "left": "left",
    "lost": "is lost",
}


def text_of(event: TimelineEvent) -> str:
    """Say what happened."""
    if event.node is None or event.kind not in _NODE_EVENTS:
        return plain(event.text)
    return f"{who(event.node)} {_NODE_EVENTS[event.kind]}"


def time_of(event: TimelineEvent) -> str:
    """Say when an event was; between which times where nobody wrote that down."""
    if event.at is not None:
        return clock(event.at).removesuffix(" UTC")
    if event.earliest is not None and event.latest is not None:
        return f"{_day(event.earliest)} - {clock(event.latest).split()[1]}"
    if event.earliest is not None:
        return f"after {_day(event.earliest)}"
    if event.latest is not None:
        return f"before {_day(event.latest)}"
    return "-"


def _day(at: float) -> str:
    return clock(at).removesuffix(" UTC")


def as_table(timeline: Timeline) -> list[RenderableType]:
    """Make the lines of `torchetcd timeline`."""
    made = table("TIME (UTC)", "ROUND", "EVENT", "WHAT", right=("ROUND",))
    for event in timeline.events:
        made.add_row(
            cell(time_of(event)),
            cell(event.round),
            cell(event.kind, _STYLES.get(event.kind, "")),
            cell(text_of(event)),
        )
    return [*(Text(note, style="yellow") for note in notes(timeline)), made]
