"""A proxy that knows HTTP/2's frames: it ends etcd's open streams as if etcd had, or silences them.

`muted` silences from their beginning those that the client keeps open: watches and renewals.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

_HEAD = 9
_PREFACE = 24  # what a client sends before its first frame
_DATA, _HEADERS, _RST_STREAM = 0, 1, 3
_END_STREAM, _END_HEADERS = 1, 4
# A header that is in no table of HPACK's: the trailer of a stream that ended well.
_OK = b"\0\x0bgrpc-status\x010"


def _size(frame: bytes) -> int:
    return _HEAD + int.from_bytes(frame[:3], "big")


class StreamEnder:
    """Stands between clients and etcd, and can end or silence what is open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        # Streams that etcd answers on and has not ended, and those that were ended here.
        self._open: dict[socket.socket, set[int]] = {}
        self._ended: dict[socket.socket, set[int]] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        # Streams on which the client has said all.
        self._asked: dict[socket.socket, set[int]] = {}
        self.connections = 0
        self.muted = False
        self._run(self._accept)

    def streams(self) -> int:
        """Return how many are open: between calls that is watches and lease renewals."""
        with self._lock:
            return sum(len(streams) for streams in self._open.values())

    def asked(self) -> int:
        """Return how many calls clients have made that are no streams, connecting aside."""
        with self._lock:
            return sum(len(asked) - 1 for asked in self._asked.values())

    def end_streams(self) -> int:
        """End all that are open, with the status OK. Return how many."""
        with self._lock:
            taken = self._take()
            for near, stream in taken:
                size, kind = len(_OK).to_bytes(3, "big"), bytes([_HEADERS])
                flags = bytes([_END_STREAM | _END_HEADERS])
                near.sendall(size + kind + flags + stream.to_bytes(4, "big") + _OK)
            return len(taken)

    def silence_streams(self) -> int:
        """Hand on no more answers of all that are open. Return how many."""
        with self._lock:
            return len(self._take())

    def _take(self) -> list[tuple[socket.socket, int]]:
        """Let nothing more through of what is open, and return it."""
        taken = [(near, stream) for near, streams in self._open.items() for stream in streams]
        for near, streams in self._open.items():
            self._ended[near] |= streams
            streams.clear()
        return taken

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                with self._lock:
                    self._sockets += [near, far]
                    self._open[near], self._ended[near], self._asked[near] = set(), set(), set()
                    self.connections += 1
                for sock in (near, far):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._run(self._requests, near, far)
                self._run(self._answers, far, near)

    def _requests(self, near: socket.socket, far: socket.socket) -> None:
        held, skip = b"", _PREFACE
        with contextlib.suppress(OSError):
            while data := near.recv(1 << 16):
                held += data[skip:]
                skip = max(0, skip - len(data))
                while len(held) >= _HEAD and len(held) >= (size := _size(held)):
                    if held[3] in (_DATA, _HEADERS) and held[4] & _END_STREAM:
                        with self._lock:
                            self._asked[near].add(int.from_bytes(held[5:_HEAD], "big"))
                    held = held[size:]
                far.sendall(data)
        self._cut(near, far)

    def _answers(self, far: socket.socket, near: socket.socket) -> None:
        held = b""
        with contextlib.suppress(OSError):
            while data := far.recv(1 << 16):
                held += data
                # Whole frames only, so that one can be put between them.
                while len(held) >= _HEAD and len(held) >= (size := _size(held)):
                    frame, held = held[:size], held[size:]
                    self._forward(near, frame)
        self._cut(near, far)

    def _forward(self, near: socket.socket, frame: bytes) -> None:
        kind, flags, stream = frame[3], frame[4], int.from_bytes(frame[5:_HEAD], "big")
        with self._lock:
            if stream in self._ended[near]:
                return
            if self.muted and kind in (_DATA, _HEADERS) and stream not in self._asked[near]:
                return
            if kind == _RST_STREAM or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
                self._open[near].discard(stream)
            elif kind == _HEADERS:
                self._open[near].add(stream)
            near.sendall(frame)

    def _run(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args)
        self._threads.append(thread)
        thread.start()

    @staticmethod
    def _cut(*sockets: socket.socket) -> None:
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> StreamEnder:
        return self

    def __exit__(self, *_exc: object) -> None:
        # A blocked `accept` or `recv` ends by a shutdown, not by a close.
        self._cut(self._listener)
        self._threads[0].join()
        self._cut(*self._sockets)
        for thread in self._threads:
            thread.join()
        for sock in (self._listener, *self._sockets):
            sock.close()
