"""The members of an etcd cluster as processes that can be killed, stopped and started again.

`EtcdServer` chooses its own ports and forgets its data; a member that comes back has to keep both.
"""

from __future__ import annotations

import base64
import ctypes
import functools
import json
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from conftest import eventually
from etcd_cluster import metric_text, read_metrics
from torchetcd._etcd_process import _can_skip_fsync
from torchetcd.etcd_server import find_binary

# Below the range from which Linux takes the ports of outgoing connections: nobody takes the port of a
# member while it is down.
_PORTS = range(15000, 32000)
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def take_port() -> socket.socket:
    """Return a bound socket on a free port that outgoing connections do not use."""
    while True:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", random.choice(_PORTS)))
            sock.listen(64)
        except OSError:
            sock.close()
        else:
            return sock


def _end_with_parent() -> None:
    """Let etcd end with the process of the tests, however that ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@functools.cache
def forgets() -> bool:
    """Whether this etcd may lose what it has applied when it is killed under load.

    3.5.0 to 3.5.2 do (etcd issue 13766): the member comes back with another history than the others.
    """
    told = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=True)
    version = told.stdout.split("etcd Version:")[1].split()[0]
    return version in {"3.5.0", "3.5.1", "3.5.2"}


class Member:
    """One member; `port` and `peer_port` are where it listens, whatever was advertised."""

    def __init__(self, name: str, folder: Path, options: list[str]) -> None:
        self.name = name
        self._folder = folder
        self._options = options
        with take_port() as client, take_port() as peer:
            self.port: int = client.getsockname()[1]
            self.peer_port: int = peer.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self.paused = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id, or 0 while it is down."""
        return self._process.pid if self._process is not None else 0

    def start(self, cluster: str, advertised: str) -> None:
        """Start it, or start it again with what is in its data directory."""
        assert self._process is None
        peer = f"http://127.0.0.1:{self.peer_port}"
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    find_binary(),
                    f"--name={self.name}",
                    f"--data-dir={self._folder / self.name}",
                    f"--listen-client-urls={self.url}",
                    f"--advertise-client-urls={self.url}",
                    f"--listen-peer-urls={peer}",
                    f"--initial-advertise-peer-urls={advertised}",
                    f"--initial-cluster={cluster}",
                    # Whole processes are killed here, not the machine; and another test's writes make a
                    # disk so slow that nobody is elected for many seconds.
                    *(["--unsafe-no-fsync"] if _can_skip_fsync(find_binary()) else []),
                    *self._options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - one call of C, and nothing of Python
            )

    def kill(self) -> None:
        """End it as a power failure does, except that the disk keeps what was written."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.paused = False

    def signal(self, signum: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signum)
            self.paused = signum == signal.SIGSTOP

    def serves(self) -> bool:
        """Whether it can answer now: it runs, and knows a leader."""
        if self._process is None or self.paused:
            return False
        try:
            return json.loads(self._open("/health", None, 3)).get("health") == "true"
        except (OSError, ValueError):
            return False

    def leads(self) -> bool:
        if self._process is None or self.paused:
            return False
        try:
            return metric_text(read_metrics(self.url), "etcd_server_is_leader") > 0
        except OSError:
            return False

    def post(self, path: str, body: dict[str, Any], timeout: float = 30) -> dict[str, Any]:
        """Ask the member by the JSON form of its API: without any code of ours."""
        return dict(json.loads(self._open(path, json.dumps(body).encode(), timeout)))

    def put(self, key: bytes, value: bytes) -> None:
        encode = lambda data: base64.b64encode(data).decode()  # noqa: E731
        self.post("/v3/kv/put", {"key": encode(key), "value": encode(value)})

    def events(
        self, key: str, range_end: str, first: int = 1, timeout: float = 20
    ) -> list[dict[str, Any]]:
        """All events of a range that etcd remembers, from a watch of the JSON form of its API."""
        # Something of the range at the end tells that all before it has come.
        marker = base64.b64encode(base64.b64decode(key) + b"~end").decode()
        self.post("/v3/kv/put", {"key": marker, "value": ""})
        request = {"key": key, "range_end": range_end, "start_revision": first}
        body = json.dumps({"create_request": request}).encode()
        found: list[dict[str, Any]] = []
        with urllib.request.urlopen(f"{self.url}/v3/watch", body, timeout) as answer:
            for line in answer:
                result = json.loads(line)["result"]
                if compacted := int(result.get("compact_revision", 0)):
                    return self.events(key, range_end, compacted + 1, timeout)
                assert not result.get("canceled"), result
                for event in result.get("events", []):
                    if event["kv"]["key"] == marker:
                        self.post("/v3/kv/deleterange", {"key": marker})
                        return found
                    found.append(event)
        message = f"the watch has ended at {self.url}"
        raise AssertionError(message)

    def writes(self) -> bool:
        """Whether a write by this member takes effect now."""
        try:
            self.put(b"/writes", b"?")
        except OSError:
            return False
        return True

    def _open(self, path: str, data: bytes | None, timeout: float) -> bytes:
        with urllib.request.urlopen(f"{self.url}{path}", data, timeout) as answer:
            return bytes(answer.read())

    def log_tail(self, lines: int = 30) -> str:
        text = (self._folder / f"{self.name}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])


class Members:
    """A cluster of three whose members reach each other by addresses of the caller's choice."""

    def __init__(self, options: list[str] | None = None, size: int = 3) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="torchetcd-faults-"))
        self.all = [
            Member(f"etcd-{number}", self.folder, options or []) for number in range(1, size + 1)
        ]
        self._advertised: dict[str, str] = {}

    def __getitem__(self, name: str) -> Member:
        return next(member for member in self.all if member.name == name)

    def start(self, advertised: dict[str, str]) -> None:
        """Start all; `advertised` says where each is reached by the others."""
        self._advertised = advertised
        for member in self.all:
            self.restart(member)
        self.await_leader()

    def restart(self, member: Member) -> None:
        cluster = ",".join(f"{name}={url}" for name, url in self._advertised.items())
        member.start(cluster, self._advertised[member.name])

    def await_leader(self, timeout: float = 60) -> None:
        """Wait until all members that run know a leader."""

        def ready() -> bool:
            running = [member for member in self.all if member.pid and not member.paused]
            return all(member.serves() for member in running)

        eventually(ready, timeout)

    def agree(self) -> bool:
        """Whether all members are at the same revision."""
        asked = [member.post("/v3/kv/range", {"key": "Lw=="}) for member in self.all]
        return len({answer["header"]["revision"] for answer in asked}) == 1

    def leader(self) -> Member | None:
        return next((member for member in self.all if member.leads()), None)

    def close(self) -> None:
        for member in self.all:
            member.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
