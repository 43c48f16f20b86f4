"""`torchrun` agents as processes, on the backend as it is installed: nothing imports it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes.nodes import TTL, Run
from support.processes.zygote import Forked, Zygote
from support.waiting import eventually

_TORCHRUN = "import sys, torch.distributed.run; sys.exit(torch.distributed.run.main(sys.argv[1:]))"
# For the start of interpreters with torch, on a busy machine.
PATIENCE_S = 120

# All ranks add 1 in each step until a file tells rank 0 to end it.
STEPS = """
import os, sys, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
stop, first = sys.argv[1], True
while True:
    told = torch.tensor([1, 1 if rank == 0 and os.path.exists(stop) else 0])
    dist.all_reduce(told)
    assert told[0] == world
    if rank == 0 and first:
        print("world", world, flush=True)
    first = False
    if told[1]:
        break
    time.sleep(0.05)
dist.destroy_process_group()
"""


class Agent:
    """A `torchrun` with one worker, and what both write."""

    def __init__(self, log: Path, command: list[str], zygote: Zygote | None) -> None:
        self._log = log
        env = {"TORCH_LOGS": "torchetcd"} | os.environ | {"OMP_NUM_THREADS": "1"}
        env.pop("TORCHETCD_OVERRIDE", None)
        self.process: Forked | subprocess.Popen[bytes]
        with log.open("wb") as output:
            if zygote is not None:
                self.process = Forked(zygote, _TORCHRUN, command, env, output.fileno())
                return
            self.process = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
            )

    def text(self) -> str:
        """All that was written."""
        return self._log.read_text(errors="replace")

    def await_text(self, wanted: str, times: int = 1) -> None:
        """Wait until it wrote something so many times."""
        try:
            eventually(lambda: self.text().count(wanted) >= times, PATIENCE_S)
        except AssertionError:
            pytest.fail(f"{times} x {wanted!r} is not in:\n{self.text()}")

    def lose(self) -> None:
        """Take the agent and its workers away, as a power failure does."""
        # Stopped first, so that it starts no worker meanwhile.
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)
            for pid in _children(self.process.pid):
                os.kill(pid, signal.SIGKILL)
            self.process.kill()
        self.process.wait()

    def end(self, code: int = 0) -> str:
        """Wait for an end with this exit code, and return all that was written."""
        assert self.process.wait(PATIENCE_S) == code, self.text()
        return self.text()


class Job:
    """The agents of one run: forked from a zygote, or without one started as a shell does it."""

    def __init__(self, run: Run, folder: Path, zygote: Zygote | None = None) -> None:
        self.run = run
        self._zygote = zygote
        self._folder = folder
        self._agents: list[Agent] = []

    def agent(
        self,
        nodes: str,
        script: Path,
        *args: object,
        backend: str = "etcd-v3",
        conf: str = "",
        max_restarts: int = 5,
    ) -> Agent:
        conf = f"keep_alive_ttl={TTL},last_call_timeout=1,join_timeout={PATIENCE_S}{conf}"
        command = ["--nnodes", nodes, "--nproc-per-node", "1", "--max-restarts", str(max_restarts)]
        command += ["--rdzv-id", self.run.run_id, "--rdzv-backend", backend]
        command += ["--rdzv-endpoint", self.run.endpoint, "--rdzv-conf", conf]
        command += ["--local-addr", "127.0.0.1", str(script), *map(str, args)]
        agent = Agent(self._folder / f"agent{len(self._agents)}.log", command, self._zygote)
        self._agents.append(agent)
        return agent

    def script(self, source: str) -> Path:
        path = self._folder / "worker.py"
        path.write_text(source)
        return path

    def end(self) -> None:
        for agent in self._agents:
            agent.lose()


def _children(pid: int) -> list[int]:
    """All processes below this one; workers have sessions of their own."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    found = [int(child) for child in listed.stdout.split()]
    return [*found, *(below for child in found for below in _children(child))]
