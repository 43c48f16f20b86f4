"""The state of the model: what is on disks, what runs, and the list of members that etcd has.

Of etcd, the model has what the quorum's safety rests on, as etcd 3.5 does it:

- A first member's id comes from its URL and the token, so the same place started blank has the same id
  (generation 0). `member add` makes a new id. An id is never used twice.
- A list of members changes by one member at a time, and only while a majority of the voters is connected.
  A *history* is one such list with all that was decided by it. Its members are those whose data is of it.
- A first member without data is a *virgin*: it knows the fixed list of first members and nothing else. It
  joins a history that counts it, and a majority of virgins makes a new history.
- A member that has joined a history and is started without its data has forgotten what it voted for.

Raft itself (terms, logs, elections) is left out. It is safe for members that keep their data, whatever is
late, lost or apart, so all members that are connected and of one history act as one.

Agents take one step at a time, and any other step may come between two of them. So an agent that is paused
between what it sees, what it decides and what it does needs no event of its own.
"""

from __future__ import annotations

from typing import NamedTuple

#: An id is its place and its generation there.
_GENERATIONS = 16
#: Of data: a first member that has never been part of a history.
VIRGIN = -1
NOBODY = -1


class ViolationError(AssertionError):
    """What must hold, and does not."""

    def __init__(self, invariant: str, text: str = "") -> None:
        super().__init__(text)
        self.invariant = invariant
        #: The step that led to it.
        self.step = ""


def first_id(place: int) -> int:
    """The id that a first member has, however often it is started."""
    return (place + 1) * _GENERATIONS


def place_of(member: int) -> int:
    return member // _GENERATIONS - 1


class Listed(NamedTuple):
    """A member in etcd's list."""

    id: int
    learner: bool = False
    #: Whether it has told its client URLs, as each member does once there is a leader.
    published: bool = False


Members = tuple[Listed, ...]


class Disk(NamedTuple):
    """The data of a member."""

    id: int
    history: int
    #: The list as this member last saw it.
    view: Members


class Plan(NamedTuple):
    """What an agent has begun: how it starts its member, or the change that it makes."""

    what: str
    step: object = None
    #: Whether the agent held the key when it decided, and whether the member was gone for long enough.
    held: bool = True
    due: bool = True


IDLE = Plan("idle")


class Agent(NamedTuple):
    """The agent of one place, its etcd and its disk."""

    up: bool = False
    #: Whether its etcd runs.
    runs: bool = False
    disk: Disk | None = None
    #: `Seat.id`: what it takes for the id of its member; 0 for none.
    own: int = 0
    #: Whether its folder says that there is a quorum of this job.
    knows: bool = False
    #: Whether it has heard of a quorum itself.
    heard: bool = False
    #: Whether it says that it is fresh.
    fresh: bool = True
    plan: Plan = IDLE


class Budget(NamedTuple):
    """How many faults may still happen."""

    #: An agent and its etcd end, or the etcd alone.
    crashes: int = 0
    #: Data of an agent that is down is lost.
    losses: int = 0
    #: The key of an agent that is paused expires, its changes end with an error, or an answer is lost.
    pauses: int = 0
    #: The network falls into two parts.
    cuts: int = 0


class Sight(NamedTuple):
    """What follows from a world."""

    #: The history that is served in each part of the network.
    served: tuple[int | None, ...]
    #: The members that run where their history is served.
    reached: frozenset[int]


