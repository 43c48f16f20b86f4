"""A timeline as lanes: when each node was in the barrier, a member, or waiting. Pure."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from torchetcd._phrasing import plain

if TYPE_CHECKING:
    from torchetcd._run_model import TimelineEvent
    from torchetcd.aio import Node, Timeline

Phase: TypeAlias = Literal["joined", "member", "waiting"]


class Span(NamedTuple):
    """A node was in this phase from one time to another."""

    phase: Phase
    start: float
    end: float


class Mark(NamedTuple):
    """A node went at this time."""

    kind: Literal["left", "lost"]
    at: float


class Lane(NamedTuple):
    """What one node did."""

    name: str
    spans: list[Span]
    marks: list[Mark]


class Moment(NamedTuple):
    """What happened to the run."""

    kind: str
    at: float
    text: str


class Lanes(NamedTuple):
    """What is drawn."""

    start: float
    end: float
    lanes: list[Lane]
    moments: list[Moment]


_OF_THE_RUN = ("opened", "reopened", "final", "closed", "gone")


def when(event: TimelineEvent) -> float | None:
    """Give the best time of an event: its own, or the latest it can have."""
    for at in (event.at, event.latest, event.earliest):
        if at is not None:
            return at
    return None


def lanes_of(timeline: Timeline) -> Lanes:
    """Sort the events of a timeline by nodes."""
    times = [at for at in map(when, timeline.events) if at is not None]
    start = min(times, default=0.0)
    end = max(times, default=0.0)
    if timeline.run is not None:
        end = max(end, timeline.run.observed_at)
    end = max(end, start + 1.0)
    by_node: dict[str, _Open] = {}
    moments = []
    now = start
    for event in timeline.events:
        now = max(now, when(event) or now)
        if event.kind in _OF_THE_RUN:
            moments.append(Moment(event.kind, now, plain(event.text)))
        if event.kind == "final":
            for lane in by_node.values():
                lane.becomes_member(now)
        node = event.node
        if node is None:
            continue
        lane = by_node.setdefault(node.id, _Open(Lane(_name(node), [], [])))
        if event.kind == "joined":
            lane.enters("joined", now)
        elif event.kind == "waiting":
            lane.enters("waiting", now)
        elif event.kind == "left":
            lane.goes("left", now)
        elif event.kind == "lost":
            lane.goes("lost", now)
    for lane in by_node.values():
        lane.close(end)
    return Lanes(start, end, [lane.lane for lane in by_node.values()], moments)


class _Open:
    """A lane whose last span has not ended."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self._phase: Phase | None = None
        self._since = 0.0

    def enters(self, phase: Phase, now: float) -> None:
        self.close(now)
        self._phase, self._since = phase, now

    def becomes_member(self, now: float) -> None:
        if self._phase == "joined":
            self.enters("member", now)

    def goes(self, kind: Literal["left", "lost"], now: float) -> None:
        self.close(now)
        self.lane.marks.append(Mark(kind, now))

    def close(self, now: float) -> None:
        if self._phase is not None:
            self.lane.spans.append(Span(self._phase, self._since, now))
        self._phase = None


def _name(node: Node) -> str:
    return plain(node.node_id) if node.node_id else f"{plain(node.host)} ({node.pid})"


def ticks(start: float, end: float, most: int = 8) -> list[float]:
    """Choose round times for an axis."""
    steps = (
        0.1,
        0.2,
        0.5,
        1,
        2,
        5,
        10,
        15,
        30,
        60,
        120,
        300,
        600,
        900,
        1800,
        3600,
        7200,
        21600,
        43200,
    )
    step = next((step for step in steps if (end - start) / step <= most), None)
    if step is None:
        step = 86400.0 * max(1, round((end - start) / 86400 / most))
    first = -(-start // step)
    return [number * step for number in _range(first, end / step)]


def _range(first: float, last: float) -> list[float]:
    return [first + offset for offset in range(int(last - first) + 1)] if last >= first else []


def tick(at: float, *, long: bool) -> str:
    """Write a time of the axis."""
    told = datetime.fromtimestamp(at, timezone.utc)
    if long:
        return told.strftime("%m-%d %H:%M")
    return told.strftime("%H:%M:%S") + (f".{int(at * 10) % 10}" if at % 1 else "")
