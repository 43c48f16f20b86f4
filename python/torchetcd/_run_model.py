"""What a run is and what happens in it, as plain values.

All of them are frozen and go through `dataclasses.asdict` into JSON. Times are Unix seconds by the
clock of whoever wrote the record, durations are seconds.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Literal, TypeAlias

NodeState: TypeAlias = Literal["joined", "member", "waiting", "spare", "missing"]
RunState: TypeAlias = Literal["open", "final", "closed", "none", "unreadable"]
Result: TypeAlias = Literal["succeeded", "failed", "signal"]
RESULTS: tuple[Result, ...] = ("succeeded", "failed", "signal")


@dataclass(frozen=True, slots=True)
class Node:
    """One agent in a run. Older versions of torchetcd leave out what is `None` here."""

    #: The id of its lease, 16 hex digits: a node that lost its lease comes back as another one.
    id: str
    host: str
    pid: int
    #: The name it was given with the parameter `node_id`.
    node_id: str | None
    #: The parameter `domain`: its rack or NVLink domain.
    domain: str | None
    #: Of a member, and of one that is missing, which had it in the round before.
    rank: int | None
    #: Where its workers are, or would be if it became rank 0.
    address: str | None
    #: Since when it has joined, or waits.
    since: float | None
    #: When it gives up, if the round is not complete until then.
    until: float | None
    #: How long it is held for alive without another renewal. Only where leases were asked for.
    lease_left_s: float | None
    lease_ttl_s: float | None
    state: NodeState
    #: Whether its lease was there. One that is missing may be alive, and just not back in the barrier.
    alive: bool = True
    #: The parameter `infra_rank`: its place in what the scheduler started.
    infra_rank: int | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    """By whom and why a run was closed, and how its job ended."""

    by: str
    reason: str
    at: float | None
    #: How the job ended; `None` where a person or a program closed the run by hand.
    result: Result | None = None
    #: The same in one clause: "the job succeeded", or which worker failed, where and how.
    text: str | None = None
    #: The last round that was completed, and its number of nodes; `None` if none ever was.
    round: int | None = None
    world: int | None = None


@dataclass(frozen=True, slots=True)
class Denial:
    """A host, node id or node that may not join, by whose decision and why."""

    #: As the deny list has it: a host, a `node_id`, or the id of a node.
    name: str
    by: str
    reason: str
    at: float | None
    #: Where one node is denied by its id: which one that was.
    host: str | None = None
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """A round that was completed."""

    round: int
    world: int
    #: What made it begin.
    why: str | None
    opened_at: float | None
    opened_by: str | None
    completed_at: float | None


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it was at one revision of etcd."""

    id: str
    prefix: str
    revision: int
    #: "none": no round was ever begun, or the record of it is gone; "unreadable": see `problem`.
    state: RunState
    #: What under the run's keys cannot be understood.
    problem: str | None
    #: The round that nodes join ("open"), or that is complete ("final").
    round: int
    #: How many nodes the complete round has.
    world: int | None
    min_nodes: int | None
    max_nodes: int | None
    #: In the barrier of an open round, in the order of their arrival.
    joined: tuple[Node, ...]
    #: Of a complete round, by rank, those that are still there.
    members: tuple[Node, ...]
    #: Those for whom there is room in the next round.
    waiting: tuple[Node, ...]
    spares: tuple[Node, ...]
    #: Members of the last complete round that are gone, or not back in the barrier, by rank.
    missing: tuple[Node, ...]
    coordinator: Node | None
    #: `None` where no last call is under way.
    last_call_left_s: float | None
    opened_at: float | None
    opened_by: str | None
    #: What made the round begin.
    why: str | None
    completed_at: float | None
    closed: Closed | None
    #: The member whose loss ended the round.
    loss: str | None
    master_addr: str | None
    master_port: int | None
    #: Rounds that were completed, the last one last; etcd keeps the last 64.
    rounds: tuple[RoundRecord, ...]
    denied: tuple[Denial, ...]
    #: When this was read, by the clock of whoever read it.
    observed_at: float
    #: How ranks were given in the complete round, and of how many nodes its segments are: its coordinator's.
    rank_order: str | None = None
    segment: int | None = None
    #: Seconds for which the run is kept in etcd when its last node has gone.
    run_ttl: int | None = None
    #: How often it was closed and opened again.
    reopened: int = 0

    @classmethod
    def nothing(cls, run_id: str, prefix: str) -> Run:
        """Make the run of which nothing is in etcd."""
        known = {"id": run_id, "prefix": prefix, "state": "none"}
        zero = {"revision": 0, "round": 0, "observed_at": 0.0}
        lists = ("joined", "members", "waiting", "spares", "missing", "rounds", "denied")
        unknown = {field.name: None for field in fields(cls) if field.default is MISSING}
        return cls(**{**unknown, **dict.fromkeys(lists, ()), **zero, **known})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a run."""

    #: etcd's revision after it. What one transaction did has one revision.
    revision: int
    #: When it was seen. etcd keeps no times.
    at: float
    #: The run after it.
    run: Run = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(Event):
    """The run as it is: at first, and wherever events may have been missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined(Event):
    """A node came into the barrier."""

    node: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Event):
    """A node joined after the round was complete, or there was no room for it."""

    node: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Left(Event):
    """A node is gone that no running world needed.

    It was in the barrier, waited, or the run was closed. Whether it took leave or its lease ran out
    is nowhere to be seen: etcd reports both in the same way.
    """

    node: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost(Event):
    """A member of a complete round is gone while the round was going on, in whatever way."""

    node: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class LastCall(Event):
    """Enough nodes are in the barrier: it is complete soon. Or they are not any more."""

    begun: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened(Event):
    """A round began."""

    round: int
    why: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reopened(Event):
    """A round began in a run that was closed."""

    round: int
    why: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Final(Event):
    """A round is complete."""

    round: int
    world: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunClosed(Event):
    """The run was closed."""

    by: str
    reason: str
    #: As in `Closed`.
    result: Result | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied(Event):
    """A name may not join any more."""

    name: str
    by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed(Event):
    """A name that was denied may join again."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone(Event):
    """Nothing of the run is left: it was purged, or its lease ran out."""


@dataclass(frozen=True, slots=True)
class TimelineEvent:
    """Something that happened, without the run after it."""

    kind: Literal[
        "opened",
        "reopened",
        "joined",
        "waiting",
        "left",
        "lost",
        "last call",
        "final",
        "closed",
        "denied",
        "allowed",
        "gone",
    ]
    #: `None` where it is known from a record only, and not from etcd's history.
    revision: int | None
    #: By the clock of whoever wrote the record; `None` where nobody wrote one.
    at: float | None
    #: It happened after this and before `latest`: the times of its neighbours, or `at` itself.
    earliest: float | None
    latest: float | None
    round: int | None
    node: Node | None
    #: One clause for people.
    text: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """What happened in a run, the oldest first."""

    id: str
    prefix: str
    #: etcd's history is complete from this revision on; before it only completed rounds are known.
    complete_from: int
    #: Whether that is all of the run's life.
    complete: bool
    events: tuple[TimelineEvent, ...]
    #: The run now; `None` if nothing is left of it.
    run: Run | None
    #: What could not be looked at, in one sentence.
    problem: str | None
