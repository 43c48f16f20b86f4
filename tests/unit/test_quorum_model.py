"""A model of the quorum inside the job: what must hold does, and agents that are wrong are caught.

support/quorum/world.py says what is modelled. The agents act by `decisions.start` and `next_change`, in the
order of steps of `keeper.py`, `surroundings.py` and `changing.py`. What must hold:

- two quorums: no two majorities serve histories of their own at the same time.
- amnesia: no member starts without the data with which it has voted, while its history can be served again.
- majority: a change of members leaves a living majority.
- one at a time: whoever decides on a change holds the key. One that loses it finishes the step that it had
  decided on, and all of this holds still.
- too early: a voter of another place is removed after `quorum_replace_after`, and not before.
- size: there are never more voters than there should be.
- recovery: when faults stop, and a majority of the voters have agents and data, there are as many living
  voters again as there should be, or as there are agents.

TORCHETCD_QUORUM_DEPTH=20 goes through 20 times as many states and seeds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import pytest

from support.membership import variants
from support.membership.rules import REPLACE_AFTER_S, RIGHT, Rules
from support.membership.search import Searched, job, job_that_runs, search, walk
from support.membership.world import World
from torchetcd._quorum.decisions import (
    AddLearner,
    Change,
    Nothing,
    Own,
    Promote,
    Remove,
    Seen,
    Start,
    StartLearner,
    Told,
    next_change,
    start,
)

DEPTH = int(os.environ.get("TORCHETCD_QUORUM_DEPTH", "1"))
STATES = 4000 * DEPTH
SEEDS = 60 * DEPTH

JOBS = {
    "one member": job(1, 2, crashes=2, losses=1, pauses=1),
    "a first start": job(3, 3, crashes=2),
    "a first start, and data is lost": job(3, 3, crashes=2, losses=1, pauses=1),
    "a first start, and a candidate": job(3, 4, crashes=1, cuts=1),
    "a candidate": job_that_runs(3, 4, crashes=2, losses=1),
    "a candidate that is paused": job_that_runs(3, 4, crashes=2, pauses=2),
    "a candidate, and the network": job_that_runs(3, 4, crashes=1, pauses=1, cuts=1),
    "two candidates": job_that_runs(3, 5, crashes=2, pauses=1),
    "first entries without members": job_that_runs(3, 5, 2, crashes=1, losses=1, cuts=1),
    "five members": job_that_runs(5, 6, crashes=2, losses=1),
}


@pytest.mark.parametrize("name", JOBS)
def test_in_all_orders_of_events(name: str) -> None:
    searched = search(JOBS[name], RIGHT, states=STATES, recover_each=25)
    assert not searched.found, searched.found
    assert searched.recoveries > 0


LARGE = {
    "three of four": job_that_runs(3, 4, crashes=6, losses=3, pauses=4, cuts=2),
    "three of six": job(3, 6, crashes=6, losses=2, pauses=4, cuts=2),
    "five of seven": job_that_runs(5, 7, 1, crashes=8, losses=4, pauses=4, cuts=2),
}


@pytest.mark.parametrize("name", LARGE)
def test_by_chance(name: str) -> None:
    for seed in range(SEEDS):
        searched = walk(LARGE[name], RIGHT, seed, length=120)
        assert not searched.found, f"seed {seed}:\n{searched.found}"


# ------------------------------------------------------------------ wrong ones


class Wrong(NamedTuple):
    """How agents, or etcd, are wrong, where that matters, and what it violates."""

    rules: Rules
    world: World
    violates: str


WRONG = {
    "removes before replace_after": Wrong(
        Rules(next_change=variants.removes_early), job_that_runs(3, 4, crashes=1), "too early"
    ),
    "removes a member that lives": Wrong(
        Rules(next_change=variants.removes_the_living, confirms=False),
        job_that_runs(3, 4),
        "too early",
    ),
    "starts as a first member and asks nobody": Wrong(
        Rules(start=variants.starts_unasked), job(3, 3, crashes=2, losses=1), "amnesia"
    ),
    "starts a blank member under its old id": Wrong(
        Rules(start=variants.starts_again_under_its_old_id),
        job_that_runs(3, 3, crashes=1, losses=1),
        "amnesia",
    ),
    "adds before it removes": Wrong(
        Rules(next_change=variants.adds_first), job_that_runs(3, 4, crashes=1), "recovery"
    ),
    "takes a place where there is none": Wrong(
        Rules(next_change=variants.takes_any_place), job_that_runs(3, 4), "size"
    ),
    "leaves a learner that was abandoned": Wrong(
        Rules(next_change=variants.leaves_the_abandoned),
        job_that_runs(3, 5, crashes=2),
        "recovery",
    ),
    "leaves a learner that runs": Wrong(
        Rules(removes_learners_that_run=False),
        job_that_runs(3, 4, crashes=1, pauses=1),
        "recovery",
    ),
    "takes a member whose data is lost for its own": Wrong(
        Rules(next_change=variants.ignores_lost_data),
        job_that_runs(3, 3, crashes=1, losses=1),
        "recovery",
    ),
    "keeps the data of a member that was removed": Wrong(
        Rules(start=variants.keeps_what_was_removed),
        job_that_runs(3, 4, crashes=2),
        "recovery",
    ),
    "changes without the key": Wrong(
        Rules(keyless=(Remove, AddLearner, StartLearner, Promote)),
        job_that_runs(3, 4, crashes=1),
        "one at a time",
    ),
    "promotes without the key": Wrong(
        Rules(keyless=(Promote,)), job_that_runs(3, 4, crashes=1, pauses=1), "one at a time"
    ),
    "etcd without its strict check": Wrong(
        Rules(strict=False), job_that_runs(3, 4, crashes=2), "majority"
    ),
    # As it was before this model.
    "takes a member that it has added for data": Wrong(
        Rules(by_disk=False), job_that_runs(3, 4, crashes=1, losses=1, pauses=1), "amnesia"
    ),
    "takes its learner for its first member": Wrong(
        Rules(by_id=False), job_that_runs(3, 3, crashes=2, losses=1), "amnesia"
    ),
    "believes one member that it was never started": Wrong(
        Rules(by_majority=False), job(3, 3, crashes=2, losses=1, cuts=1), "amnesia"
    ),
    "does not count a member that has no leader": Wrong(
        Rules(counts_virgins=False), job(3, 3), "recovery"
    ),
    "forgets that there is a quorum": Wrong(
        Rules(keeps_knowledge=False, asks_all=False, remembers=False),
        job_that_runs(3, 5, 2, cuts=1),
        "two quorums",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_catches(name: str) -> None:
    rules, world, violates = WRONG[name]
    found = search(world, rules, states=60_000, recover_each=7).found
    assert found is not None
    assert found.invariant == violates, found
    # It is the guard that counts: the same job has no violation with it.
    right = search(world, RIGHT, states=500 * DEPTH, recover_each=50)
    assert not right.found, right.found


# ------------------------------------------------------------------ what no rule can tell


def _comes_back_blank(world: World, *places: int) -> World:
    for place in places:
        world = world.with_agent(
            place, up=False, runs=False, disk=None, own=0, knows=False, fresh=True
        )
    return world.settled()


def _hole(world: World, *, remembers: bool) -> Searched:
    return search(world, Rules(any_losses=True, remembers=remembers), states=8000)


def test_a_majority_of_first_entries_without_data_can_begin_again() -> None:
    """Known: the first start of a job looks the same to them as one whose members they do not reach.

    One of the first entries has lost its place and another one its host. Both come back with empty disks,
    in a part of the network without the other members.
    """
    world = _comes_back_blank(job_that_runs(3, 4, 1, cuts=1), 0, 1)
    found = _hole(world, remembers=False).found
    assert found is not None
    assert found.invariant == "two quorums"
    assert found.trace[:3] == ["0 comes", "1 comes", "[2, 3] are cut off"]


def test_a_first_entry_that_was_never_started_counts_as_one_without_data() -> None:
    """Known: so one loss of data more is too much as long as not all first members have been started."""
    found = _hole(job(3, 3, crashes=2, losses=1), remembers=True).found
    assert found is not None
    assert found.invariant == "amnesia"


def test_an_agent_that_has_heard_of_a_quorum_keeps_others_from_another_one() -> None:
    """The same with one more agent, which is where they are."""
    apart = job_that_runs(3, 5, 1)._replace(cut=frozenset([2, 4]))
    world = _comes_back_blank(apart, 0, 1)
    searched = _hole(world, remembers=False)
    assert not searched.found, searched.found
    wrong = Rules(asks_all=False, remembers=False)
    found = search(world, wrong, states=20_000).found
    assert found is not None
    assert found.invariant == "two quorums"


def test_fewer_than_a_majority_cannot() -> None:
    world = _comes_back_blank(job_that_runs(3, 5, 2, crashes=1, cuts=1), 0)
    searched = _hole(world, remembers=True)
    assert not searched.found, searched.found


# ------------------------------------------------------------------ each decision by itself


def _views() -> Iterator[tuple[list[Seen], Own]]:
    """All lists of up to four voters and a learner, and all that an agent may be in them."""
    gone = (0.0, 1.0, REPLACE_AFTER_S)
    for many in range(1, 5):
        for away in product(gone, repeat=many):
            voters = [Seen(it, str(it), gone_s=gone_s) for it, gone_s in enumerate(away, start=1)]
            learners = [[], *([Seen(9, "9", is_learner=True, gone_s=gone_s)] for gone_s in gone)]
            for learner in learners:
                for place, mine, runs in product(("1", "9", "x"), (1, 9, None), (True, False)):
                    yield [*voters, *learner], Own(place, mine, runs)


def _is_sound(members: Sequence[Seen], own: Own, change: Change, size: int) -> bool:
    """Whether a change may be made, by what the agent sees."""
    voters = [member for member in members if not member.is_learner]
    mine = next((member for member in members if member.peer_url == own.peer_url), None)
    if isinstance(change, Remove):
        leaving = next(member for member in members if member.id == change.id)
        left = [voter for voter in voters if voter is not leaving]
        living = sum(1 for voter in left if voter.gone_s == 0)
        may = leaving is mine or leaving.gone_s >= REPLACE_AFTER_S
        return leaving.is_learner or (may and living > len(left) // 2)
    if isinstance(change, AddLearner):
        gone = any(member.gone_s for member in members)
        return mine is None and not gone and voters == list(members) and len(voters) < size
    if isinstance(change, (StartLearner, Promote)):
        ours = mine is not None and mine.is_learner and mine.id == own.id
        promoted = isinstance(change, StartLearner) or (change.id == own.id and own.runs)
        return ours and promoted and len(voters) < size
    return isinstance(change, Nothing)


def _unsound(decide: Callable[[Sequence[Seen], Own, int, float], Change]) -> list[object]:
    found: list[object] = []
    for size in (1, 3, 5):
        for members, own in _views():
            change = decide(members, own, size, REPLACE_AFTER_S)
            if not _is_sound(members, own, change, size):
                found.append((members, own, size, change))
    return found


def test_each_change_is_sound_by_what_its_agent_sees() -> None:
    assert not _unsound(next_change)


@pytest.mark.parametrize(
    "wrong",
    [
        variants.removes_below_the_majority,
        variants.removes_early,
        variants.adds_first,
        variants.takes_any_place,
        variants.ignores_lost_data,
    ],
)
def test_a_change_that_is_not_sound_is_seen(
    wrong: Callable[[Sequence[Seen], Own, int, float], Change],
) -> None:
    assert _unsound(wrong)


def test_a_first_member_is_started_only_where_nobody_was_before() -> None:
    flags = (False, True)
    for first, data, removed, quorum, awaited, knows, others in product(flags, repeat=7):
        for fresh in range(4):
            told = Told(first, data, removed, quorum, awaited, knows, others, fresh, majority=2)
            how = start(told)
            known = quorum and awaited
            alone = not (quorum or knows or others) and fresh >= 2
            assert (how is Start.AS_FIRST) == (first and not data and (known or alone))
            assert (how is Start.WITH_DATA) == (data and not removed)
