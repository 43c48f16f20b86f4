"""How the quorum of a job forms, with all agents or some, in any order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.quorum import PATIENCE_S, AgentError, Job
from support.waiting import eventually

pytestmark = [pytest.mark.needs_etcd, pytest.mark.timeout(240)]


def _ports(job: Job) -> list[int]:
    return [entry.port for entry in job.entries.all]


def _join(job: Job, count: int) -> None:
    for agent in job.agents[:count]:
        agent.start("join")
    worlds = [agent.finish() for agent in job.agents[:count]]
    assert sorted(worlds) == [[rank, count] for rank in range(count)]


def test_three_of_three(make_job: Callable[..., Job]) -> None:
    job = make_job()
    job.start_all(3, 3, 3)
    job.await_members(*_ports(job))
    _join(job, 3)
    assert {agent.pid for agent in job.agents} == {job.agent_at(p).pid for p in _ports(job)}


def test_a_member_is_a_small_etcd(make_job: Callable[..., Job]) -> None:
    """It shares its host with the training."""
    job = make_job(1, quorum=1)
    job.start().finish()
    (pid,) = job.etcds().values()
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    assert {"GOGC=25"} <= set(environment)


def test_two_of_three(make_job: Callable[..., Job]) -> None:
    """The third never comes, which nobody waits for."""
    job = make_job()
    job.start_all(2, 2, 3)
    _join(job, 2)
    assert job.serving() == set(_ports(job)[:2])


@pytest.mark.parametrize("late", [0, 1, 2])
def test_any_of_them_is_late(make_job: Callable[..., Job], late: int) -> None:
    """The agents of one host take the first free entry: here one that an agent had which is lost."""
    job = make_job(quorum_replace_after=60)
    three = [job.start(2, 3) for _ in range(3)]
    for agent in three:
        agent.finish()
    ports = _ports(job)
    job.await_members(*ports)
    job.lose(job.agent_at(ports[late]))
    eventually(lambda: job.serving() == set(ports) - {ports[late]}, PATIENCE_S)
    job.start(2, 3).finish()
    job.await_members(*ports)


def test_an_agent_without_an_entry_is_a_client(make_job: Callable[..., Job]) -> None:
    job = make_job()
    job.start_all(3, 4, 4)
    client = job.start(4, 4)
    client.finish()
    assert "this one is a client" in client.text()
    _join(job, 4)
    assert job.port_of(client) == 0


def test_a_candidate_waits(make_job: Callable[..., Job]) -> None:
    job = make_job(4)
    agents = job.start_all(4, 4, 4)
    _join(job, 4)
    assert sum(job.port_of(agent) == 0 for agent in agents) == 1
    assert set(job.etcds()) == set(_ports(job)[:3])


def test_five(make_job: Callable[..., Job]) -> None:
    job = make_job(5, quorum=5)
    job.start_all(5, 5, 5)
    job.await_members(*_ports(job))
    _join(job, 5)


def test_one(make_job: Callable[..., Job]) -> None:
    job = make_job(1, quorum=1)
    job.start_all(2, 2, 2)
    _join(job, 2)
    assert list(job.etcds()) == _ports(job)


@pytest.mark.parametrize("host", ["[::1]", "localhost"])
def test_other_addresses(make_job: Callable[..., Job], host: str) -> None:
    job = make_job(3, hosts=[host])
    job.start_all(3, 3, 3)
    job.await_members(*_ports(job))
    _join(job, 3)


def test_one_of_three_says_who_is_gone(make_job: Callable[..., Job]) -> None:
    job = make_job(join_timeout=4)
    with pytest.raises(AgentError) as failed:
        job.start(1, 3).finish()
    first, second, third = (entry.name for entry in job.entries.all)
    text = str(failed.value)
    assert text.startswith("RendezvousConnectionError")
    assert f"The quorum of {job.endpoint} has no majority, 2 of 3 members." in text
    assert f"{first} (its agent runs, its member does not)" in text
    for gone in (second, third):
        assert f"{gone} (no agent runs there (connection refused))" in text
