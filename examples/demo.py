"""The main job on one machine: three torchrun agents train over etcd, a node is lost and replaced.

Each "node" is an agent with its workers. `make demo` runs this; it ends by itself within five minutes.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from torchetcd.etcd_server import EtcdServer

HERE = Path(__file__).parent
LIMIT_S = 270
TTL_S = 4


class Node:
    """A torchrun agent and its workers, whose lines are shown with the node's name."""

    def __init__(self, name: str, endpoint: str, checkpoint: Path, lines: queue.Queue[str]) -> None:
        self.name = name
        command = [
            sys.executable, "-m", "torch.distributed.run",
            "--nnodes", "2:3", "--nproc-per-node", "1", "--max-restarts", "5",
            "--rdzv-id", "demo", "--rdzv-backend", "etcd-v3", "--rdzv-endpoint", endpoint,
            "--rdzv-conf", f"keep_alive_ttl={TTL_S},last_call_timeout=4,join_timeout=120",
            "--local-addr", "127.0.0.1",
            str(HERE / "train.py"), "--steps", "200", "--checkpoint", str(checkpoint),
        ]  # fmt: skip
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
                self._lines.put(text)

    def lose(self) -> None:
        """Take the whole node away, as a power failure does: the agent and its workers."""
        for pid in [*children(self.process.pid), self.process.pid]:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
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
    # One write: several threads show lines.
    sys.stdout.write(f"{time.monotonic() - STARTED:6.1f} s  {text}\n")
    sys.stdout.flush()


def wait_for(lines: queue.Queue[str], wanted: str, nodes: list[Node]) -> None:
    while time.monotonic() < STARTED + LIMIT_S:
        try:
            if wanted in lines.get(timeout=1):
                return
        except queue.Empty:
            if all(node.process.poll() is not None for node in nodes):
                break
    sys.exit(f"'{wanted}' did not come")


def main() -> int:
    lines: queue.Queue[str] = queue.Queue()
    nodes: list[Node] = []
    with tempfile.TemporaryDirectory() as folder, EtcdServer() as server:
        checkpoint = Path(folder) / "checkpoint.pt"
        show(f"etcd {server.get_client().version} at {server.get_endpoint()}")
        try:
            for name in ("node-a", "node-b", "node-c"):
                show(f"=== starting {name}")
                nodes.append(Node(name, server.get_endpoint(), checkpoint, lines))
            wait_for(lines, "world 3", nodes)
            show("=== losing node-c: SIGKILL to its agent and its worker")
            nodes[2].lose()
            wait_for(lines, "world 2", nodes)
            show("=== the world has re-formed with two nodes; starting node-d as the replacement")
            nodes.append(Node("node-d", server.get_endpoint(), checkpoint, lines))
            wait_for(lines, "world 3", nodes)
            show("=== the world has three nodes again")
            wait_for(lines, "done: ", nodes)
            codes = {node.name: node.process.wait(60) for node in nodes if node is not nodes[2]}
        finally:
            for node in nodes:
                node.stop()
    show(f"=== the end: exit codes {codes}")
    return max(codes.values())


if __name__ == "__main__":
    STARTED = time.monotonic()
    sys.exit(main())
