"""TCP proxies between clients and etcd, or between members: what passes can be lost, held back and broken.

They live in a thread with an event loop; what their methods change takes effect at once, on connections
that are open and on later ones. `http2` has those that know frames, `tls` the one that ends TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from typing_extensions import Self

CHUNK = 1 << 16
# Closing sends a reset then, as a host does that knows nothing of the connection.
_RESET = struct.pack("ii", 1, 0)
# Every write of a store and of a node carries the key of its receipt.
_A_WRITE = b"/.op/"


class Source(Protocol):
    """What can be read."""

    async def read(self, size: int) -> bytes: ...

    async def readexactly(self, size: int) -> bytes: ...


class Sink(Protocol):
    """What can be written to."""

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None: ...


class Connection:
    """A client's connection, and the one to the server that belongs to it."""

    def __init__(self, near: Sink, far: Sink) -> None:
        self.near, self.far = near, far
        #: No more answers are handed on.
        self.muted = False
        #: It is ended when the next answer comes.
        self.doomed = False


class EndedError(Exception):
    """A rule says that a connection is to end."""


@dataclasses.dataclass
class Condition:
    """What is wrong with a link now."""

    #: Connections are reset, new ones as well.
    cut: bool = False
    #: Connections are ended in order, new ones as well.
    closed: bool = False
    #: Nothing passes, and nobody is told, as when a cable is pulled out.
    silent: bool = False
    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    #: So many bytes of the answers pass; then the connection is reset in the middle of a message.
    break_after: int | None = None


class _Break(NamedTuple):
    needle: bytes
    forward: bool
    then: Callable[[], object]


class Link:
    """One way: everything from one party to another passes here."""

    def __init__(self, name: str, loop: Loop) -> None:
        self.name = name
        self._loop = loop
        self.condition = Condition()
        #: Connections that were taken, those that were ended at once among them.
        self.connections = 0
        #: Requests at which `break_at` has broken a connection.
        self.broken = 0
        #: Writes whose answer was lost.
        self.lost = 0
        self._every = self._writes = self._skip = 0
        self._break: _Break | None = None
        self._transports: set[asyncio.StreamWriter] = set()
        self._changed = asyncio.Event()

    def change(self, **what: Any) -> None:
        """Change the condition; all that is not named stays."""
        self._loop.do(self._change, what)

    def heal(self) -> None:
        """Forget everything that was wrong. What was held back flows again."""
        self._loop.do(self._change, dataclasses.asdict(Condition()))

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

        def expect() -> None:
            self._break, self._skip = _Break(needle, forward, then), skip

        self._loop.do(expect)

    def lose(self, every: int) -> None:
        """Lose the answer of each write of so many.

        A write is told by the receipt that it carries. Its request always reaches etcd, and is applied:
        the connection breaks when the answer comes.
        """
        self._every = every

    def end(self) -> None:
        """End all connections that are open, in order."""
        self._loop.do(lambda: self._end(reset=False))

    def _change(self, what: dict[str, Any]) -> None:
        self.condition = dataclasses.replace(self.condition, **what)
        self._changed.set()
        self._changed = asyncio.Event()
        if self.condition.cut or self.condition.closed:
            self._end(reset=self.condition.cut)

    def _end(self, *, reset: bool) -> None:
        while self._transports:
            _close(self._transports.pop(), reset=reset)

    async def carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int
    ) -> None:
        """Serve one connection until its end."""
        self.connections += 1
        writers = [writer]
        self._transports.add(writer)
        try:
            if self.condition.cut or self.condition.closed:
                self._end(reset=self.condition.cut)
                return
            await self._flows()
            source, sink = await self.accept(reader, writer)
            far_source, far = await asyncio.open_connection("127.0.0.1", port)
            writers.append(far)
            if writer not in self._transports:  # cut meanwhile
                return
            self._transports.add(far)
            await self._serve(self.connect(sink, far), source, far_source)
        except OSError:
            pass  # nobody listens there now; the end below tells the other side
        finally:
            for each in writers:
                if each in self._transports:
                    self._transports.remove(each)
                    _close(each, reset=False)
                each.transport.abort()

    async def _serve(self, connection: Connection, requests: Source, answers: Source) -> None:
        """Hand on both ways until one ends."""
        reading, handing = [], []
        for source, hand_on in ((requests, self.request), (answers, self.answer)):
            # A queue between reading and writing, so that a delay does not slow down the flow.
            held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
            read = self._read(source, held, answers=source is answers)
            reading.append(asyncio.ensure_future(read))
            handing.append(asyncio.ensure_future(self._hand_on(connection, held, hand_on)))
        try:
            await asyncio.wait(handing, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in reading + handing:
                task.cancel()
            ended = await asyncio.gather(*reading, *handing, return_exceptions=True)
        for result in ended:
            if isinstance(result, Exception):
                raise result

    async def _read(
        self, source: Source, held: asyncio.Queue[tuple[float, bytes]], *, answers: bool
    ) -> None:
        end = (0.0, b"")
        try:
            with contextlib.suppress(OSError, EOFError):
                async for data in self.pieces(source, answers=answers):
                    due = asyncio.get_running_loop().time() + self.condition.delay_s
                    await held.put((due, data))
        except Exception:
            await held.put(end)
            raise
        await held.put(end)

    async def _hand_on(
        self,
        connection: Connection,
        held: asyncio.Queue[tuple[float, bytes]],
        hand_on: Callable[[Connection, bytes], Coroutine[Any, Any, None]],
    ) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, EndedError):
            while True:
                due, data = await held.get()
                if not data:
                    return
                if (wait := due - loop.time()) > 0:
                    await asyncio.sleep(wait)
                await self._flows()
                if self.condition.bytes_per_s:
                    await asyncio.sleep(len(data) / self.condition.bytes_per_s)
                await hand_on(connection, data)

    # What proxies of other kinds do in another way.

    async def accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[Source, Sink]:
        """Take a client's connection."""
        return reader, writer

    def connect(self, near: Sink, far: Sink) -> Connection:
        """Both connections are there."""
        return Connection(near, far)

    async def pieces(self, source: Source, *, answers: bool) -> AsyncIterator[bytes]:
        """What is handed on as a whole, until the other side ends."""
        while data := await source.read(CHUNK):
            yield data

    async def request(self, connection: Connection, data: bytes) -> None:
        """Hand on what a client has sent."""
        planned = self._break
        if planned is not None and planned.needle in data:
            if not self._skip:
                self._break, connection.muted = None, True
                if planned.forward:
                    await _send(connection.far, data)
                # It may ask etcd, by this proxy as well.
                await asyncio.get_running_loop().run_in_executor(None, planned.then)
                self.broken += 1
                raise EndedError
            self._skip -= 1
        if self._every and _A_WRITE in data:
            self._writes += 1
            if self._writes % self._every == 0:
                self.lost += 1
                connection.doomed = True
        await _send(connection.far, data)

    async def answer(self, connection: Connection, data: bytes) -> None:
        """Hand on what the server has sent."""
        if connection.doomed:
            raise EndedError
        left = self.condition.break_after
        if left is not None:
            if len(data) > left:
                await _send(connection.near, data[:left])
                self.condition = dataclasses.replace(self.condition, break_after=None)
                self._end(reset=True)
                raise EndedError
            self.condition = dataclasses.replace(self.condition, break_after=left - len(data))
        if not connection.muted:
            await _send(connection.near, data)

    async def _flows(self) -> None:
        while self.condition.silent:
            await self._changed.wait()


