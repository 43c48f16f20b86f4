"""What may happen to the agents of the model. Each fault that is not the end of another has a budget."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from support.membership.rules import Rules
from support.membership.steps import Step, agent_steps, next_change_of, step_of
from support.membership.world import IDLE, NOBODY, VIRGIN, World
from torchetcd._quorum.decisions import AddLearner


def all_steps(world: World, rules: Rules) -> Iterator[Step]:
    """Everything that may happen next."""
    yield from agent_steps(world, rules)
    yield from _of_agents(world, rules)
    yield from _of_key(world)
    if world.left.pauses:
        yield from _of_answers(world, rules)
    yield from _of_network(world)
    yield from time_passes(world)


def _of_agents(world: World, rules: Rules) -> Iterator[Step]:
    left = world.left
    for place, agent in enumerate(world.agents):
        if not agent.up:
            own = agent.disk.id if agent.disk is not None else 0
            fresh = own == 0 and not agent.knows
            yield f"{place} comes", world.with_agent(place, up=True, own=own, fresh=fresh)
            if left.losses and (agent.disk is not None or agent.knows):
                lost = world.with_agent(place, disk=None, knows=False)
                if rules.any_losses or blank_entries(lost) < lost.majority:
                    yield f"{place} loses its data", _less(lost, losses=left.losses - 1)
        elif left.crashes:
            down = world.with_agent(
                place, up=False, runs=False, own=0, plan=IDLE, fresh=True, heard=False
            )
            yield f"{place} is killed", _less(down, crashes=left.crashes - 1)
            if agent.runs:
                down = world.with_agent(place, runs=False, fresh=False)
                yield f"the etcd of {place} ends", _less(down, crashes=left.crashes - 1)


def blank_entries(world: World) -> int:
    """How many of the first entries have nothing on their disk, or no more than a virgin's."""
    first = world.agents[: world.size]
    has = [it.knows or (it.disk is not None and it.disk.history != VIRGIN) for it in first]
    return len(first) - sum(has)


def _of_key(world: World) -> Iterator[Step]:
    if world.holder == NOBODY:
        return
    free = world._replace(holder=NOBODY)
    agent = world.agents[world.holder]
    if not agent.up or agent.plan.what not in ("holds", "does"):
        yield "the key expires", free
    elif world.left.pauses:
        paused = _less(free, pauses=world.left.pauses - 1)
        yield "the key of a paused agent expires", paused
        failed = paused.with_agent(world.holder, plan=IDLE)
        yield f"a call of {world.holder} fails", failed


def _of_answers(world: World, rules: Rules) -> Iterator[Step]:
    """A learner is added, and its agent does not hear of it."""
    for place, agent in enumerate(world.agents):
        if isinstance(agent.plan.step, AddLearner):
            step = step_of(world, place, rules)
            if step is not None:
                after = step[1].with_agent(place, own=0)
                yield f"{step[0]}, unheard", _less(after, pauses=world.left.pauses - 1)


def _of_network(world: World) -> Iterator[Step]:
    if world.cut:
        yield "the network is whole", world._replace(cut=frozenset()).settled()
    elif world.left.cuts:
        # A part and the rest are the same cut, so place 0 is never in it.
        others = range(1, len(world.agents))
        for many in range(1, len(world.agents)):
            for cut in combinations(others, many):
                apart = world._replace(cut=frozenset(cut)).settled()
                yield f"{list(cut)} are cut off", _less(apart, cuts=world.left.cuts - 1)


def time_passes(world: World) -> Iterator[Step]:
    """Whoever is gone now is gone for long enough."""
    for history in set(world.sight().served):
        if history is not None:
            gone = {each.id for each in world.histories[history] if world.is_gone(each.id)}
            if not gone <= world.due:
                yield "time passes", world._replace(due=world.due | gone)


def _less(world: World, **left: int) -> World:
    return world._replace(left=world.left._replace(**left))


# ------------------------------------------------------------------ no more faults


def recovered(world: World, rules: Rules, rounds: int = 40) -> World:
    """Let agents that are up go on, each in its turn, with a whole network and no more faults."""
    world = world._replace(cut=frozenset()).settled()
    for _ in range(rounds):
        before = world
        if world.holder != NOBODY and world.agents[world.holder].plan.what not in ("holds", "does"):
            world = world._replace(holder=NOBODY)
        for place in range(len(world.agents)):
            step = step_of(world, place, rules)
            world = step[1] if step is not None else world
        for _, after in time_passes(world):
            world = after
        if world == before:
            break
    return world


def must_recover(world: World) -> bool:
    """Whether a majority of voters has agents that are up and their data, and there are agents enough."""
    up = [place for place, agent in enumerate(world.agents) if agent.up]
    if not world.histories:
        return len([place for place in up if place < world.size]) >= world.majority
    (history,) = range(len(world.histories)) if len(world.histories) == 1 else (0,)
    able = 0
    voters = [each.id for each in world.histories[history] if not each.learner]
    for place in up:
        disk = world.agents[place].disk
        able += disk is not None and disk.history == history and disk.id in voters
    return able > len(voters) // 2


def lacks(world: World, rules: Rules) -> str:
    """What a recovered quorum should have and has not; empty if it has all."""
    serving = world.served(0)
    if serving is None:
        return "nobody serves"
    members = world.histories[serving]
    up = sum(1 for agent in world.agents if agent.up)
    gone = [each.id for each in members if world.is_gone(each.id)]
    if up < world.size:
        return ""  # no candidate for a place
    if gone or len(members) != world.size or any(each.learner for each in members):
        changes = [
            next_change_of(world, place, serving, rules) for place in range(len(world.agents))
        ]
        return f"members {members}, gone {gone}, next {changes}"
    return ""
