"""Rendezvous under random faults: worlds that need not end do not, and the promises hold."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.faults import rendezvous_history
from support.faults.bench import Bench
from support.faults.rendezvous_agents import Agents
from support.faults.schedules import (
    Player,
    Step,
    agents_too,
    explain,
    given,
    one_at_a_time,
    report,
    seeds,
)
from support.waiting import eventually

SECONDS = 20.0
PREFIX = "/torchelastic/p2p"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    made.close()


class Run:
    """Several runs on one bench, whose agents end with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.all: list[Agents] = []

    def agents(self, count: int, **config: object) -> Agents:
        run_id = uuid.uuid4().hex
        (self._folder / run_id).mkdir()
        self.all.append(Agents(self._folder / run_id, run_id, count, **config))
        return self.all[-1]

    def close(self) -> None:
        for agents in self.all:
            agents.close()


def check(bench: Bench, agents: Agents, least: int, most: int) -> None:
    """After all is mended: the promises, by diaries and by what etcd remembers."""
    member = bench.cluster[bench.leader()]
    path = f"{PREFIX}/run_{agents.run_id}"
    rendezvous_history.check(agents.diary(), least, most)
    rendezvous_history.check_keys(agents.diary(), member, path)
    rendezvous_history.check_leases(member, path)


def end(bench: Bench, agents: Agents, names: list[str]) -> None:
    """One closes the run; all learn of it and end."""
    agents.close_by(next(name for name in names if name in agents.live()))
    agents.await_end()
    for name in names:
        bench.runs(name, None)


def counted(agents: list[Agents]) -> dict[str, int]:
    """How many rounds there were, and how many places in them."""
    seen = [(each.run_id, one) for each in agents for one in each.diary() if one.what == "place"]
    return {"rounds": len({(run_id, one.round) for run_id, one in seen}), "places": len(seen)}


def play(
    bench: Bench, agents: Agents, start: Callable[[str], None], names: list[str], steps: list[Step]
) -> None:
    """Start all, play, mend, and start again who was left dead."""
    for name in names:
        start(name)
    bench.starts = start
    Player(bench).play(steps, SECONDS)
    bench.mend()
    for name in names:
        if name not in agents.live():
            start(name)


@pytest.mark.slow(22)
@pytest.mark.parametrize("seed", seeds(3))
def test_one_member_at_a_time_and_worlds(bench: Bench, run: Run, seed: int) -> None:
    """A world goes on, and another run forms round after round, whatever befalls one member of three."""
    steady_names = ["agent-1", "agent-2"]
    restless_names = ["agent-3", "agent-4", "agent-5"]
    steps = one_at_a_time(seed, SECONDS, steady_names + restless_names)
    explain("test_one_member_at_a_time_and_worlds", seed, steps)
    steady, restless = run.agents(2), run.agents(3)
    for name in steady_names:
        bench.runs(name, steady.start(name, bench.connect(name)).pid)
    for name in restless_names:
        process = restless.start(name, bench.connect(name), restless=seed)
        bench.runs(name, process.pid)
    eventually(steady.settled, 60)
    Player(bench).play(steps, SECONDS)
    bench.mend()
    assert [seen.what for seen in steady.diary()] == ["joins"] * 2 + ["place"] * 2, steady.text()
    seen = restless.diary()
    assert not [one for one in seen if one.what == "error"], restless.text()
    assert max(one.round for one in seen) >= 3, restless.text()
    check(bench, restless, 3, 3)
    check(bench, steady, 2, 2)
    report("rendezvous, one member", seed, steps, **counted(run.all))
    end(bench, restless, restless_names)
    end(bench, steady, steady_names)
    check(bench, restless, 3, 3)


@pytest.mark.slow(22)
@pytest.mark.parametrize("seed", seeds(3))
def test_agents_and_members(bench: Bench, run: Run, seed: int) -> None:
    """Members and agents are killed, stopped and cut off, several at once: worlds agree and heal."""
    names = ["agent-1", "agent-2", "agent-3", "agent-4"]
    rng = random.Random(seed)
    least = rng.choice([2, 3])
    agents = run.agents(4, keep_alive_ttl=rng.choice([2, 4]))
    endpoints = {name: bench.connect(name) for name in names}
    steps = agents_too(seed, SECONDS, names)
    explain("test_agents_and_members", seed, steps)

    def start(name: str) -> None:
        restless = seed if rng.random() < 0.5 else None
        process = agents.start(name, endpoints[name], least=least, restless=restless)
        bench.runs(name, process.pid)

    play(bench, agents, start, names, steps)
    # I5: what was cut off is lost or back by now, and one more round has place for all.
    eventually(lambda: _settles(agents), 60)
    seen = agents.diary()
    assert not [one for one in seen if one.what == "error"], agents.text()
    check(bench, agents, least, 4)
    report("rendezvous, agents too", seed, steps, **counted([agents]))
    end(bench, agents, names)
    check(bench, agents, least, 4)


def _settles(agents: Agents) -> bool:
    """Restless agents rejoin all the time: one moment in one world is enough."""
    return len(agents.live()) == 4 and agents.settled()


@pytest.mark.skipif(given() is None, reason="TORCHETCD_FAULT_SCHEDULE names no schedule")
def test_given_schedule_for_worlds(bench: Bench, run: Run) -> None:
    """A schedule of somebody else's, from a file, with `agent-1` to `agent-3` as agents."""
    steps = given() or []
    names = ["agent-1", "agent-2", "agent-3"]
    agents = run.agents(3)
    endpoints = {name: bench.connect(name) for name in names}

    def start(name: str) -> None:
        bench.runs(name, agents.start(name, endpoints[name], restless=0).pid)

    play(bench, agents, start, names, steps)
    eventually(agents.settled, 60)
    check(bench, agents, 3, 3)
    end(bench, agents, names)