def _close(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        else:
            sock.shutdown(socket.SHUT_RDWR)
    writer.transport.abort()


async def _send(sink: Sink, data: bytes) -> None:
    sink.write(data)
    await sink.drain()


class Loop:
    """The thread that proxies live in."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[Exception] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies")
        self._thread.start()

    def do(self, work: Callable[..., Any], *args: Any) -> Any:
        """Call this in the loop's thread."""

        async def call() -> Any:
            return work(*args)

        return self._wait(call())

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def listen(
        self,
        sock: socket.socket,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]],
    ) -> None:
        """Take connections on a bound socket, and serve each of them."""

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            try:
                await serve(reader, writer)
            except asyncio.CancelledError:
                pass
            except Exception as exc:
                self._failures.append(exc)

        start = functools.partial(asyncio.start_server, accepted, sock=sock)
        self._servers.append(self._wait(start()))

    def close(self) -> None:
        """End all connections and the thread; fails if one was not served as it should be."""

        async def end() -> None:
            for server in self._servers:
                server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._loop.shutdown_asyncgens()
            await self._loop.shutdown_default_executor()

        self._wait(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._failures:
            raise self._failures[0]


def bound(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """Return a socket that listens at this address, by default on any port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


class Proxy(Link):
    """Stands between clients and one port, in a thread of its own; with `every` see `lose`."""

    def __init__(
        self, port: int, host: str = "127.0.0.1", own_port: int = 0, *, every: int = 0
    ) -> None:
        super().__init__(f"to {port}", Loop())
        self._target = port
        self.lose(every)
        listener = bound(host, own_port)
        self.port: int = listener.getsockname()[1]
        self._loop.listen(listener, functools.partial(self.carry, port=port))

    def freeze(self) -> None:
        """Stop forwarding without a word, as a cable does that is pulled out."""
        self.change(silent=True)

    def cut(self) -> None:
        """End all connections, and new ones until `mend`."""
        self.change(closed=True)

    def mend(self) -> None:
        self.heal()

    def close(self) -> None:
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
