"""A proxy that knows HTTP/2's frames: it ends etcd's open streams as if etcd had, or silences them.

And a server without anything behind it, which answers as a service mesh does then.
`muted` silences from their beginning those that the client keeps open: watches and renewals.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

_HEAD = 9
_DATA, _HEADERS, _RST_STREAM, _SETTINGS = 0, 1, 3, 4
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
# gRPC's, of a message without fields: of all that is asked for, only `Status` has none.
_EMPTY_MESSAGE = b"\0" * 5
# A header that is in no table of HPACK's: the trailer of a stream that ended well.
_OK = b"\0\x0bgrpc-status\x010"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def _exactly(sock: socket.socket, size: int) -> bytes:
    """Receive so many bytes; OSError when the other side ends before."""
    parts = b""
    while len(parts) < size:
        data = sock.recv(size - len(parts))
        if not data:
            raise OSError("ended")
        parts += data
    return parts


def _frames(sock: socket.socket) -> Iterator[bytes]:
    while True:
        head = _exactly(sock, _HEAD)
        yield head + _exactly(sock, int.from_bytes(head[:3], "big"))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def _field(name: bytes, value: bytes) -> bytes:
    """A header in no table of HPACK's, with texts that are not compressed."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


class _Server:
    """Listens, and serves each connection in threads of its own; in a `with` block it runs."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._run(self._accept)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._take_up(self._listener.accept()[0])

    def _take_up(self, near: socket.socket) -> None:
        """Serve a new connection."""
        raise NotImplementedError

    def _run(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args)
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        # A blocked `accept` or `recv` ends by a shutdown, not by a close.
        _cut(self._listener)
        self._threads[0].join()
        _cut(*self._sockets)
        for thread in self._threads:
            thread.join()
        for sock in (self._listener, *self._sockets):
            sock.close()


class Mesh(_Server):
    """Answers each request at once by `grpc-status: 14`, as a sidecar with nothing behind it.

    With `probed` it first says that it is a member which serves, once for each connection.
    """

    words = b"no healthy upstream"

    def __init__(self, *, probed: bool = False) -> None:
        self._probed = probed
        self.requests = 0
        super().__init__()

    def _take_up(self, near: socket.socket) -> None:
        self._sockets.append(near)
        self.connections += 1
        self._run(self._answer, near)

    def _answer(self, near: socket.socket) -> None:
        said = not self._probed
        with contextlib.suppress(OSError):
            _exactly(near, len(_PREFACE))
            near.sendall(_frame(_SETTINGS, 0, 0, b""))
            for frame in _frames(near):
                kind, stream = frame[3], int.from_bytes(frame[5:_HEAD], "big")
                if kind == _SETTINGS and not frame[4] & _ACK:
                    near.sendall(_frame(_SETTINGS, _ACK, 0, b""))
                if kind != _HEADERS:
                    continue
                self.requests += 1
                # `:status 200` is in HPACK's static table.
                head = b"\x88" + _field(b"content-type", b"application/grpc")
                if not said:
                    said = True
                    near.sendall(_frame(_HEADERS, _END_HEADERS, stream, head))
                    near.sendall(_frame(_DATA, 0, stream, _EMPTY_MESSAGE))
                    near.sendall(_frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, _OK))
                    continue
                head += _field(b"grpc-status", b"14") + _field(b"grpc-message", self.words)
                near.sendall(_frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, head))


def _cut(*sockets: socket.socket) -> None:
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


class StreamEnder(_Server):
    """Stands between clients and etcd, and can end or silence what is open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        # Streams that etcd answers on and has not ended, and those that were ended here.
        self._open: dict[socket.socket, set[int]] = {}
        self._ended: dict[socket.socket, set[int]] = {}
        # Connections on which nothing but `Status` is answered, and the streams that ask for it.
        self._stalled: dict[socket.socket, set[int]] = {}
        # Streams on which the client has said all.
        self._asked: dict[socket.socket, set[int]] = {}
        self.muted = False
        super().__init__()

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
                near.sendall(_frame(_HEADERS, _END_STREAM | _END_HEADERS, stream, _OK))
            return len(taken)

    def silence_streams(self) -> int:
        """Hand on no more answers of all that are open. Return how many."""
        with self._lock:
            return len(self._take())

    def stall(self) -> int:
        """Hand on no answers but those to `Status` on all connections that are open; return how many.

        So does a member whose disk hangs, or that is being defragmented.
        """
        with self._lock:
            self._stalled |= {near: set() for near in self._open}
            return len(self._stalled)

    def _take(self) -> list[tuple[socket.socket, int]]:
        """Let nothing more through of what is open, and return it."""
        taken = [(near, stream) for near, streams in self._open.items() for stream in streams]
        for near, streams in self._open.items():
            self._ended[near] |= streams
            streams.clear()
        return taken

    def _take_up(self, near: socket.socket) -> None:
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
        with contextlib.suppress(OSError):
            far.sendall(_exactly(near, len(_PREFACE)))
            for frame in _frames(near):
                kind, stream = frame[3], int.from_bytes(frame[5:_HEAD], "big")
                if kind in (_DATA, _HEADERS) and frame[4] & _END_STREAM:
                    with self._lock:
                        self._asked[near].add(stream)
                if kind == _DATA and frame[_HEAD:] == _EMPTY_MESSAGE:
                    with self._lock:
                        if near in self._stalled:
                            self._stalled[near].add(stream)
                far.sendall(frame)
        _cut(near, far)

    def _answers(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            # Whole frames, so that one can be put between them.
            for frame in _frames(far):
                self._forward(near, frame)
        _cut(near, far)

    def _forward(self, near: socket.socket, frame: bytes) -> None:
        kind, flags, stream = frame[3], frame[4], int.from_bytes(frame[5:_HEAD], "big")
        with self._lock:
            if stream in self._ended[near]:
                return
            if stream and stream not in self._stalled.get(near, {stream}):
                return
            if self.muted and kind in (_DATA, _HEADERS) and stream not in self._asked[near]:
                return
            if kind == _RST_STREAM or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
                self._open[near].discard(stream)
            elif kind == _HEADERS:
                self._open[near].add(stream)
            near.sendall(frame)
