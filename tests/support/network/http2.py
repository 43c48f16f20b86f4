"""Proxies that know HTTP/2's frames: one ends etcd's open streams as if etcd had, or silences them.

And a server without anything behind it, which answers as a service mesh does then.
`muted` silences from their beginning those that the client keeps open: watches and renewals.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import cast

from support.network.proxy import Connection, Loop, Proxy, Sink, Source, bound

_HEAD = 9
_DATA, _HEADERS, _RST_STREAM, _SETTINGS = 0, 1, 3, 4
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
# gRPC's, of a message without fields: of all that is asked for, only `Status` has none.
_EMPTY_MESSAGE = b"\0" * 5
# A header that is in no table of HPACK's: the trailer of a stream that ended well.
_OK = b"\0\x0bgrpc-status\x010"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


async def _frames(source: Source) -> AsyncIterator[bytes]:
    while True:
        head = await source.readexactly(_HEAD)
        yield head + await source.readexactly(int.from_bytes(head[:3], "big"))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def _field(name: bytes, value: bytes) -> bytes:
    """A header in no table of HPACK's, with texts that are not compressed."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


class Mesh:
    """Answers each request at once by `grpc-status: 14`, as a sidecar with nothing behind it.

    With `probed` it first says that it is a member which serves, once for each connection.
    """

    words = b"no healthy upstream"

    def __init__(self, *, probed: bool = False) -> None:
        self._probed = probed
        self.requests = 0
        self.connections = 0
        self._loop = Loop()
        listener = bound()
        self.port: int = listener.getsockname()[1]
        self._loop.listen(listener, self._serve)

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            with contextlib.suppress(OSError, EOFError):
                await self._answer(reader, near)
        finally:
            near.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        said = not self._probed
        await reader.readexactly(len(_PREFACE))
        near.write(_frame(_SETTINGS, 0, 0, b""))
        async for frame in _frames(reader):
            kind, stream = frame[3], int.from_bytes(frame[5:_HEAD], "big")
            if kind == _SETTINGS and not frame[4] & _ACK:
                near.write(_frame(_SETTINGS, _ACK, 0, b""))
            if kind != _HEADERS:
                continue
            self.requests += 1
            # `:status 200` is in HPACK's static table.
            head = b"\x88" + _field(b"content-type", b"application/grpc")
            if not said:
                said = True
                near.write(_frame(_HEADERS, _END_HEADERS, stream, head))
                near.write(_frame(_DATA, 0, stream, _EMPTY_MESSAGE))
                near.write(_frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, _OK))
                continue
            head += _field(b"grpc-status", b"14") + _field(b"grpc-message", self.words)
            near.write(_frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, head))
            await near.drain()


class _Streams(Connection):
    """A connection, and the streams on it."""

    def __init__(self, near: Sink, far: Sink) -> None:
        super().__init__(near, far)
        #: Those that etcd answers on and has not ended.
        self.open: set[int] = set()
        #: Those that were ended here.
        self.ended: set[int] = set()
        #: Those on which the client has said all.
        self.asked: set[int] = set()
        #: When nothing but `Status` is answered: those that ask for it.
        self.stalled: set[int] | None = None


class StreamEnder(Proxy):
    """Stands between clients and etcd, and can end or silence what is open."""

    def __init__(self, port: int) -> None:
        self._open: list[_Streams] = []
        self.muted = False
        super().__init__(port)

    def streams(self) -> int:
        """Return how many are open: between calls that is watches and lease renewals."""
        return int(self._loop.do(lambda: sum(len(each.open) for each in self._open)))

    def asked(self) -> int:
        """Return how many calls clients have made that are no streams, connecting aside."""
        return int(self._loop.do(lambda: sum(len(each.asked) - 1 for each in self._open)))

    def end_streams(self) -> int:
        """End all that are open, with the status OK. Return how many."""

        def end() -> int:
            taken = self._take()
            for each, stream in taken:
                each.near.write(_frame(_HEADERS, _END_STREAM | _END_HEADERS, stream, _OK))
            return len(taken)

        return int(self._loop.do(end))

    def silence_streams(self) -> int:
        """Hand on no more answers of all that are open. Return how many."""
        return int(self._loop.do(lambda: len(self._take())))

    def stall(self) -> int:
        """Hand on no answers but those to `Status` on all connections that are open; return how many.

        So does a member whose disk hangs, or that is being defragmented.
        """

        def stall() -> int:
            for each in self._open:
                each.stalled = set()
            return len(self._open)

        return int(self._loop.do(stall))

    def _take(self) -> list[tuple[_Streams, int]]:
        """Let nothing more through of what is open, and return it."""
        taken = [(each, stream) for each in self._open for stream in each.open]
        for each in self._open:
            each.ended |= each.open
            each.open.clear()
        return taken

    def connect(self, near: Sink, far: Sink) -> Connection:
        self._open.append(made := _Streams(near, far))
        return made

    async def pieces(self, source: Source, *, answers: bool) -> AsyncIterator[bytes]:
        # Whole frames, so that one can be put between them.
        if not answers:
            yield await source.readexactly(len(_PREFACE))
        async for frame in _frames(source):
            yield frame

    async def request(self, connection: Connection, data: bytes) -> None:
        streams = cast("_Streams", connection)
        if data != _PREFACE:
            kind, stream = data[3], int.from_bytes(data[5:_HEAD], "big")
            if kind in (_DATA, _HEADERS) and data[4] & _END_STREAM:
                streams.asked.add(stream)
            if kind == _DATA and data[_HEAD:] == _EMPTY_MESSAGE and streams.stalled is not None:
                streams.stalled.add(stream)
        await super().request(connection, data)

    async def answer(self, connection: Connection, data: bytes) -> None:
        streams = cast("_Streams", connection)
        kind, flags, stream = data[3], data[4], int.from_bytes(data[5:_HEAD], "big")
        if stream in streams.ended:
            return
        if stream and streams.stalled is not None and stream not in streams.stalled:
            return
        if self.muted and kind in (_DATA, _HEADERS) and stream not in streams.asked:
            return
        if kind == _RST_STREAM or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
            streams.open.discard(stream)
        elif kind == _HEADERS:
            streams.open.add(stream)
        await super().answer(connection, data)
