"""`examples/slurm/train.sbatch` on a real Slurm: `make test-slurm`.

The nodes are daemons on this machine (`support/slurm.py`). Each test waits for what the job writes, and asks
Slurm how it ended.
"""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ROOT
from support.network.ports import entry_ports
from support.slurm import Job, Slurm
from torchetcd.etcd import Client
from torchetcd.etcd_server import EtcdServer

SCRIPT = ROOT / "examples" / "slurm" / "train.sbatch"
TRAIN = ROOT / "examples" / "train.py"

# Endless the first time. The second time it goes on from its checkpoint, which is beyond the last step.
TWICE = """
import os, runpy, sys
sys.argv += ["--steps", "20" if "SLURM_RESTART_COUNT" in os.environ else "1000000"]
runpy.run_path({train!r}, run_name="__main__")
"""

pytestmark = [pytest.mark.needs_etcd, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with Slurm(nodes=5) as made:
        yield made


class Submit:
    """Submits the example with what a test needs, and ends it when the test is over."""

    def __init__(self, slurm: Slurm, endpoint: str, folder: Path) -> None:
        self._slurm, self._endpoint, self._folder = slurm, endpoint, folder
        self.jobs: list[Job] = []

    def train(self, *options: str, steps: int = 300, **env: str) -> Job:
        """`examples/train.py` for so many steps of 0.1 s and more: what a test does comes before the end."""
        return self(*options, "--", str(TRAIN), "--steps", str(steps), *self._checkpoint, **env)

    def train_until_queued_again(self, *options: str, **env: str) -> Job:
        """The same, but it ends only when the job runs for the second time."""
        program = self._folder / "train_twice.py"
        program.write_text(TWICE.format(train=str(TRAIN)))
        return self(*options, "--", str(program), *self._checkpoint, **env)

    @property
    def _checkpoint(self) -> list[str]:
        return ["--checkpoint", str(self._folder / "checkpoint.pt")]

    def __call__(self, *arguments: str, **env: str) -> Job:
        env = {"ETCD": self._endpoint, "LAST_CALL_S": "3"} | env
        output = self._folder / "job.out"
        job = self._slurm.submit(SCRIPT, output, "--cpus-per-task=2", *arguments, **env)
        self.jobs.append(job)
        return job


@pytest.fixture
def submit(slurm: Slurm, etcd_server: EtcdServer, tmp_path: Path) -> Iterator[Submit]:
    made = Submit(slurm, etcd_server.get_endpoint(), tmp_path)
    yield made
    for job in made.jobs:
        slurm.ask("scancel", job.number, check=False)
        job.await_end()
        slurm.sacct(job)
    slurm.bring_back()


def _worlds(job: Job) -> list[int]:
    return [int(size) for size in re.findall(r"world of (\d): training", job.text())]


def _first_steps(job: Job) -> list[int]:
    return [int(step) for step in re.findall(r"training from step (\d+)", job.text())]


def test_a_clean_end(slurm: Slurm, submit: Submit) -> None:
    job = submit.train("--nodes=4", "--exclusive", steps=50)
    job.await_text("training from")
    step = slurm.ask("scontrol", "show", "step", f"{job.number}.0")
    # Two for each task, as --cpus-per-task says, and not all of the node.
    assert "CPUs=8 Tasks=4" in step
    ended = job.await_end()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "0")
    assert _worlds(job) == [4]
    assert slurm.sacct(job)[-1] == "COMPLETED"


def test_an_agent_is_killed(slurm: Slurm, submit: Submit) -> None:
    """srun says 137; the training has succeeded."""
    job = submit.train("--nodes=4")
    job.await_text("training from")
    os.kill(slurm.agent_on("n3"), signal.SIGKILL)
    ended = job.await_end()
    assert "The training has succeeded; an agent ended with exit code 137" in job.text()
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0")
    assert _worlds(job) == [4, 3]
    assert slurm.sacct(job)[-1] == "COMPLETED"


def test_an_etcd_inside_the_job(slurm: Slurm, submit: Submit, tmp_path: Path) -> None:
    """No etcd runs beside the job: the agent of the leader is killed, and the job is queued again."""
    entries = ",".join(f"127.0.0.1:{port}" for port in entry_ports(4))
    # The nodes are one host here, and agents of both starts find the same folder.
    env = {"ETCD": f"job://{entries}", "TMPDIR": str(tmp_path), "LAST_CALL_S": "15"}
    job = submit.train_until_queued_again("--nodes=4", **env)
    job.await_text("step   20")
    members = _members_by_agent(entries)
    assert len(members) == 3
    (leader,) = (pid for pid, at in members.items() if _leads(at))
    os.kill(leader, signal.SIGKILL)
    job.await_text("training from", times=2)
    assert _worlds(job) == [4, 3]
    slurm.ask("scontrol", "requeue", job.number)
    ended = job.await_end()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1")
    assert _worlds(job) == [4, 3, 4]
    first = _first_steps(job)
    assert first[0] == 0
    assert 20 <= first[1] <= first[2]