class World(NamedTuple):
    """All of it."""

    size: int
    agents: tuple[Agent, ...]
    histories: tuple[Members, ...] = ()
    #: Which id has taken part in which history.
    joined: frozenset[tuple[int, int]] = frozenset()
    #: How many ids each place has had.
    generations: tuple[int, ...] = ()
    #: The place that holds the key `change`.
    holder: int = NOBODY
    #: The places of one part of a network that has two.
    cut: frozenset[int] = frozenset()
    #: Members that have been gone for `quorum_replace_after`.
    due: frozenset[int] = frozenset()
    left: Budget = Budget()

    # ------------------------------------------------------------------ what is so

    @property
    def majority(self) -> int:
        """Of the first members."""
        return self.size // 2 + 1

    def together(self, place: int) -> list[int]:
        """The places that this one reaches, itself included."""
        return self.side(place in self.cut)

    def side(self, cut: bool) -> list[int]:
        """The places in one part of the network."""
        if not self.cut:
            return [] if cut else list(range(len(self.agents)))
        return [place for place in range(len(self.agents)) if (place in self.cut) == cut]

    def sides(self) -> list[list[int]]:
        return [self.side(False), self.side(True)] if self.cut else [self.side(False)]

    def running(self, places: list[int], history: int) -> list[int]:
        """The ids of the members of a history that run at these places, voters or not."""
        found = []
        for place in places:
            agent = self.agents[place]
            if agent.runs and agent.disk is not None and agent.disk.history == history:
                found.append(agent.disk.id)
        return found

    def served(self, place: int) -> int | None:
        """The history that a majority of its voters serves where this place is."""
        return self.sight().served[place in self.cut]

    def is_gone(self, member: int) -> bool:
        """Whether those that serve cannot reach a member."""
        return member not in self.sight().reached

    def sight(self) -> Sight:
        """What is asked of each world many times."""
        global _seen  # noqa: PLW0603 - of the world that was asked about last
        if _seen is None or _seen[0] is not self:
            _seen = (self, self._sight())
        return _seen[1]

    def _sight(self) -> Sight:
        served: list[int | None] = []
        reached: set[int] = set()
        for cut in (False, True):
            places = self.side(cut)
            history = self._serving(places) if places else None
            served.append(history)
            if history is not None:
                reached.update(self.running(places, history))
        return Sight(tuple(served), frozenset(reached))

    def _serving(self, places: list[int]) -> int | None:
        for history, members in enumerate(self.histories):
            voters = {member.id for member in members if not member.learner}
            running = voters.intersection(self.running(places, history))
            if len(running) > len(voters) // 2:
                return history
        return None

    def is_lost(self, history: int) -> bool:
        """Whether so much of its data is lost that its members will never be a majority again."""
        voters = [member.id for member in self.histories[history] if not member.learner]
        able = sum(1 for voter in voters if self.has_its_vote(history, voter))
        return able <= len(voters) // 2

    def has_its_vote(self, history: int, member: int) -> bool:
        """Whether a member may vote, now or when it is started: it has its data, or never had any."""
        disk = self.agents[place_of(member)].disk
        has_data = disk is not None and (disk.id, disk.history) == (member, history)
        return has_data or (history, member) not in self.joined

    # ------------------------------------------------------------------ what changes

    def with_agent(self, place: int, **changes: object) -> World:
        agent = self.agents[place]._replace(**changes)  # type: ignore[arg-type]
        return self._replace(agents=(*self.agents[:place], agent, *self.agents[place + 1 :]))

    def with_members(self, history: int, members: Members) -> World:
        histories = (*self.histories[:history], members, *self.histories[history + 1 :])
        return self._replace(histories=histories)

    def settled(self) -> World:
        """What follows by itself: majorities find each other, members learn the list, removed ones end."""
        world = self
        for places in world.sides():
            world = world._with_virgins(places)
        for places in world.sides():
            for history in range(len(world.histories)):
                if world._serves(places, history):
                    world = world._learned(places, history)
        one, other = world.sight().served
        if None not in (one, other) and one != other:
            raise ViolationError("two quorums", f"{world.histories}")
        due = frozenset(member for member in world.due if world.is_gone(member))
        return world._replace(due=due)

    def _serves(self, places: list[int], history: int) -> bool:
        """Whether members with data, and virgins that it counts, are a majority."""
        voters = {member.id for member in self.histories[history] if not member.learner}
        running = voters.intersection(self.running(places, history))
        virgins = voters.intersection(self.running(places, VIRGIN))
        return bool(running) and len(running | virgins) > len(voters) // 2

    def _with_virgins(self, places: list[int]) -> World:
        """Virgins that are a majority of the first members make a history, unless there is one here."""
        virgins = self.running(places, VIRGIN)
        if len(virgins) < self.majority:
            return self
        if any(self._serves(places, history) for history in range(len(self.histories))):
            return self
        first = tuple(Listed(first_id(place)) for place in range(self.size))
        return self._replace(histories=(*self.histories, first))._learned(
            places, len(self.histories)
        )

    def _learned(self, places: list[int], history: int) -> World:
        """Bring all members here to the same state."""
        listed = {member.id for member in self.histories[history]}
        here = [*self.running(places, history), *self.running(places, VIRGIN)]
        joining = listed.intersection(here)
        members = tuple(
            member._replace(published=True) if member.id in joining else member
            for member in self.histories[history]
        )
        world = self.with_members(history, members)
        joined = frozenset((history, member) for member in joining)
        world = world._replace(joined=world.joined | joined)
        for place in places:
            agent = world.agents[place]
            if agent.runs and agent.disk is not None:
                if agent.disk.id in joining:
                    disk = Disk(agent.disk.id, history, members)
                    world = world.with_agent(place, disk=disk)
                elif agent.disk.history in (history, VIRGIN):
                    world = world.with_agent(place, runs=False)  # it learns that it was removed
        return world


_seen: tuple[World, Sight] | None = None
