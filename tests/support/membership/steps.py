"""What agents of the model do next, in the order in which `keeper.py` and `changing.py` do it."""

from __future__ import annotations

from collections.abc import Iterator

from support.membership.rules import REPLACE_AFTER_S, Rules
from support.membership.world import (
    IDLE,
    NOBODY,
    VIRGIN,
    Disk,
    Listed,
    Plan,
    ViolationError,
    World,
    first_id,
    place_of,
)
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
)

Step = tuple[str, World]


def agent_steps(world: World, rules: Rules) -> Iterator[Step]:
    """Each step that some agent can take now; one that changes nothing is none."""
    for place in range(len(world.agents)):
        step = step_of(world, place, rules)
        if step is not None:
            yield step


def step_of(world: World, place: int, rules: Rules) -> Step | None:
    """The next step of one agent."""
    agent = world.agents[place]
    if not agent.up:
        return None
    try:
        label, after = _step_of(world, place, rules)
    except ViolationError as exc:
        exc.step = f"{place} {agent.plan.what} {agent.plan.step or ''}"
        raise
    return None if after == world else (f"{place} {label}", after)


def _step_of(world: World, place: int, rules: Rules) -> Step:
    agent = world.agents[place]
    if agent.plan.what == "idle":
        return ("looks", _looks(world, place, rules)) if agent.runs else _asks(world, place, rules)
    if agent.plan.what == "start":
        assert isinstance(agent.plan.step, Start)
        how = agent.plan.step
        return f"starts {how.value}", _starts(world, place, how, rules)
    if agent.plan.what == "stand by":
        return "looks for a place", _looks(world, place, rules)
    if agent.plan.what == "holds":
        return "decides", _decides(world, place, rules)
    return f"does {agent.plan.step}", _does(world, place, rules)


# ------------------------------------------------------------------ a member that is started


def told_of(world: World, place: int, rules: Rules) -> Told:
    """What `look_around` finds out."""
    agent = world.agents[place]
    reached = world.together(place)
    is_first = place < world.size
    knows = agent.knows and rules.keeps_knowledge
    has_data = (agent.disk is not None) if rules.by_disk else agent.own != 0
    history = world.served(place)
    if history is not None:
        members = world.histories[history]
        return Told(
            is_first,
            has_data,
            removed=agent.own not in {member.id for member in members},
            quorum=True,
            awaited=_is_awaited(place, members, rules),
            knows=knows,
        )
    if has_data:
        return Told(is_first, has_data)
    hinted = awaited = False
    fresh = int(is_first and not knows)
    for other in range(world.size):
        it = world.agents[other]
        if other == place or other not in reached or not it.up:
            continue
        if it.runs and it.disk is not None:
            knows_started = it.disk.history != VIRGIN
            hinted = hinted or knows_started
            fresh += not knows_started and rules.counts_virgins
            awaited = awaited or (not rules.by_majority and _is_awaited(place, it.disk.view, rules))
        else:
            fresh += it.fresh
    return Told(
        is_first,
        has_data,
        quorum=awaited,
        awaited=awaited,
        knows=knows,
        others_know=hinted or (rules.asks_all and _others_know(world, place)),
        fresh=fresh,
        majority=world.majority,
    )


def _others_know(world: World, place: int) -> bool:
    """Whether an agent has heard of a quorum, or a further entry has a member."""
    for other in world.together(place):
        it = world.agents[other]
        if other != place and it.up and (other >= world.size if it.runs else it.heard):
            return True
    return False


def _is_awaited(place: int, members: tuple[Listed, ...], rules: Rules) -> bool:
    if not rules.by_id:
        return any(place_of(each.id) == place and not each.published for each in members)
    return any(each.id == first_id(place) and not each.published for each in members)


def _asks(world: World, place: int, rules: Rules) -> Step:
    told = told_of(world, place, rules)
    how = rules.start(told)
    label = f"asks: {how.value}"
    if told.quorum and how is not Start.AS_FIRST:
        world = world.with_agent(place, knows=True, heard=True)
    if how is Start.WAIT:
        return label, world.with_agent(place, fresh=not told.knows)
    if how is Start.BY_CHANGE:
        if told.has_data:
            world = world.with_agent(place, disk=None, own=0)
        return label, world.with_agent(place, fresh=False, plan=Plan("stand by"))
    return label, world.with_agent(place, plan=Plan("start", how))


def _starts(world: World, place: int, how: Start, rules: Rules) -> World:
    agent = world.agents[place]
    world = world.with_agent(place, plan=IDLE)
    if how is Start.WITH_DATA and agent.disk is not None:
        return world.with_agent(place, runs=True).settled()
    if place >= world.size:
        return world  # etcd does not find itself among the first members, and ends
    mine = first_id(place)
    for history in range(len(world.histories)):
        forgotten = (history, mine) in world.joined
        if forgotten and not world.is_lost(history) and rules.remembers:
            raise ViolationError("amnesia", f"{place} starts without the data that it had")
    first = tuple(Listed(first_id(each)) for each in range(world.size))
    own = mine if how is Start.AS_FIRST else agent.own
    disk = Disk(mine, VIRGIN, first)
    return world.with_agent(place, runs=True, disk=disk, own=own).settled()


# ------------------------------------------------------------------ a change of members


def next_change_of(world: World, place: int, history: int, rules: Rules) -> Change:
    members, agent = world.histories[history], world.agents[place]
    gone = tuple(
        (REPLACE_AFTER_S if member.id in world.due else 1.0) if world.is_gone(member.id) else 0.0
        for member in members
    )
    own = Own(str(place), agent.own or None, agent.runs)
    key = (rules.next_change, members, gone, place, agent.own, agent.runs, world.size)
    if key not in _decided:
        seen = [
            Seen(member.id, str(place_of(member.id)), member.learner, gone_s)
            for member, gone_s in zip(members, gone, strict=True)
        ]
        _decided[key] = rules.next_change(seen, own, world.size, REPLACE_AFTER_S)
    return _decided[key]


