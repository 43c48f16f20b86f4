"""Real `torchrun` agents with gloo workers, on the backend as it is installed: nothing imports it."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

from support import ROOT
from support.processes.agents import PATIENCE_S, STEPS, Job
from support.waiting import eventually

TRAIN = ROOT / "examples" / "train.py"
pytestmark = pytest.mark.timeout(400)

# Rank 0 fails in its first life.
FAILS_ONCE = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
one = torch.ones(1)
dist.all_reduce(one)
rank, marker = dist.get_rank(), sys.argv[1]
if rank == 0 and not os.path.exists(marker):
    open(marker, "w").close()
    sys.exit(7)
dist.all_reduce(one)
if rank == 0:
    print("world", dist.get_world_size(), "sum", int(one), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow(20)
@pytest.mark.parametrize("backends", [("etcd-v3", "etcd-v3"), ("etcd-v3", "etcd", "etcd-v2")])
def test_training(job: Job, tmp_path: Path, backends: tuple[str, ...]) -> None:
    """All names of the backend are one rendezvous, so their agents meet."""
    args = ("--steps", 10, "--step-s", 0, "--checkpoint", tmp_path / "checkpoint.pt")
    nodes = len(backends)
    agents = [job.agent(str(nodes), TRAIN, *args, backend=backend) for backend in backends]
    texts = [agent.end() for agent in agents]
    assert sum("done: 10 steps" in text for text in texts) == 1
    assert sum(f"world of {nodes}: training from step 0" in text for text in texts) == 1
    # No other rendezvous did it.
    assert all("torchetcd" in text for text in texts)
    assert job.run.control()["state"] == "closed"


@pytest.mark.slow(20)
def test_a_worker_fails_once(job: Job, tmp_path: Path) -> None:
    script = job.script(FAILS_ONCE)
    agents = [job.agent("2", script, tmp_path / "marker") for _ in range(2)]
    texts = [agent.end() for agent in agents]
    assert sum("world 2 sum 4" in text for text in texts) == 1
    assert job.run.control()["round"] >= 2


@pytest.mark.slow(30)
def test_an_agent_is_killed_and_replaced(job: Job, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    # Enough steps that the end does not come before the loss, however slow this test is.
    args = ("--steps", 80, "--step-s", 0.05, "--checkpoint", checkpoint)
    agents = [job.agent("2", TRAIN, *args) for _ in range(2)]
    eventually(checkpoint.exists, PATIENCE_S)
    lost, left = agents
    lost.lose()
    texts = [agent.end() for agent in (left, job.agent("2", TRAIN, *args))]
    assert sum("done: 80 steps" in text for text in texts) == 1
    resumed = re.search(r"world of 2: training from step ([1-9]\d*)", "".join(texts))
    assert resumed, texts


@pytest.mark.slow(40)
def test_one_two_one_three_nodes(job: Job, tmp_path: Path) -> None:
    script, stop = job.script(STEPS), tmp_path / "stop"
    first = job.agent("1:3", script, stop)
    first.await_text("world 1\n")
    second = job.agent("1:3", script, stop)
    first.await_text("world 2\n")
    second.lose()
    first.await_text("world 1\n", times=2)
    more = [job.agent("1:3", script, stop) for _ in range(2)]
    first.await_text("world 3\n")
    stop.touch()
    for agent in [first, *more]:
        agent.end()


@pytest.mark.slow(10)
def test_a_store_before_the_group(job: Job) -> None:
    """As the page for migrations has it, for programs that use the store before they make a group."""
    page = (ROOT / "docs" / "how-to" / "migrate.md").read_text()
    begins = page.split("### A store before the group", 1)[1].split("```python\n", 1)[1]
    script = job.script(
        begins.split("```")[0]
        + """
assert store.get(f"from {1 - dist.get_rank()}") == b"hello"
dist.barrier()
print("met", flush=True)
dist.destroy_process_group()
"""
    )
    agents = [job.agent("2", script, max_restarts=0) for _ in range(2)]
    for agent in agents:
        assert "met" in agent.end()


@pytest.mark.slow(30)
@pytest.mark.skipif(
    "rdzv_handler.shutdown" in inspect.getsource(LocalElasticAgent._shutdown),
    reason="the agent of this torch closes the run itself when a signal ends it",
)
def test_scale_down(job: Job, tmp_path: Path) -> None:
    script, stop = job.script(STEPS), tmp_path / "stop"
    agents = [job.agent("1:3", script, stop) for _ in range(3)]
    eventually(lambda: any("world 3\n" in agent.text() for agent in agents), PATIENCE_S)
    # In order: an agent that is told to end leaves at once.
    leaving = agents.pop()
    leaving.process.terminate()
    eventually(lambda: any("world 2\n" in agent.text() for agent in agents), PATIENCE_S)
    stop.touch()
    for agent in agents:
        agent.end()
    assert leaving.process.wait(PATIENCE_S) != 0
    assert "got signal" in leaving.text()


@pytest.mark.slow(20)
def test_an_agent_is_killed_and_its_worker_lives_on(job: Job, tmp_path: Path) -> None:
    """The worker, which has the port of its world still, ends when its peers have left that world."""
    script = job.script("import os; print('pid', os.getpid(), flush=True)\n" + STEPS)
    stop = tmp_path / "stop"
    agents = [job.agent("1:3", script, stop) for _ in range(2)]
    eventually(lambda: any("world 2\n" in agent.text() for agent in agents), PATIENCE_S)
    first = next(agent for agent in agents if "world 2\n" in agent.text())
    (other,) = (agent for agent in agents if agent is not first)
    orphan = int(re.findall(r"pid (\d+)", first.text())[-1])
    try:
        # That of rank 0.
        first.process.kill()
        other.await_text("world 1\n")
        job.agent("1:3", script, stop)
        other.await_text("world 2\n")
        eventually(lambda: not _is_there(orphan), PATIENCE_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGKILL)
    stop.touch()
    other.end()


def _is_there(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    # Who is to reap it is no business of this test.
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_signal_ends_an_agent_in_the_barrier(job: Job, tmp_path: Path) -> None:
    # Nothing waits for that lease.
    agent = job.agent("2", job.script(STEPS), tmp_path / "stop", conf=",keep_alive_ttl=60")
    job.run.await_joined(1, timeout=PATIENCE_S)
    agent.process.terminate()
    eventually(lambda: not job.run.keys("/rdzv/round/1/join"), 15)
    # torch's agent has no handler of its own in its first barrier.
    assert agent.process.wait(PATIENCE_S) == -signal.SIGTERM
    assert job.run.control()["state"] == "open"
