"""Looks for what must not happen: in all orders of events of a small job, and by chance in larger ones."""

from __future__ import annotations

import contextlib
import gc
import random
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from support.membership.faults import all_steps, lacks, must_recover, recovered
from support.membership.rules import Rules
from support.membership.world import (
    Agent,
    Budget,
    Disk,
    Listed,
    ViolationError,
    World,
    first_id,
    place_of,
)


class Found(NamedTuple):
    """A violation, and how it came to it."""

    invariant: str
    text: str
    trace: list[str]

    def __str__(self) -> str:
        return "\n".join([*self.trace, f"=> {self.invariant}: {self.text}"])


class Searched(NamedTuple):
    """What a search has seen."""

    states: int
    steps: int
    recoveries: int
    found: Found | None


def job(size: int, places: int, **faults: int) -> World:
    """A job before its first agent comes."""
    return World(size, (Agent(),) * places, generations=(0,) * places, left=Budget(**faults))


def job_that_runs(size: int, places: int, moved: int = 0, **faults: int) -> World:
    """A job whose members serve, and whose other agents stand by.

    Args:
        size: How many members there are.
        places: How many entries.
        moved: So many of the first entries, from the front, have lost their place to the last entries.
        **faults: The budget.
    """
    gone = range(moved)
    new = range(places - moved, places)
    first = [Listed(first_id(place), published=True) for place in range(moved, size)]
    members = (*first, *(Listed(first_id(place) + 1, published=True) for place in new))
    agents = [Agent(up=True, knows=True, heard=True, fresh=False)] * places
    for member in members:
        agents[place_of(member.id)] = Agent(
            up=True, runs=True, disk=Disk(member.id, 0, members), own=member.id, fresh=False
        )
    joined = {(0, member.id) for member in members} | {(0, first_id(place)) for place in gone}
    return World(
        size,
        tuple(agents),
        histories=(members,),
        joined=frozenset(joined),
        generations=tuple(int(place in new) for place in range(places)),
        left=Budget(**faults),
    ).settled()


def check_recovery(world: World, rules: Rules) -> bool:
    """See that a quorum comes back once faults stop; `False` where it need not."""
    if not must_recover(world):
        return False
    lacking = lacks(recovered(world, rules), rules)
    if lacking:
        violation = ViolationError("recovery", lacking)
        violation.step = "faults stop"
        raise violation
    return True


def search(world: World, rules: Rules, *, states: int, recover_each: int = 0) -> Searched:
    """Go through the states that can be reached, those with the fewest steps first.

    Args:
        world: Where it begins.
        rules: How agents act.
        states: How many states are visited at most.
        recover_each: From each so-manieth state on faults stop, and the quorum must come back.
    """
    with _uncollected():
        return _search(world, rules, states, recover_each)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no cycles among millions of tuples."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _search(world: World, rules: Rules, states: int, recover_each: int) -> Searched:
    came: dict[World, tuple[World, str] | None] = {world: None}
    queue = deque([world])
    steps = recoveries = visited = 0
    while queue:
        state = queue.popleft()
        try:
            if recover_each and visited % recover_each == 0:
                recoveries += check_recovery(state, rules)
            visited += 1
            for label, after in all_steps(state, rules):
                steps += 1
                if after not in came and len(came) < states:
                    came[after] = (state, label)
                    queue.append(after)
        except ViolationError as exc:
            trace = [exc.step]
            back = came[state]
            while back is not None:
                trace.append(back[1])
                back = came[back[0]]
            found = Found(exc.invariant, str(exc), trace[::-1])
            return Searched(len(came), steps, recoveries, found)
    return Searched(len(came), steps, recoveries, None)


def walk(world: World, rules: Rules, seed: int, length: int) -> Searched:
    """Take steps by chance, and let the quorum come back at the end."""
    chance = random.Random(seed)
    trace: list[str] = []
    steps = recoveries = 0
    try:
        for _ in range(length):
            choices = list(all_steps(world, rules))
            if not choices:
                break
            label, world = chance.choice(choices)
            trace.append(label)
            steps += 1
        recoveries += check_recovery(world, rules)
    except ViolationError as exc:
        return Searched(
            steps, steps, recoveries, Found(exc.invariant, str(exc), [*trace, exc.step])
        )
    return Searched(steps, steps, recoveries, None)
