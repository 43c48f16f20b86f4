"""How the quorum ends: with its job, which leaves nothing; and with its agents, who leave their data."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from support.quorum import PATIENCE_S, Agent, Job
from support.waiting import eventually

pytestmark = [pytest.mark.needs_etcd, pytest.mark.timeout(240)]


def _formed(job: Job, agents: int = 3) -> list[Agent]:
    made = job.start_all(agents, agents, agents)
    job.await_members(*(entry.port for entry in job.entries.first))
    _join(made)
    return made


def _join(agents: list[Agent]) -> None:
    for agent in agents:
        agent.start("join")
    for agent in agents:
        agent.finish()


def _children(job: Job) -> list[str]:
    """The processes that agents have started."""
    found = []
    for agent in job.agents:
        with contextlib.suppress(OSError):
            found += Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    return found


def test_a_job_that_ends_leaves_nothing(make_job: Callable[..., Job]) -> None:
    job = make_job(4)
    agents = _formed(job, 4)
    for agent in agents:
        agent.start("shutdown")
    assert [agent.finish() for agent in agents] == [True] * 4
    assert not job.etcds()
    assert not _children(job)
    assert [agent.end() for agent in agents] == [0] * 4
    assert list(job.data.iterdir()) == []


def test_members_serve_until_the_last_agent_has_ended(make_job: Callable[..., Job]) -> None:
    """Agents whose job has ended wait for those whose workers still have something to do."""
    job = make_job(3)
    *early, last = _formed(job)
    for agent in early:
        agent.start("shutdown")
    pause = threading.Event()
    for number in range(30):
        last.call("set", f"key {number}", "value")
        pause.wait(0.1)
    assert set(job.etcds()) == {entry.port for entry in job.entries.all}
    assert last.call("shutdown") is True
    assert [agent.finish() for agent in early] == [True] * 2
    assert [agent.end() for agent in job.agents] == [0] * 3
    assert not job.folders


def test_the_last_agent_is_lost_while_others_wait_for_it(make_job: Callable[..., Job]) -> None:
    """They wait until its lease has run out, and no longer."""
    job = make_job(3)
    *early, last = _formed(job)
    for agent in early:
        agent.start("shutdown")
    eventually(lambda: all("ending" in _said(job, agent) for agent in early), PATIENCE_S)
    job.lose(last)
    assert [agent.finish(30) for agent in early] == [True] * 2
    assert [agent.end() for agent in early] == [0] * 2
    assert not job.etcds()


def _said(job: Job, agent: Agent) -> str:
    """What an agent has written about its member."""
    with job.client() as client:
        _, _, replies = client._native.txn(
            [],
            [("get", b"/torchetcd/quorum/members/", b"/torchetcd/quorum/members0", 0, False, 0)],
            [],
        )
    values = [value.decode() for _, value, *_ in replies[0][0]]
    return next(
        ("ending" for v in values if f'"pid": {agent.pid}' in v and '"ending": true' in v), ""
    )


def test_a_signal_ends_all_agents_and_the_job_is_resumed(make_job: Callable[..., Job]) -> None:
    """The data stays, so that the next agents of the run find the cluster as it was."""
    job = make_job(3)
    agents = _formed(job)
    ids = job.ids()
    for agent in agents:
        agent.signal(signal.SIGTERM)
    for agent in agents:
        # As torch's handler says it, which raises an exception.
        assert agent.await_end() == 1
        assert "SignalException" in agent.text()
    assert not job.etcds()
    assert len(job.folders) == 3
    again = _formed(job)
    assert job.ids() == ids
    for agent in again:
        # The second one: etcd knows of the first.
        assert "has joined round 2" in agent.text()
        agent.start("shutdown")
    for agent in again:
        agent.finish()
    assert not job.folders


def test_all_agents_are_killed_and_the_job_is_resumed(make_job: Callable[..., Job]) -> None:
    job = make_job(3)
    agents = _formed(job)
    ids = job.ids()
    for agent in agents:
        job.lose(agent)
    _formed(job)
    assert job.ids() == ids


def test_the_user_interrupts(make_job: Callable[..., Job]) -> None:
    """Ctrl-C reaches the agents alone, and their etcds end with them."""
    job = make_job(3)
    agents = _formed(job)
    for agent in agents:
        os.killpg(agent.pid, signal.SIGINT)
    for agent in agents:
        agent.await_end()
    eventually(lambda: not job.etcds(), PATIENCE_S)
    assert len(job.folders) == 3
