"""A quorum inside a job under random faults: it comes back, and nothing is lost or counted twice."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from support.faults.checks import check, check_sums
from support.faults.models import UNKNOWN
from support.faults.quorum_bench import QuorumBench, some_at_a_time, start_clients, two_at_once
from support.faults.schedules import Player, Step, explain, report, seeds
from support.faults.store_clients import COUNTERS, Clients, History
from support.quorum import PATIENCE_S, Job
from support.waiting import eventually
from torchetcd.etcd_store import EtcdStore

SECONDS = 12.0
# With as much patience as the tests of other faults of a quorum have: other tests may keep the machine busy.
pytestmark = [pytest.mark.needs_etcd, pytest.mark.timeout(200)]


def _run(job: Job, steps: list[Step], seed: int, folder: Path) -> History:
    """Play a schedule, check what must hold after it, and end the job."""
    prefix = f"/faults_{uuid.uuid4().hex}"
    (folder / "history").mkdir()
    clients = Clients(folder / "history")
    try:
        # Their processes start slowly, and what they call waits for the quorum.
        pids = start_clients(job, clients, prefix, seed)
        job.start_all(5, 5, 5)
        job.await_members(*(entry.port for entry in job.entries.first))
        eventually(lambda: len(clients.history().calls) > len(pids), PATIENCE_S)
        with QuorumBench(job, pids) as bench:
            Player(bench).play(steps, SECONDS)
            bench.mend()
            clients.stop()
            eventually(bench.agree, PATIENCE_S)
    finally:
        clients.close()
    bench.watcher.check()
    history = clients.history()
    with job.client() as client, EtcdStore(client, prefix) as store:
        check_sums(history, {key: store.add(key, 0) for key in COUNTERS})
    check(history)
    _end(job)
    unknown = sum(call.result is UNKNOWN for call in history.calls)
    counts = {"calls": len(history.calls), "unknown": unknown, "errors": len(history.errors)}
    report("quorum", seed, steps, **counts)
    return history


def _end(job: Job) -> None:
    """All agents form a world and end their job, which leaves nothing."""
    agents = [agent for agent in job.agents if not agent.ended]
    for agent in agents:
        agent.start("join")
    assert sorted(agent.finish() for agent in agents) == [[rank, 5] for rank in range(5)]
    for agent in agents:
        agent.start("shutdown")
    assert [agent.finish() for agent in agents] == [True] * 5
    assert [agent.end() for agent in agents] == [0] * 5
    assert not job.etcds()
    assert list(job.data.iterdir()) == []


def _check_errors(history: History) -> None:
    # Whoever is not reached is named. What a lost answer was cannot be found where history is compacted.
    named = [error for error in history.errors if "127.0.0.1:" in error or "compacted" in error]
    assert named == history.errors
    assert len(history.calls) > 100


@pytest.mark.slow(30)
@pytest.mark.parametrize("seed", seeds(2))
def test_agents_and_members(make_job: Callable[..., Job], seed: int, tmp_path: Path) -> None:
    """Of agents and members, several are lost or stopped at a time; some come back without their data."""
    steps = some_at_a_time(seed, SECONDS)
    explain("test_agents_and_members", seed, steps)
    _check_errors(_run(make_job(5), steps, seed, tmp_path))


@pytest.mark.slow(30)
@pytest.mark.parametrize("seed", seeds(1))
def test_two_members_at_once(make_job: Callable[..., Job], seed: int, tmp_path: Path) -> None:
    """A majority is lost, and comes back with its data."""
    steps = two_at_once(seed, SECONDS)
    explain("test_two_members_at_once", seed, steps)
    _check_errors(_run(make_job(5), steps, seed, tmp_path))
