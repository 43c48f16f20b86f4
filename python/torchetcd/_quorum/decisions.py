"""What one agent does next for the quorum, from what it sees. Nothing here does any I/O.

Two decisions are made. `start` says how an agent whose entry has no running member may start one, so that
there are never two quorums of one job. `next_change` says the one change of members that follows, for the
agent that holds the key `change` (docs/explanation/quorum.md).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

# ------------------------------------------------------------------ a member that is started


class Start(enum.Enum):
    """How an agent brings its member up."""

    #: As one of the first members, for the first time.
    AS_FIRST = "as a first member"
    #: With the data that it has.
    WITH_DATA = "with its data"
    #: Not by itself: its place, or another one, is given to it by a change of members.
    BY_CHANGE = "by a change of members"
    #: Not yet: too few of the others have said that there is no quorum so far.
    WAIT = "not yet"


@dataclass(frozen=True)
class Told:
    """What the others say to an agent that has an entry and no member."""

    #: Whether its entry is one of the first.
    is_first: bool
    #: Whether it has data of this job.
    has_data: bool
    #: Whether a majority of members says that this data's member was removed.
    removed: bool = False
    #: Whether a majority of members answers.
    quorum: bool = False
    #: Whether a majority of members lists the first member of this entry as one that was never started.
    awaited: bool = False
    #: Whether this entry's agent, or an earlier one, has heard of a quorum before.
    knows: bool = False
    #: Whether somebody at another entry, a member or an agent, has heard of a quorum that does not answer.
    others_know: bool = False
    #: How many of the first entries are as new as this one, which counts if it is: an agent without data that
    #: does not know of a quorum, or a member that has never had a leader.
    fresh: int = 0
    #: How many of the first entries make a majority.
    majority: int = 1


def start(told: Told) -> Start:
    """Decide how a member may be brought up.

    A first member is started with the fixed list of first members only where no member can have had the
    same identity before: either a majority of members has never seen it, or a majority of the first entries
    is as fresh as this one. So an agent that lost its data does not vote under the identity that had the
    data, as long as fewer than a majority of the first entries have lost theirs or were never started.

    One member is not enough to say that it has never seen another: it may have been away when that one voted.
    An agent that knows of a quorum is never fresh again, although it has no data: the members that took the
    places of first entries may be where it does not reach them. Nor does it begin beside an agent that has
    heard of a quorum, at whatever entry that one is.
    """
    if told.has_data:
        return Start.BY_CHANGE if told.removed else Start.WITH_DATA
    if told.quorum:
        return Start.AS_FIRST if told.is_first and told.awaited else Start.BY_CHANGE
    known = told.knows or told.others_know
    if told.is_first and not known and told.fresh >= told.majority:
        return Start.AS_FIRST
    return Start.WAIT if told.is_first else Start.BY_CHANGE


# ------------------------------------------------------------------ a change of members


@dataclass(frozen=True)
class Seen:
    """A member of etcd's list, as one agent sees it."""

    id: int
    peer_url: str
    is_learner: bool = False
    #: Seconds for which nobody has said that it runs; 0 for one that runs.
    gone_s: float = 0.0


@dataclass(frozen=True)
class Own:
    """The agent that decides."""

    peer_url: str
    #: The member that it has added or has data of. What else is at its URL has lost its data.
    id: int | None = None
    #: Whether its etcd runs.
    runs: bool = False


@dataclass(frozen=True)
class Nothing:
    """There is nothing to change."""

    why: str = field(default="", compare=False)


@dataclass(frozen=True)
class Remove:
    """Remove a member."""

    id: int


@dataclass(frozen=True)
class AddLearner:
    """Add the agent's own entry as a learner, which has no vote yet."""


@dataclass(frozen=True)
class StartLearner:
    """Start the etcd of the agent's own learner."""


@dataclass(frozen=True)
class Promote:
    """Give a vote to the agent's own learner."""

    id: int


Change: TypeAlias = Nothing | Remove | AddLearner | StartLearner | Promote


def next_change(  # noqa: PLR0911 - one table of cases
    members: Sequence[Seen], own: Own, size: int, replace_after_s: float
) -> Change:
    """Return the next change that the holder of the key `change` makes.

    It is asked again after each change, so whatever an agent has left half done is taken up by the next one.
    etcd takes no member in while another one is away (`--strict-reconfig-check`). So the member that is gone
    is removed first, and the new one is added as a learner after that.
    """
    voters = [member for member in members if not member.is_learner]
    mine = next((member for member in members if member.peer_url == own.peer_url), None)
    if mine is not None and mine.id != own.id:
        if mine.is_learner or _may_go(mine, voters):
            return Remove(mine.id)
        return Nothing("too few others are there")
    abandoned = next((each for each in members if each.is_learner and each is not mine), None)
    if abandoned is not None:
        # Whoever added it does not hold the key any more. It has no vote.
        return Remove(abandoned.id)
    if mine is not None and mine.is_learner:
        if len(voters) >= size:
            return Remove(mine.id)
        return Promote(mine.id) if own.runs else StartLearner()
    away = [voter for voter in voters if voter.gone_s > 0 and voter is not mine]
    dead = max(away, key=lambda voter: voter.gone_s, default=None)
    if mine is not None:
        # A member changes the others only where there are more than there should be.
        if dead is None or len(voters) <= size:
            return Nothing()
    elif dead is None:
        return Nothing() if len(voters) >= size else AddLearner()
    if dead.gone_s < replace_after_s or not _may_go(dead, voters):
        return Nothing("not yet")
    return Remove(dead.id)


def _may_go(leaving: Seen, voters: Sequence[Seen]) -> bool:
    """Return whether those that are left are a living majority of themselves."""
    left = [voter for voter in voters if voter is not leaving]
    living = sum(1 for voter in left if voter.gone_s == 0)
    return living > len(left) // 2
