"""A TCP proxy before etcd that loses the answer to one chosen request, the request itself, or all."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable


class EtcdProxy:
    """Stands between a client and etcd, and breaks the connection at one chosen request."""

    def __init__(self, port: int, host: str = "127.0.0.1", own_port: int = 0) -> None:
        self._port = port
        self._needle: bytes | None = None
        self._forward = True
        self._skip = 0
        self._then: Callable[[], object] = lambda: None
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._flows = threading.Event()
        self._flows.set()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, own_port), family=family)
        self.port: int = self._listener.getsockname()[1]
        self.broken = 0
        self.connections = 0
        self._run(self._accept)

    def break_at(
        self,
        needle: bytes,
        *,
        forward: bool,
        then: Callable[[], object] = lambda: None,
        skip: int = 0,
    ) -> None:
        """Break the connection of the next request that holds `needle`, `skip` of them let through.

        With `forward` the request reaches etcd and its answer is lost; `then` runs in between.
        """
        self._forward, self._then, self._skip = forward, then, skip
        self._needle = needle

    def freeze(self) -> None:
        """Stop forwarding without a word, as a cable does that is pulled out."""
        self._flows.clear()

    def cut(self) -> None:
        """Break all connections that are open."""
        self._cut(*self._sockets)

    def __enter__(self) -> EtcdProxy:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        # A blocked `accept` or `recv` ends by a shutdown, not by a close.
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._flows.set()  # what was held back goes nowhere
        for thread in self._threads:
            thread.join()
        for sock in (self._listener, *self._sockets):
            sock.close()

    def _run(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [near, far]
                self.connections += 1
                muted = threading.Event()
                self._run(self._requests, near, far, muted)
                self._run(self._answers, far, near, muted)

    def _requests(self, near: socket.socket, far: socket.socket, muted: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(1 << 16):
                found = self._needle is not None and self._needle in data
                if found and self._skip:
                    self._skip -= 1
                    found = False
                if found:
                    self._needle = None
                    muted.set()
                self._flows.wait()
                if self._forward or not found:
                    far.sendall(data)
                if found:
                    self._then()
                    self.broken += 1
                    break
        self._cut(near, far)

    def _answers(self, far: socket.socket, near: socket.socket, muted: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(1 << 16):
                self._flows.wait()
                if not muted.is_set():
                    near.sendall(data)
        if not muted.is_set():
            self._cut(near, far)

    @staticmethod
    def _cut(*sockets: socket.socket) -> None:
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
