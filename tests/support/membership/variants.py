"""Agents that are wrong: each has one guard less than those of the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torchetcd._quorum.decisions import (
    AddLearner,
    Change,
    Nothing,
    Own,
    Remove,
    Seen,
    Start,
    Told,
    next_change,
    start,
)


def starts_unasked(told: Told) -> Start:
    """A first entry without data begins, whatever the others say."""
    blank = told.is_first and not told.has_data and not told.quorum
    return Start.AS_FIRST if blank else start(told)


def starts_again_under_its_old_id(told: Told) -> Start:
    """A first entry that lost its data starts as it did at first, as the quorum still lists it."""
    blank = told.is_first and not told.has_data and told.quorum
    return Start.AS_FIRST if blank else start(told)


def keeps_what_was_removed(told: Told) -> Start:
    """The data of a member that was removed is used again."""
    return start(replace(told, removed=False))


def removes_early(members: Sequence[Seen], own: Own, size: int, _: float) -> Change:
    """A member that is gone for a moment is removed."""
    return next_change(members, own, size, 0.0)


def adds_first(members: Sequence[Seen], own: Own, size: int, replace_after_s: float) -> Change:
    """The new member is added before the one that is gone is removed."""
    change = next_change(members, own, size, replace_after_s)
    listed = any(member.peer_url == own.peer_url for member in members)
    return AddLearner() if isinstance(change, Remove) and not listed else change


def takes_any_place(members: Sequence[Seen], own: Own, size: int, replace_after_s: float) -> Change:
    """Everybody becomes a member."""
    return next_change(members, own, size + 1, replace_after_s)


def leaves_the_abandoned(
    members: Sequence[Seen], own: Own, size: int, replace_after_s: float
) -> Change:
    """A learner that an agent has left half done stays."""
    listed = [each for each in members if not each.is_learner or each.peer_url == own.peer_url]
    return next_change(listed, own, size, replace_after_s)


def ignores_lost_data(
    members: Sequence[Seen], own: Own, size: int, replace_after_s: float
) -> Change:
    """A member whose data is lost is taken for the agent's own."""
    mine = next((each for each in members if each.peer_url == own.peer_url), None)
    return next_change(members, replace(own, id=mine.id if mine else own.id), size, replace_after_s)


def removes_the_living(
    members: Sequence[Seen], own: Own, size: int, replace_after_s: float
) -> Change:
    """A candidate makes itself a place where nobody is gone."""
    change = next_change(members, own, size, replace_after_s)
    here = any(member.peer_url == own.peer_url for member in members)
    voters = [member for member in members if not member.is_learner]
    return Remove(voters[-1].id) if isinstance(change, Nothing) and not here else change


def removes_below_the_majority(
    members: Sequence[Seen], own: Own, size: int, replace_after_s: float
) -> Change:
    """Whoever is gone is removed, although those that are left are no living majority."""
    change = next_change(members, own, size, replace_after_s)
    here = any(member.peer_url == own.peer_url for member in members)
    dead = [each for each in members if not each.is_learner and each.gone_s >= replace_after_s]
    return Remove(dead[0].id) if dead and isinstance(change, Nothing) and not here else change