#: Decisions have no memory, so each is asked for once.
_decided: dict[object, Change] = {}


def _looks(world: World, place: int, rules: Rules) -> World:
    """Ask for the key if there is something to do."""
    idle = world.with_agent(place, plan=IDLE)
    history = world.served(place)
    if history is None:
        return idle
    change = next_change_of(world, place, history, rules)
    if isinstance(change, Nothing):
        return idle
    if isinstance(change, rules.keyless):
        return world.with_agent(place, plan=Plan("holds", "without the key"))
    if world.holder != NOBODY:
        return idle
    return world.with_agent(place, plan=Plan("holds"))._replace(holder=place)


def _decides(world: World, place: int, rules: Rules) -> World:
    agent = world.agents[place]
    idle = world.with_agent(place, plan=IDLE)
    held = world.holder == place
    if not held and agent.plan.step is None:
        return idle
    history = world.served(place)
    if history is None:
        return idle._replace(holder=NOBODY if held else world.holder)  # its lease ends
    change = next_change_of(world, place, history, rules)
    if isinstance(change, Nothing) or not (held or isinstance(change, rules.keyless)):
        return idle._replace(holder=NOBODY if held else world.holder)
    due = True
    if isinstance(change, Remove) and place_of(change.id) != place:
        leaving = next(each for each in world.histories[history] if each.id == change.id)
        confirms = rules.confirms and not (leaving.learner and rules.removes_learners_that_run)
        if confirms and not world.is_gone(change.id):
            return world
        due = leaving.learner or change.id in world.due
    return world.with_agent(place, plan=Plan("does", change, held, due))


def _does(world: World, place: int, rules: Rules) -> World:
    """Do what was decided, whether or not the key is still held."""
    agent = world.agents[place]
    plan, change = agent.plan, agent.plan.step
    world = world.with_agent(place, plan=Plan("holds", None if plan.held else "without the key"))
    if not plan.held:
        raise ViolationError("one at a time", f"{place} does {change} without the key")
    history = world.served(place)
    if history is None:
        held = world.holder == place
        world = world.with_agent(place, plan=IDLE)
        return world._replace(holder=NOBODY) if held else world
    if isinstance(change, Remove):
        after = _remove(world, place, history, change, due=plan.due, rules=rules)
    elif isinstance(change, AddLearner):
        after = _add(world.with_agent(place, runs=False, disk=None, own=0), place, history, rules)
    elif isinstance(change, StartLearner):
        after = _start_learner(world, place, history)
    else:
        assert isinstance(change, Promote)
        after = _promote(world, history, change)
    return _with_a_majority(after, history).settled()


def _with_a_majority(world: World, history: int) -> World:
    """See that a change has left those that serve a living majority, and not too many of them."""
    voters = {member.id for member in world.histories[history] if not member.learner}
    if not any(
        len(voters.intersection(world.running(places, history))) > len(voters) // 2
        for places in world.sides()
    ):
        raise ViolationError("majority", f"a change leaves {world.histories[history]}")
    if len(voters) > world.size:
        raise ViolationError("size", f"{world.histories[history]}")
    return world


def _remove(
    world: World, place: int, history: int, change: Remove, *, due: bool, rules: Rules
) -> World:
    members = world.histories[history]
    leaving = next((member for member in members if member.id == change.id), None)
    if leaving is None:
        return world  # "member not found"
    if not leaving.learner:
        voters = [member for member in members if not member.learner]
        living = sum(1 for voter in voters if not world.is_gone(voter.id))
        if (
            rules.strict
            and not world.is_gone(leaving.id)
            and living - 1 < 1 + (len(voters) - 1) // 2
        ):
            return world  # "unhealthy cluster"
        if not due and place_of(leaving.id) != place:
            raise ViolationError("too early", f"{place} removes {leaving.id}")
    world = world.with_members(history, tuple(each for each in members if each != leaving))
    if leaving.id == world.agents[place].own:
        world = world.with_agent(place, runs=False, disk=None, own=0)
    return world


def _add(world: World, place: int, history: int, rules: Rules) -> World:
    members = world.histories[history]
    unhealthy = any(world.is_gone(member.id) for member in members if not member.learner)
    if unhealthy and rules.strict:
        return world  # "unhealthy cluster"
    if any(member.learner or place_of(member.id) == place for member in members):
        return world  # "too many learners", "peer URL exists"
    generation = world.generations[place] + 1
    counts = world.generations
    world = world._replace(generations=(*counts[:place], generation, *counts[place + 1 :]))
    added = first_id(place) + generation
    world = world.with_members(history, (*members, Listed(added, learner=True)))
    return world.with_agent(place, own=added)


def _start_learner(world: World, place: int, history: int) -> World:
    agent = world.agents[place]
    if agent.own not in {member.id for member in world.histories[history]}:
        return world  # its list of members is not that of the others, so it ends
    disk = agent.disk or Disk(agent.own, history, world.histories[history])
    return world.with_agent(place, runs=True, disk=disk)


def _promote(world: World, history: int, change: Promote) -> World:
    members = world.histories[history]
    mine = next((member for member in members if member.id == change.id), None)
    if mine is None or not mine.learner or world.is_gone(mine.id):
        return world  # "not found", "not a learner", "learner not ready"
    voter = mine._replace(learner=False)
    return world.with_members(history, tuple(voter if it == mine else it for it in members))
