"""Agents and members that are lost: the rest goes on, and an agent that has no member takes the place."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable

import pytest

from support.quorum import PATIENCE_S, Agent, AgentError, Job
from support.waiting import eventually

pytestmark = pytest.mark.timeout(400)
#: Nobody takes a place in a test that has this.
NEVER = 600


def _ports(job: Job) -> list[int]:
    return [entry.port for entry in job.entries.all]


def _formed(job: Job, agents: int = 3, least: int = 1) -> list[Agent]:
    """A world of all agents, in a quorum of the first entries."""
    made = job.start_all(agents, least, agents)
    job.await_members(*_ports(job)[: job.size])
    _join(made)
    return made


def _join(agents: list[Agent]) -> None:
    for agent in agents:
        agent.start("join")
    worlds = sorted(agent.finish() for agent in agents)
    assert worlds == [[rank, len(agents)] for rank in range(len(agents))]


def _await_other(job: Job, than: set[int]) -> set[int]:
    """Wait until a member serves that is none of these, and return it."""
    eventually(lambda: job.serving() - than, PATIENCE_S)
    return job.serving() - than


def _goes_on(agents: list[Agent]) -> None:
    """A store of the old world serves, and a new world forms."""
    agents[0].call("set", "key", "value")
    assert agents[-1].call("get", "key") == "value"
    _join(agents)


def test_an_etcd_ends_with_its_agent(make_job: Callable[..., Job]) -> None:
    job = make_job(quorum_replace_after=NEVER)
    agents = _formed(job)
    leader = job.leader()
    lost = job.agent_at(leader)
    lost.kill()
    begun = time.monotonic()
    eventually(lambda: leader not in job.etcds(), PATIENCE_S)
    # As soon as it is told to; 5 s if it does not listen.
    assert time.monotonic() - begun < 10
    _goes_on([agent for agent in agents if agent is not lost])


@pytest.mark.slow(20)
def test_one_loss_after_another(make_job: Callable[..., Job]) -> None:
    """Each time the leader's; the agent without a member takes the place, and a new agent comes."""
    job = make_job(5)
    _formed(job, 4)
    for _ in range(3):
        leader = job.leader()
        job.lose(job.agent_at(leader))
        left = set(job.members()) - {leader}
        (taken,) = _await_other(job, left)
        job.await_members(*left, taken)
        running = [agent for agent in job.agents if not agent.ended]
        assert len(running) == 3
        running.append(job.start(1, 9))
        running[-1].finish()
        _join(running)


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_back_before_the_replacement(make_job: Callable[..., Job], who: str) -> None:
    """It resumes with its data, as the same member."""
    job = make_job(4, quorum_replace_after=NEVER)
    agents = _formed(job, 4)
    ports, ids = _ports(job)[:3], job.ids()
    leader = job.leader()
    lost = leader if who == "leader" else next(port for port in ports if port != leader)
    lost_agent = job.agent_at(lost)
    job.lose(lost_agent)
    others = [agent for agent in agents if agent is not lost_agent]
    _goes_on(others)
    back = job.start(1, 4)
    back.finish()
    job.await_members(*ports)
    assert job.ids() == ids
    assert job.port_of(back) == lost
    _join([*others, back])


