"""torchrun with gloo workers on a quorum of its own: training goes on through losses."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from support.processes.agents import PATIENCE_S, STEPS, Agent
from support.processes.agents import Job as TorchrunJob
from support.processes.nodes import Run
from support.processes.zygote import Zygote
from support.quorum import Job
from support.waiting import eventually

pytestmark = [pytest.mark.needs_etcd, pytest.mark.timeout(400)]

# Each worker says who it is, and in which life.
LIVES = "import os; print('life', os.getpid(), flush=True)\n" + STEPS


class Training:
    """A job of torchruns; `members` looks at its quorum."""

    def __init__(self, members: Job, jobs: TorchrunJob) -> None:
        self.members, self._jobs = members, jobs
        self.stop = members.folder / "stop"
        self.script = jobs.script(LIVES)
        self.agents: list[Agent] = []

    def start(self, nodes: str, conf: str = "") -> Agent:
        conf = f",quorum_dir={self.members.data},quorum_replace_after=3{conf}"
        self.agents.append(
            self._jobs.agent(nodes, self.script, self.stop, conf=conf, max_restarts=50)
        )
        return self.agents[-1]

    def await_world(self, size: int, agents: list[Agent], times: int = 1) -> None:
        """Wait until rank 0 of these agents has said so many times that it has a world of this size."""

        def said() -> bool:
            return sum(agent.text().count(f"world {size}\n") for agent in agents) >= times

        try:
            eventually(said, PATIENCE_S)
        except AssertionError:
            pytest.fail("\n".join(agent.text()[-3000:] for agent in agents))

    def lose(self, agent: Agent) -> None:
        """Take an agent, its worker and its etcd away at once."""
        self.agents.remove(agent)
        agent.lose()

    def agent_at(self, port: int) -> Agent:
        """Return the agent whose etcd runs at a port."""
        pid = self.members.etcds()[port]
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return next(agent for agent in self.agents if agent.process.pid == parent)

    def end(self) -> None:
        """Let the training end, and see that all of it does."""
        self.stop.touch()
        for agent in self.agents:
            agent.end()
        assert not self.members.etcds()


@pytest.fixture
def make_training(
    make_job: Callable[..., Job], agent_zygote: Zygote, tmp_path: Path
) -> Iterator[Callable[..., Training]]:
    made = []

    def make(entries: int = 3, **config: Any) -> Training:
        members = make_job(entries, **config)
        run = cast(Run, SimpleNamespace(run_id=members.run_id, endpoint=members.endpoint))
        made.append(TorchrunJob(run, members.folder, agent_zygote))
        return Training(members, made[-1])

    yield make
    for job in made:
        job.end()


def _lives(agents: list[Agent]) -> list[str]:
    """The processes of all workers so far."""
    return [life for agent in agents for life in re.findall(r"life (\d+)", agent.text())]


@pytest.mark.slow(60)
@pytest.mark.parametrize("store", ["", ",worker_store=etcd"], ids=["TCPStore", "etcd"])
def test_the_leader_is_lost_and_another_after_it(
    make_training: Callable[..., Training], store: str
) -> None:
    training = make_training(4)
    for _ in range(4):
        training.start("2:4", store)
    training.await_world(4, training.agents)
    first, second, third, fourth = (entry.port for entry in training.members.entries.all)
    training.members.await_members(first, second, third)
    everyone = list(training.agents)
    leader = training.members.leader()
    training.lose(training.agent_at(leader))
    training.await_world(3, everyone)
    # Until the fourth one votes, no more may be lost.
    training.members.await_members(*{first, second, third, fourth} - {leader})
    training.lose(training.agent_at(training.members.leader()))
    training.await_world(2, everyone)
    training.start("2:4", store)
    everyone.append(training.agents[-1])
    training.await_world(3, everyone, times=2)
    training.end()


@pytest.mark.slow(40)
def test_workers_go_on_without_a_majority(
    make_training: Callable[..., Training], tmp_path: Path
) -> None:
    """Two etcds are lost at once and again and again: no worker notices it."""
    training = make_training(3, quorum_replace_after=600)
    for _ in range(3):
        training.start("3", ",quorum_replace_after=600")
    training.await_world(3, training.agents)
    ports = [entry.port for entry in training.members.entries.all]
    training.members.await_members(*ports)
    before = _lives(training.agents)
    assert len(before) == 3
    for _ in range(2):
        lost = training.members.etcds()
        for port in ports[:2]:
            os.kill(lost[port], signal.SIGKILL)
        eventually(lambda lost=lost: training.members.etcds().keys() == lost.keys()  # type: ignore[misc]
                   and training.members.etcds()[ports[0]] != lost[ports[0]], PATIENCE_S)  # fmt: skip
        training.members.await_members(*ports)
    assert _lives(training.agents) == before
    training.end()


@pytest.mark.slow(40)
@pytest.mark.parametrize("store", ["", ",worker_store=etcd"], ids=["TCPStore", "etcd"])
def test_with_a_secret(make_training: Callable[..., Training], tmp_path: Path, store: str) -> None:
    secret = "0123456789abcdef0123456789abcdef"
    path = tmp_path / "secret"
    path.write_text(secret)
    training = make_training(3, secret=secret)
    for _ in range(3):
        training.start("3", f",quorum_secret_file={path}{store}")
    training.await_world(3, training.agents)
    training.end()
