"""The etcds of `quorum.py`: an external cluster, and those that agents of a job run."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchetcd._etcd_process import find_binary

#: Below the ports that Linux takes for outgoing connections.
_PORTS = range(15000, 32000)


def _free_ports(count: int) -> list[int]:
    """Ports with a free one after each."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(_PORTS)
        if {port - 1, port, port + 1} & set(found):
            continue
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 1))
            found.append(port)
    return found


class Entries:
    """The entries of a job on this machine, and the etcds at them."""

    def __init__(self, ports: list[int], folder: Path) -> None:
        self._folder = folder
        self.endpoint = "job://" + ",".join(f"127.0.0.1:{port}" for port in ports)

    def etcds(self) -> dict[int, int]:
        """The processes, by the ports of their entries."""
        found = {}
        for path in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_text(errors="replace").split("\0")
                name = next((word for word in words if word.startswith("--name=")), "")
                if name and any(f"--data-dir={self._folder}/" in word for word in words):
                    found[int(name.rpartition(":")[2])] = int(path.name)
        return found

    def owner(self, port: int) -> int:
        """The agent whose etcd is at a port."""
        return _parent(self.etcds().get(port, 0))

    def of(self, agent: int) -> int:
        """The port of the entry whose etcd an agent runs; 0 without one."""
        return next((port for port, pid in self.etcds().items() if _parent(pid) == agent), 0)

    def folder_of(self, port: int) -> Path:
        """Where the member of an entry has its data."""
        return next(iter(self._folder.glob(f"torchetcd-quorum-*/torchetcd-*-{port}")))

    def serving(self) -> list[int]:
        """The ports whose member knows a leader, and is no learner."""
        return [port for port in self.etcds() if _metric(port, "etcd_server_has_leader") and
                not _metric(port, "etcd_server_is_learner")]  # fmt: skip

    def leader(self) -> int:
        """The port of the leader's entry; 0 without one."""
        ports = self.etcds()
        return next((port for port in ports if _metric(port, "etcd_server_is_leader")), 0)

    def kill_all(self) -> None:
        """End those whose agents were killed just now."""
        for pid in self.etcds().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while self.etcds() and time.monotonic() < deadline:
            time.sleep(0.05)


def free_entries(count: int, folder: Path) -> Entries:
    """Choose ports for a job whose members have their data in a folder."""
    return Entries(_free_ports(count), folder)


@contextmanager
def external(folder: Path) -> Iterator[str]:
    """Run a cluster of three members; yield its endpoint."""
    ports = _free_ports(3)
    cluster = ",".join(f"m{port}=http://127.0.0.1:{port + 1}" for port in ports)
    folder.mkdir()
    processes = []
    try:
        for port in ports:
            command = [
                find_binary(), f"--name=m{port}", f"--data-dir={folder / str(port)}",
                f"--listen-client-urls=http://127.0.0.1:{port}",
                f"--advertise-client-urls=http://127.0.0.1:{port}",
                f"--listen-peer-urls=http://127.0.0.1:{port + 1}",
                f"--initial-advertise-peer-urls=http://127.0.0.1:{port + 1}",
                f"--initial-cluster={cluster}", "--log-level=error", "--logger=zap",
            ]  # fmt: skip
            processes.append(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
        deadline = time.monotonic() + 60
        while not all(_metric(port, "etcd_server_has_leader") for port in ports):
            if time.monotonic() > deadline:
                raise TimeoutError("the external etcd has no leader")
            time.sleep(0.1)
        yield ",".join(f"127.0.0.1:{port}" for port in ports)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _metric(port: int, name: str) -> bool:
    with (
        contextlib.suppress(OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=3) as answer,
    ):
        for line in answer.read().decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1]) > 0
    return False


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
