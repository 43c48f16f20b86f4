"""Stores for tests, other processes that use them, and a network that loses answers."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.process
import queue
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from torchetcd.etcd import Client
from torchetcd.etcd_store import EtcdStore

# The server forks each process, so torch is imported once.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch.distributed", "torchetcd.etcd_store"])


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


@contextlib.contextmanager
def opened(
    client: Client, prefix: str, kind: str = "direct", timeout: float = 30
) -> Iterator[dist.Store]:
    """Provide a store, itself ("direct") or below a `PrefixStore` ("prefixed")."""
    with EtcdStore(client, prefix, seconds(timeout)) as store:
        yield store if kind == "direct" else dist.PrefixStore("below", store)


def in_background(work: Callable[[], object], after: float = 0.0) -> threading.Thread:
    """Start `work` in a thread after a while (what waits in a store announces that to nobody)."""

    def run() -> None:
        threading.Event().wait(after)
        work()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def _report(results: Any, work: Callable[..., object], *args: object) -> None:
    try:
        results.put((args[0], work(*args), None))
    except BaseException as exc:
        results.put((args[0], None, f"{type(exc).__name__}: {exc}"))


def in_processes(number: int, work: Callable[..., object], *args: object) -> list[Any]:
    """Run `work(rank, *args)` in so many processes and return what each returned, by rank."""
    results = _context.Queue()
    processes: list[multiprocessing.process.BaseProcess] = [
        _context.Process(target=_report, args=(results, work, rank, *args), daemon=True)
        for rank in range(number)
    ]
    for process in processes:
        process.start()
    returned: dict[int, Any] = {}
    try:
        while len(returned) < number:
            try:
                rank, value, error = results.get(timeout=1)
            except queue.Empty:
                ended = [p.exitcode for p in processes if p.exitcode not in (None, 0)]
                assert not ended, f"processes ended with {ended}"
                continue
            assert error is None, f"process {rank}: {error}"
            returned[rank] = value
    finally:
        for process in processes:
            process.join(10 if len(returned) == number else 0)
            process.kill()
            process.join()
            process.close()
    return [returned[rank] for rank in range(number)]


class Proxy:
    """Stands before etcd: loses the answer of every few writes, and can be taken away.

    A write is told by the receipt that it carries. Its request always reaches etcd, and is applied:
    the connection breaks when the answer comes.
    """

    def __init__(self, port: int, every: int = 0) -> None:
        self._target = port
        self._every = every
        self._writes = 0
        self._whole = True
        self.lost = 0
        # Connections, those that were closed at once among them.
        self.taken = 0
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def _run(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args)
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._end(self._listener)
        self._threads[0].join()  # takes no more connections
        self.cut()
        for thread in self._threads:
            thread.join()
        for sock in (self._listener, *self._sockets):
            sock.close()

    def cut(self) -> None:
        """Break all connections, and new ones until `mend`."""
        self._whole = False
        for sock in self._sockets:
            self._end(sock)

    def mend(self) -> None:
        self._whole = True

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.taken += 1
                if not self._whole:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                for sock in (near, far):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                doomed = threading.Event()
                for args in ((near, far, doomed, True), (far, near, doomed, False)):
                    self._run(self._pump, *args)

    def _pump(
        self, source: socket.socket, sink: socket.socket, doomed: threading.Event, up: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not up and doomed.is_set():
                    break
                if up and b"/.op/" in data and self._take_turn():
                    doomed.set()
                sink.sendall(data)
        self._end(source)
        self._end(sink)

    def _take_turn(self) -> bool:
        with self._lock:
            self._writes += 1
            turn = self._every > 0 and self._writes % self._every == 0
            self.lost += turn
            return turn

    @staticmethod
    def _end(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def compact(client: Client) -> None:
    """Let etcd forget all of its history."""
    native = client._native
    revision = native.txn([], [("put", b"/compacted", b"", 0)], [])[1]
    request = urllib.request.Request(
        f"{client.base_uri}/v3/kv/compaction",
        json.dumps({"revision": revision, "physical": True}).encode(),
    )
    urllib.request.urlopen(request, timeout=10).close()
