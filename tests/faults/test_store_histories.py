"""Stores under random faults: histories are linearizable, sums exact, and nothing fails that need not."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from support.faults.bench import Bench
from support.faults.checks import check, check_sums
from support.faults.models import UNKNOWN
from support.faults.schedules import (
    Player,
    Step,
    anything,
    explain,
    given,
    one_at_a_time,
    report,
    seeds,
)
from support.faults.store_clients import COUNTERS, Clients, History
from torchetcd.etcd import Client
from torchetcd.etcd_store import EtcdStore

SECONDS = 20.0
# The check of a history takes its time on a slow machine.
pytestmark = pytest.mark.timeout(400)
AGENTS = ["agent-1", "agent-2", "agent-3"]


def run(
    bench: Bench, steps: list[Step], seed: int, folder: Path, seconds: float = SECONDS
) -> History:
    prefix = f"/faults_{uuid.uuid4().hex}"
    clients = Clients(folder)
    try:
        for agent in AGENTS:
            process = clients.start(agent, bench.connect(agent), prefix, seed)
            bench.runs(agent, process.pid)
        Player(bench).play(steps, seconds)
        bench.mend()
        clients.stop()
    finally:
        for agent in AGENTS:
            bench.runs(agent, None)
        clients.close()
    history = clients.history()
    with (
        Client(",".join(member.url for member in bench.cluster.members)) as client,
        EtcdStore(client, prefix) as store,
    ):
        check_sums(history, {key: store.add(key, 0) for key in COUNTERS})
    check(history)
    unknown = sum(call.result is UNKNOWN for call in history.calls)
    counts = {"calls": len(history.calls), "unknown": unknown, "errors": len(history.errors)}
    report("store", seed, steps, **counts)
    return history


@pytest.mark.slow(25)
@pytest.mark.parametrize("seed", seeds(3))
def test_one_member_at_a_time(bench: Bench, seed: int, tmp_path: Path) -> None:
    """No call fails that has 15 s, whatever befalls one member of three."""
    steps = one_at_a_time(seed, SECONDS, AGENTS)
    explain("test_one_member_at_a_time", seed, steps)
    history = run(bench, steps, seed, tmp_path)
    assert history.errors == []
    assert len(history.calls) > 500


@pytest.mark.slow(25)
@pytest.mark.parametrize("seed", seeds(3))
def test_anything(bench: Bench, seed: int, tmp_path: Path) -> None:
    """Calls may fail, but nothing is lost or counted twice."""
    steps = anything(seed, SECONDS, AGENTS)
    explain("test_anything", seed, steps)
    history = run(bench, steps, seed, tmp_path)
    # Who is not reached is named. What a lost answer was cannot be found where history is compacted.
    named = [error for error in history.errors if "127.0.0.1:" in error or "compacted" in error]
    assert named == history.errors
    assert len(history.calls) > 100


@pytest.mark.skipif(given() is None, reason="TORCHETCD_FAULT_SCHEDULE names no schedule")
def test_given_schedule(bench: Bench, tmp_path: Path) -> None:
    """A schedule of somebody else's, from a file."""
    steps = given() or []
    run(bench, steps, 0, tmp_path, max(step.at_s for step in steps) + 5)
