"""Nodes of a training on one machine: each is a torchrun agent with its workers."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

TRAIN = Path(__file__).parent / "train.py"
TTL_S = 4
_STARTED = time.monotonic()


class Job:
    """The nodes of one run, their output, and the time within which all must end."""

    def __init__(
        self,
        nnodes: str,
        endpoint: str,
        checkpoint: Path,
        steps: int,
        *,
        limit_s: float,
        last_call_s: int = 4,
        conf: str = "",
    ) -> None:
        self._lines: queue.Queue[tuple[Node, str]] = queue.Queue()
        self._ends = time.monotonic() + limit_s
        self.nodes: list[Node] = []
        self._command = [
            sys.executable, "-m", "torch.distributed.run",
            "--nnodes", nnodes, "--nproc-per-node", "1", "--max-restarts", "5",
            "--rdzv-id", "demo", "--rdzv-backend", "etcd-v3", "--rdzv-endpoint", endpoint,
            "--rdzv-conf",
            f"keep_alive_ttl={TTL_S},last_call_timeout={last_call_s},join_timeout=120{conf}",
            "--local-addr", "127.0.0.1",
            str(TRAIN), "--steps", str(steps), "--checkpoint", str(checkpoint),
        ]  # fmt: skip

    def start(self, name: str) -> Node:
        """Start one more node."""
        node = Node(name, self._command, self._lines)
        self.nodes.append(node)
        return node

    def wait_for(self, wanted: str) -> Node:
        """Wait until a node prints this, and return it; end the program if none does."""
        while time.monotonic() < self._ends:
            try:
                node, line = self._lines.get(timeout=1)
                if wanted in line:
                    return node
            except queue.Empty:
                if all(node.process.poll() is not None for node in self.nodes):
                    break
        sys.exit(f"'{wanted}' did not come")

    def stop(self) -> None:
        """End all nodes that still run."""
        for node in self.nodes:
            node.stop()


class Node:
    """A torchrun agent and its workers, whose lines are shown with the node's name."""

    def __init__(self, name: str, command: list[str], lines: queue.Queue[tuple[Node, str]]) -> None:
        self.name = name
        # TORCH_LOGS makes torch show the INFO lines of a package; warnings only for the rest.
        env = os.environ | {"TORCH_LOGS": "torchetcd", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self._lines = lines
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            text = line.rstrip()
            if text:
                show(f"{self.name} | {text}")
                self._lines.put((self, text))

    def lose(self) -> None:
        """Kill the whole node, agent and workers, as a power failure does."""
        for pid in [*children(self.process.pid), self.process.pid]:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Ask the agent to end, as a scheduler does."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.lose()


def children(pid: int) -> list[int]:
    """All processes below `pid` (workers have sessions of their own)."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True,
                           check=False).stdout.split()  # fmt: skip
    return [descendant for child in map(int, found) for descendant in [*children(child), child]]


def show(text: str) -> None:
    """Write a line with the time, in one piece: several threads show lines."""
    sys.stdout.write(f"{time.monotonic() - _STARTED:6.1f} s  {text}\n")
    sys.stdout.flush()
