"""A cluster of real etcd processes, each of which can be killed or stopped."""

from __future__ import annotations

import gc
import os
import re
import signal
import threading
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import ExitStack

from torchetcd.etcd import Client
from torchetcd.etcd_server import EtcdServer, find_free_port

_START_ATTEMPTS = 3


def read_metrics(url: str) -> str:
    """Return all metrics of the server at this URL."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def metric_text(text: str, pattern: str) -> float:
    """Return the sum of the metrics whose name and labels match."""
    return sum(float(found) for found in re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE))


def metric(server: EtcdServer, pattern: str) -> float:
    """Return the sum of a server's metrics whose name and labels match."""
    return metric_text(read_metrics(f"http://{server.get_endpoint()}"), pattern)


def watchers(server: EtcdServer) -> int:
    """Return how many watches a server serves."""
    return int(metric(server, "etcd_debugging_mvcc_watcher_total"))


def watchers_left(server: EtcdServer) -> int:
    """Return how many watches a server serves when those that earlier tests have ended are gone.

    Nothing announces that, and a handler that lives on keeps its own: the number must not change for
    a second.
    """
    gc.collect()
    found = [watchers(server)]
    while found[-10:] != [found[-1]] * 10 and len(found) < 300:
        threading.Event().wait(0.1)
        found.append(watchers(server))
    return found[-1]


class Cluster:
    """Members of one etcd cluster; in a `with` block they run."""

    def __init__(self, size: int = 3) -> None:
        self._size = size
        self._stopped: set[int] = set()
        self.members: list[EtcdServer] = []

    @property
    def endpoints(self) -> str:
        """The endpoints of all members, for clients."""
        return ",".join(member.get_endpoint() for member in self.members)

    def client(self, read_timeout: float = 20) -> Client:
        return Client(self.endpoints, read_timeout=read_timeout)

    def serving(self, client: Client) -> int:
        """Return which of the running members the client is connected to."""
        running = [n for n in range(self._size) if n not in self._stopped]
        pattern = r'grpc_server_started_total{grpc_method="Txn",.*}'
        while True:
            before = {n: metric(self.members[n], pattern) for n in running}
            _ = "/serving" in client
            risen = [n for n in running if metric(self.members[n], pattern) > before[n]]
            if len(risen) == 1:  # else others write, too
                return risen[0]

    def leads(self, number: int) -> bool:
        """Return whether this member is the leader."""
        return metric(self.members[number], "etcd_server_is_leader") > 0

    def hit(self, number: int, how: signal.Signals) -> None:
        """Kill a member, or stop it until `resume`."""
        self._stopped.add(number)
        self._signal(number, how)

    def resume(self) -> None:
        """Let the stopped members go on."""
        for number in self._stopped:
            self._signal(number, signal.SIGCONT)
        self._stopped.clear()

    def _signal(self, number: int, signum: signal.Signals) -> None:
        process = self.members[number]._process
        assert process is not None
        os.kill(process.pid, signum)

    def __enter__(self) -> Cluster:
        for attempt in range(_START_ATTEMPTS):
            self.members = self._new_members()
            try:
                self._for_each(lambda member: member.start(num_retries=1))
            except (OSError, RuntimeError):
                self._for_each(EtcdServer.stop)
                if attempt == _START_ATTEMPTS - 1:
                    raise
            else:
                break
        return self

    def __exit__(self, *_exc: object) -> None:
        # Without its majority a member takes seconds to end by itself.
        for number in range(self._size):
            self._signal(number, signal.SIGKILL)
        self._for_each(EtcdServer.stop)

    def _new_members(self) -> list[EtcdServer]:
        with ExitStack() as stack:
            sockets = [stack.enter_context(find_free_port()) for _ in range(self._size)]
            peers = [f"http://localhost:{sock.getsockname()[1]}" for sock in sockets]
        token = uuid.uuid4().hex
        names = [f"member{number}" for number in range(self._size)]
        whole = ",".join(f"{name}={peer}" for name, peer in zip(names, peers, strict=True))
        return [
            EtcdServer(
                extra_args=[
                    f"--name={name}",
                    f"--listen-peer-urls={peer}",
                    f"--initial-advertise-peer-urls={peer}",
                    f"--initial-cluster={whole}",
                    f"--initial-cluster-token={token}",
                ]
            )
            for name, peer in zip(names, peers, strict=True)
        ]

    def _for_each(self, work: Callable[[EtcdServer], object]) -> None:
        """Do this to all members at once: none is ready before the others are there."""
        failures: list[Exception] = []

        def run(member: EtcdServer) -> None:
            try:
                work(member)
            except (OSError, RuntimeError) as exc:
                failures.append(exc)

        threads = [threading.Thread(target=run, args=(member,)) for member in self.members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