def test_back_after_the_replacement(make_job: Callable[..., Job]) -> None:
    """Its member was removed, so it joins anew when there is a place."""
    job = make_job(4)
    _formed(job, 4)
    first, second, third, fourth = _ports(job)
    ids = job.ids()
    job.lose(job.agent_at(first))
    job.await_members(second, third, fourth)
    back = job.start(1, 4)
    back.finish()
    back.await_text("was replaced while it was away")
    assert first not in job.etcds()
    assert not (job.folder_of(first) / "data").exists()
    job.lose(job.agent_at(second))
    job.await_members(first, third, fourth)
    assert job.ids()[first] != ids[first]


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_back_without_its_data(make_job: Callable[..., Job], who: str) -> None:
    """It never votes under an identity whose data is lost: it is removed first, and joins anew."""
    job = make_job(3, quorum_replace_after=NEVER)
    _formed(job)
    leader, ids = job.leader(), job.ids()
    lost = leader if who == "leader" else next(port for port in _ports(job) if port != leader)
    job.lose(job.agent_at(lost))
    shutil.rmtree(job.folder_of(lost))
    eventually(lambda: job.serving() == set(_ports(job)) - {lost}, PATIENCE_S)
    back = job.start(1, 3)
    back.finish()
    job.await_members(*_ports(job))
    now = job.ids()
    assert now.pop(lost) != ids.pop(lost)
    assert now == ids


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_an_etcd_is_killed(make_job: Callable[..., Job], who: str) -> None:
    """Its agent starts it again, with its data."""
    job = make_job(4, quorum_replace_after=30)
    agents = _formed(job, 4)
    leader, ids = job.leader(), job.ids()
    lost = leader if who == "leader" else next(port for port in _ports(job) if port != leader)
    pid = job.etcds()[lost]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: job.etcds().get(lost, pid) != pid, PATIENCE_S)
    job.await_members(*_ports(job)[:3])
    assert job.ids() == ids
    _goes_on(agents)


@pytest.mark.slow(30)
def test_an_etcd_that_hangs_is_started_again(make_job: Callable[..., Job]) -> None:
    job = make_job(3, quorum_replace_after=NEVER)
    agents = _formed(job)
    ids, leader = job.ids(), job.leader()
    pid = job.etcds()[leader]
    os.kill(pid, signal.SIGSTOP)
    _goes_on(agents)
    job.agent_at(leader).await_text("hangs, and is started again")
    eventually(lambda: job.etcds().get(leader, pid) != pid, PATIENCE_S)
    job.await_members(*_ports(job))
    assert job.ids() == ids


@pytest.mark.slow(30)
def test_a_host_that_stands_still_is_replaced(make_job: Callable[..., Job]) -> None:
    """When it goes on, its agent sees that its member was removed, and is a candidate like any other."""
    job = make_job(4)
    _formed(job, 4)
    first, second, third, fourth = _ports(job)
    agent = job.agent_at(first)
    for pid in (agent.pid, job.etcds()[first]):
        os.kill(pid, signal.SIGSTOP)
    job.await_members(second, third, fourth)
    for pid in (job.etcds()[first], agent.pid):
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: first not in job.etcds(), PATIENCE_S)
    job.lose(job.agent_at(second))
    job.await_members(first, third, fourth)
    _join([agent for agent in job.agents if not agent.ended])


@pytest.mark.slow(20)
def test_a_majority_is_lost_and_comes_back(make_job: Callable[..., Job]) -> None:
    """What is new waits, and says for whom. With the data all is as it was."""
    job = make_job(3, join_timeout=10, quorum_replace_after=NEVER)
    _formed(job)
    first, second, third = _ports(job)
    ids = job.ids()
    stays = job.agent_at(third)
    for port in (first, second):
        job.lose(job.agent_at(port))
    with pytest.raises(AgentError, match="no majority, 2 of 3 members") as failed:
        stays.call("join")
    for port in (first, second):
        assert f"127.0.0.1:{port} (no agent runs there (connection refused))" in str(failed.value)
    assert f"127.0.0.1:{third} (" not in str(failed.value)
    back = [job.start(1, 3) for _ in range(2)]
    for agent in back:
        agent.finish()
    job.await_members(first, second, third)
    assert job.ids() == ids
    _join([stays, *back])


@pytest.mark.slow(20)
def test_a_majority_is_lost_with_its_data(make_job: Callable[..., Job]) -> None:
    """There is never a second quorum beside what is left of the first one."""
    job = make_job(3)
    _formed(job)
    first, second, third = _ports(job)
    stays = job.agent_at(third)
    for port in (first, second):
        job.lose(job.agent_at(port))
    for port in (first, second):
        shutil.rmtree(job.folder_of(port))
    back = [job.start(1, 3, join_timeout=6) for _ in range(2)]
    for agent in back:
        with pytest.raises(AgentError, match="no majority, 2 of 3 members") as failed:
            agent.finish()
        assert f"127.0.0.1:{first} (" in str(failed.value)
        assert f"127.0.0.1:{second} (" in str(failed.value)
    assert set(job.etcds()) == {third}
    assert not stays.ended
