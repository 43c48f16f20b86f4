"""The ways between parties as TCP proxies, each of which can be cut, delayed, silenced or throttled.

All of them live in one thread with an event loop; what the methods change takes effect at once, on
connections that are open and on later ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any

_CHUNK = 1 << 16
# Closing sends a reset then, as a host does that knows nothing of the connection.
_RESET = struct.pack("ii", 1, 0)


@dataclasses.dataclass
class Condition:
    """What is wrong with a link now."""

    cut: bool = False
    silent: bool = False
    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    #: So many bytes of the answers pass; then the connection is reset in the middle of a message.
    break_after: int | None = None


class Link:
    """One way: everything from one party to another passes here."""

    def __init__(self, name: str, loop: Loop) -> None:
        self.name = name
        self._loop = loop
        self.condition = Condition()
        self._transports: set[asyncio.StreamWriter] = set()
        self._changed = asyncio.Event()

    def change(self, **what: Any) -> None:
        """Change the condition; all that is not named stays."""
        self._loop.do(self._change, what)

    def heal(self) -> None:
        """Forget everything that was wrong. What was held back flows again."""
        self._loop.do(self._change, dataclasses.asdict(Condition()))

    def _change(self, what: dict[str, Any]) -> None:
        self.condition = dataclasses.replace(self.condition, **what)
        self._changed.set()
        self._changed = asyncio.Event()
        if self.condition.cut:
            self.reset()

    def reset(self) -> None:
        for writer in self._transports:
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        self._transports.clear()

    async def carry(
        self, near: tuple[asyncio.StreamReader, asyncio.StreamWriter], port: int
    ) -> None:
        """Serve one connection until its end."""
        writers = [near[1]]
        self._transports.add(near[1])
        try:
            if self.condition.cut:
                self.reset()
                return
            await self._flows()
            far = await asyncio.open_connection("127.0.0.1", port)
            writers.append(far[1])
            if near[1] not in self._transports:  # cut meanwhile
                return
            self._transports.add(far[1])
            ways = [
                asyncio.ensure_future(self._pump(near[0], far[1], answers=False)),
                asyncio.ensure_future(self._pump(far[0], near[1], answers=True)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # nobody listens there now; the end below tells the other side
        finally:
            for writer in writers:
                self._transports.discard(writer)
                writer.transport.abort()

    async def _flows(self) -> None:
        while self.condition.silent:
            await self._changed.wait()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        # A queue between reading and writing, so that a delay does not slow down the flow.
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        sending = asyncio.ensure_future(self._send(held, sink, answers=answers))
        try:
            with contextlib.suppress(OSError):
                while data := await source.read(_CHUNK):
                    due = asyncio.get_running_loop().time() + self.condition.delay_s
                    await held.put((due, data))
            await held.put((0, b""))
            await sending
        finally:
            sending.cancel()

    async def _send(
        self, held: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while True:
                due, data = await held.get()
                if not data:
                    return
                if (wait := due - loop.time()) > 0:
                    await asyncio.sleep(wait)
                await self._flows()
                left = self.condition.break_after
                if answers and left is not None:
                    if len(data) > left:
                        sink.write(data[:left])
                        await sink.drain()
                        self.condition = dataclasses.replace(self.condition, break_after=None)
                        self.reset()
                        return
                    self.condition = dataclasses.replace(
                        self.condition, break_after=left - len(data)
                    )
                if self.condition.bytes_per_s:
                    await asyncio.sleep(len(data) / self.condition.bytes_per_s)
                sink.write(data)
                await sink.drain()


#: Says which link a connection belongs to, by the port it comes from.
Choice = Callable[[int], Link]


class Loop:
    """The thread that all links live in."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links")
        self._thread.start()

    def do(self, work: Callable[..., Any], *args: Any) -> Any:
        """Call this in the loop's thread."""

        async def call() -> Any:
            return work(*args)

        return self._wait(call())

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def link(self, name: str) -> Link:
        """Make a link that nothing leads to yet."""
        return Link(name, self)

    def listen(self, sock: socket.socket, port: int, choose: Choice) -> None:
        """Take connections on a bound socket and carry them to a port."""

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            peer = writer.get_extra_info("peername")
            with contextlib.suppress(asyncio.CancelledError):
                await choose(peer[1] if peer else 0).carry((reader, writer), port)

        start = functools.partial(asyncio.start_server, accepted, sock=sock)
        self._servers.append(self._wait(start()))

    def close(self) -> None:
        """End all connections and the thread."""

        async def end() -> None:
            for server in self._servers:
                server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._wait(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
