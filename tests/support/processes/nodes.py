"""Nodes of a rendezvous as real processes, driven by the test through a pipe."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import json
import multiprocessing
import os
import signal
import time
import uuid
import warnings
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NamedTuple

from torch.distributed.elastic.multiprocessing import api as multiprocessing_api
from torch.distributed.elastic.rendezvous import RendezvousParameters

from support.waiting import eventually
from torchetcd import _torchetcd
from torchetcd.etcd import Client, EtcdKeyNotFound
from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler

PREFIX = "/torchelastic/p2p"
# The shortest lease; tests in which no node is lost use a longer one, so that a slow machine loses none.
TTL = 2
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.01


class Place(NamedTuple):
    """What a node got from a round."""

    rank: int
    world: int
    master_addr: str
    master_port: int


class NodeError(Exception):
    """What a command raised in the node's process; the text begins with the name of its class."""


def keys_below(client: Client, path: str) -> list[str]:
    """All keys below a directory, which need not be there."""
    try:
        found = client.read(path, recursive=True)
    except EtcdKeyNotFound:
        return []
    return [str(leaf.key) for leaf in found.leaves if not leaf.dir]


class Run:
    """A run with a name of its own, its nodes and what etcd holds of it."""

    def __init__(self, endpoint: str, client: Client, run_id: str | None = None) -> None:
        self.endpoint = endpoint
        self.client = client
        self.run_id = run_id or uuid.uuid4().hex
        self.path = f"{PREFIX}/run_{self.run_id}"
        self._nodes: list[Node] = []

    def nodes(
        self, count: int, min_nodes: int | None = None, max_nodes: int | None = None, **config: Any
    ) -> list[Node]:
        """Start processes; without limits each world has exactly this many nodes."""
        least = count if min_nodes is None else min_nodes
        most = max(least, count) if max_nodes is None else max_nodes
        made = [Node(self._parameters(least, most, config)) for _ in range(count)]
        self._nodes += made
        return made

    def node(self, min_nodes: int, max_nodes: int, **config: Any) -> Node:
        """Start one process."""
        return self.nodes(1, min_nodes, max_nodes, **config)[0]

    def _parameters(self, least: int, most: int, config: dict[str, Any]) -> RendezvousParameters:
        defaults = {"join_timeout": 60, "last_call_timeout": 1, "keep_alive_ttl": 10}
        return RendezvousParameters(
            "etcd-v3",
            self.endpoint,
            self.run_id,
            least,
            most,
            local_addr="127.0.0.1",
            **(defaults | config),
        )

    def keys(self, path: str = "") -> list[str]:
        """All keys of the run below `path`."""
        return keys_below(self.client, f"{self.path}{path}")

    def control(self) -> dict[str, Any]:
        """The record that says which round is current."""
        return dict(json.loads(self.client.read(f"{self.path}/rdzv/head/control").value))

    def await_joined(self, count: int, round_: int = 1, timeout: float = 15) -> None:
        """Wait until so many nodes have joined a round that is not complete."""
        eventually(lambda: len(self.keys(f"/rdzv/round/{round_}/join")) == count, timeout)

    def await_waiting(self, count: int, round_: int = 1, timeout: float = 15) -> None:
        """Wait until so many nodes wait for the round after this one."""
        eventually(lambda: len(self.keys(f"/rdzv/round/{round_}/waiting")) == count, timeout)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for node in self._nodes:
            node.kill()
        for node in self._nodes:
            node.reap()


def join_all(nodes: list[Node], timeout: float = 60) -> list[Place]:
    """Let all nodes join the next round, and check that they agree about it."""
    for node in nodes:
        node.start("join")
    places = [node.finish(timeout) for node in nodes]
    check_agreement(places)
    return places


def check_agreement(places: list[Place]) -> None:
    """Assert that these are all places of one world."""
    assert sorted(place.rank for place in places) == list(range(len(places)))
    assert {place.world for place in places} == {len(places)}
    assert len({(place.master_addr, place.master_port) for place in places}) == 1