def _members_by_agent(entries: str) -> dict[int, str]:
    """Where the member of each agent is, by the agent's process id."""
    with Client(entries, read_timeout=10) as client:
        said = [json.loads(key.value) for key in client.read("/torchetcd/quorum/members").leaves]
    return {each["pid"]: each["entry"] for each in said}


def _leads(at: str) -> bool:
    with urllib.request.urlopen(f"http://{at}/metrics", timeout=10) as page:
        return b"\netcd_server_is_leader 1\n" in page.read()


def test_a_node_fails(slurm: Slurm, submit: Submit) -> None:
    job = submit.train("--nodes=4")
    job.await_text("training from")
    slurm.lose_node("n4")
    ended = job.await_end()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "0")
    assert _worlds(job) == [4, 3]
    assert slurm.sacct(job)[-1] == "COMPLETED"


def test_the_first_node_fails(slurm: Slurm, submit: Submit) -> None:
    """The script is gone with it. The others finish; the job, queued again, finds nothing to do."""
    job = submit.train("--nodes=4")
    job.await_text("training from")
    slurm.lose_node(job.fields()["BatchHost"])
    ended = job.await_end()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert _first_steps(job)[-1] == 300
    assert "done: 300 steps" in job.text()


def test_requeued_by_hand(slurm: Slurm, submit: Submit) -> None:
    job = submit.train_until_queued_again("--nodes=4")
    job.await_text("step   20")
    slurm.ask("scontrol", "requeue", job.number)
    ended = job.await_end()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert _worlds(job) == [4, 4]
    assert _first_steps(job)[0] == 0
    assert _first_steps(job)[1] >= 20


def test_the_time_is_up(slurm: Slurm, submit: Submit) -> None:
    """Signalled before its limit, the script queues the job again, which goes on from the checkpoint."""
    job = submit.train_until_queued_again("--nodes=4", "--signal=B:USR1@30")
    job.await_text("step   20")
    # The shortest limit. Slurm looks each 30 s whether the signal is due.
    slurm.ask("scontrol", "update", f"jobid={job.number}", "timelimit=1")
    job.await_text("The time is nearly up: the job is queued again")
    slurm.ask("scontrol", "update", f"jobid={job.number}", "timelimit=60")
    ended = job.await_end()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert _first_steps(job)[-1] >= 20


def test_the_time_is_up_for_a_job_that_may_not_be_queued_again(
    slurm: Slurm, submit: Submit
) -> None:
    """It trains for as long as it may."""
    job = submit.train("--nodes=2", "--no-requeue")
    job.await_text("training from")
    # What Slurm sends for --signal=B:USR1.
    slurm.ask("scancel", "--batch", "--signal=USR1", job.number)
    ended = job.await_end()
    assert "The time is nearly up" in job.text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "0")
    assert _worlds(job) == [2]


def test_a_spare_node(slurm: Slurm, etcd_server: EtcdServer, submit: Submit) -> None:
    """Five nodes for a world of four: the fifth takes the place of one that is lost."""
    job = submit.train("--nodes=5", MIN_NODES="4", MAX_NODES="4")
    job.await_text("training from")
    run_id = f"slurm-{job.number}-0"
    endpoint = etcd_server.get_endpoint()
    shown = json.loads(slurm.ask("torchetcd", "show", run_id, "--endpoint", endpoint, "--json"))
    members = shown["run"]["members"]
    assert len(members) == 4
    os.kill(members[-1]["pid"], signal.SIGKILL)
    ended = job.await_end()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "0")
    assert _worlds(job) == [4, 4]


def test_a_script_that_fails(slurm: Slurm, submit: Submit, tmp_path: Path) -> None:
    """It is queued again as often as was said, and no more."""
    script = tmp_path / "fails.py"
    script.write_text("import sys\nsys.exit('no data')\n")
    job = submit("--nodes=2", "--", str(script), MAX_RESTARTS="0", MAX_REQUEUES="1")
    ended = job.await_end()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "1:0", "1")
    assert job.text().count("The training has failed (exit code 1): the job is queued again") == 1
    assert slurm.sacct(job)[-1] == "FAILED"
