"""A cluster of real etcd processes, each of which can be killed, stopped and started again.

`EtcdServer` chooses its own ports and forgets its data; a member that comes back has to keep both.
"""

from __future__ import annotations

import base64
import contextlib
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from support.etcd.metrics import metric, metric_text, read_metrics
from support.waiting import eventually
from torchetcd._etcd_process import _can_skip_fsync
from torchetcd.etcd import Client
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

    def __init__(self, name: str, folder: Path, options: Sequence[str]) -> None:
        self.name = name
        self.data = folder / name
        self._log = folder / f"{name}.log"
        self._options = options
        with take_port() as client, take_port() as peer:
            self.port: int = client.getsockname()[1]
            self.peer_port: int = peer.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self.paused = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get_endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def get_client(self, **options: Any) -> Client:
        return Client("127.0.0.1", self.port, **{"read_timeout": 10, **options})

    @property
    def pid(self) -> int:
        """The process id, or 0 while it is down."""
        return self._process.pid if self._process is not None else 0

    def start(self, cluster: str, advertised: str) -> None:
        """Start it, or start it again with what is in its data directory."""
        assert self._process is None
        peer = f"http://127.0.0.1:{self.peer_port}"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    find_binary(),
                    f"--name={self.name}",
                    f"--data-dir={self.data}",
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
        """Stop it, let it go on, or kill it."""
        if signum == signal.SIGKILL:
            self.kill()
        elif self._process is not None:
            self._process.send_signal(signum)
            self.paused = signum == signal.SIGSTOP

    def serves(self) -> bool:
        """Whether it can answer now: it runs, and knows a leader."""
        if self._process is None or self.paused:
            return False
        try:
            return bool(json.loads(self._open("/health", None, 3)).get("health") == "true")
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
        key_, value_ = (base64.b64encode(each).decode() for each in (key, value))
        self.post("/v3/kv/put", {"key": key_, "value": value_})

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
        text = self._log.read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])


class Cluster:
    """Members of one cluster; in a `with` block they run."""

    def __init__(self, size: int = 3, options: Sequence[str] = ()) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="torchetcd-cluster-"))
        self._saved = self._folder / "saved"
        self.members = [
            Member(f"etcd-{number}", self._folder, options) for number in range(1, size + 1)
        ]
        #: Where each is reached by the others.
        self.advertised = {
            member.name: f"http://127.0.0.1:{member.peer_port}" for member in self.members
        }

    def __getitem__(self, name: str) -> Member:
        return next(member for member in self.members if member.name == name)

    @property
    def endpoints(self) -> str:
        """The endpoints of all members, for clients."""
        return ",".join(member.get_endpoint() for member in self.members)

    def client(self, read_timeout: float = 20) -> Client:
        return Client(self.endpoints, read_timeout=read_timeout)

    def start(self) -> None:
        """Start all; they serve when this returns."""
        for member in self.members:
            self.restart(member)
        self.await_leader()

    def restart(self, member: Member) -> None:
        cluster = ",".join(f"{name}={url}" for name, url in self.advertised.items())
        member.start(cluster, self.advertised[member.name])

    def await_leader(self, timeout: float = 60) -> None:
        """Wait until all members that run know a leader."""

        def ready() -> bool:
            return all(member.serves() for member in self.running())

        eventually(ready, timeout)

    def running(self) -> list[Member]:
        """Those that are neither down nor stopped."""
        return [member for member in self.members if member.pid and not member.paused]

    def agree(self) -> bool:
        """Whether all members are at the same revision."""
        asked = [member.post("/v3/kv/range", {"key": "Lw=="}) for member in self.members]
        return len({answer["header"]["revision"] for answer in asked}) == 1

    def leader(self) -> Member | None:
        return next((member for member in self.members if member.leads()), None)

    def serving(self, client: Client) -> Member:
        """Return which of the running members the client is connected to."""
        pattern = r'grpc_server_started_total{grpc_method="Txn",.*}'
        while True:
            before = {member: metric(member, pattern) for member in self.running()}
            _ = "/serving" in client
            risen = [member for member, count in before.items() if metric(member, pattern) > count]
            if len(risen) == 1:  # else others write, too
                return risen[0]

    def resume(self) -> None:
        """Let the stopped members go on."""
        for member in self.members:
            if member.paused:
                member.signal(signal.SIGCONT)

    # What befalls one that has no others.

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Kill the only member, and start it again at the end of the block."""
        (member,) = self.members
        member.kill()
        yield
        self.restart(member)
        self.await_leader()

    def save(self) -> None:
        """Keep a copy of the data, as a backup does."""
        with self.away():
            shutil.copytree(self.members[0].data, self._saved)

    def restore(self) -> None:
        """Go back to what was saved: the revision is a lower one."""
        with self.away():
            shutil.rmtree(self.members[0].data)
            shutil.copytree(self._saved, self.members[0].data)

    def wipe(self) -> None:
        """Lose all data; the cluster's id stays the same, as it is made from its addresses."""
        with self.away():
            shutil.rmtree(self.members[0].data)

    def replace(self, revision: int) -> None:
        """Put another cluster in this one's place, whose revision is this one at least."""
        # Of a cluster that is there already only the data counts.
        with self.away(), Cluster(1, ["--initial-cluster-token=of another cluster"]) as other:
            with other.client() as client:
                while (client.write("/filler", "x").modifiedIndex or 0) <= revision:
                    pass
            (replacing,) = other.members
            replacing.kill()
            shutil.rmtree(self.members[0].data)
            shutil.copytree(replacing.data, self.members[0].data)

    def close(self) -> None:
        for member in self.members:
            member.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            for member in self.members:
                print(f"--- {member.name}\n{member.log_tail()}")
            self.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