class Node:
    """A process with a handler, whose calls run in its main thread, where signals reach them.

    It is forked from the test's process, in which torch is imported already, and has torch's handler
    for SIGTERM. It lives until it is killed or told to exit.
    """

    def __init__(self, params: RendezvousParameters) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        # What is garbage here must not be collected there.
        gc.collect()
        with warnings.catch_warnings():
            # This process has threads; torch forks such processes too.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            try:
                self._connection.close()
                _serve(theirs, params)
            finally:
                os._exit(1)
        theirs.close()
        self._reaped = False
        # When the last command ended, by the clock of `time.monotonic`.
        self.finished_at = 0.0

    def start(self, command: str, *args: Any) -> None:
        """Start a command, one of the methods of `_Commands`."""
        self._connection.send((command, args))

    def finish(self, timeout: float = 30) -> Any:
        """Return what the command returned, or raise what it raised as a `NodeError`."""
        assert self._connection.poll(timeout), f"no answer of process {self.pid} in {timeout} s"
        value, error, self.finished_at = self._connection.recv()
        if error is not None:
            raise NodeError(error)
        return value

    def call(self, command: str, *args: Any, timeout: float = 30) -> Any:
        """Run a command."""
        self.start(command, *args)
        return self.finish(timeout)

    def busy(self) -> bool:
        """Whether the command that was started has not ended."""
        return not self._connection.poll()

    def signal(self, signum: signal.Signals) -> float:
        """Send a signal, and return when."""
        sent = time.monotonic()
        os.kill(self.pid, signum)
        return sent

    def kill(self) -> float:
        """Take the process away as a power failure does, and return when."""
        return time.monotonic() if self._reaped else self.signal(signal.SIGKILL)

    def reap(self) -> None:
        """Wait for the end of the process."""
        if not self._reaped:
            os.waitpid(self.pid, 0)
            self._reaped = True
            self._connection.close()


class _Commands:
    """What a node can be told."""

    def __init__(self, params: RendezvousParameters) -> None:
        self._params = params
        self._store: Any = None

    @functools.cached_property
    def _handler(self) -> EtcdRendezvousHandler:
        return create_rdzv_handler(self._params)

    def speak(self, version: int) -> None:
        """Be an agent that knows this version of the protocol. For the first command."""
        _torchetcd.Rendezvous = functools.partial(_torchetcd.Rendezvous, version=version)  # type: ignore[assignment,misc]

    def join(self) -> Place:
        info = self._handler.next_rendezvous()
        self._store = info.store
        master = info.bootstrap_store_info
        return Place(info.rank, info.world_size, master.master_addr, master.master_port)

    def waiting(self) -> int:
        return self._handler.num_nodes_waiting()

    def await_waiting(self, timeout: float) -> int:
        """Ask as an agent does until nodes wait."""
        deadline = time.monotonic() + timeout
        while (waiting := self._handler.num_nodes_waiting()) == 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody waits after {timeout} s")
            time.sleep(_POLL_S)
        return waiting

    def most_waiting(self, seconds: float) -> int:
        """Ask as an agent does for some time."""
        deadline = time.monotonic() + seconds
        most = 0
        while time.monotonic() < deadline:
            most = max(most, self._handler.num_nodes_waiting())
            time.sleep(_POLL_S)
        return most

    def is_closed(self) -> bool:
        return self._handler.is_closed()

    def set_closed(self) -> None:
        self._handler.set_closed()

    def shutdown(self) -> bool:
        return self._handler.shutdown()

    def store_set(self, key: str, value: str) -> None:
        self._store.set(key, value)

    def store_get(self, key: str) -> bytes:
        """Wait for a key, after another one has said so."""
        self._store.set(f"waits for {key}", str(os.getpid()))
        return bytes(self._store.get(key))

    def exit(self) -> None:
        os._exit(0)


def _serve(connection: Connection, params: RendezvousParameters) -> None:
    # If the test's process dies, so does this one.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, multiprocessing_api._terminate_process_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    commands = _Commands(params)
    with contextlib.suppress(EOFError):
        while True:
            command, args = connection.recv()
            value, error = None, None
            try:
                value = getattr(commands, command)(*args)
            except BaseException as exc:
                error = f"{type(exc).__name__}: {exc}"
            connection.send((value, error, time.monotonic()))
