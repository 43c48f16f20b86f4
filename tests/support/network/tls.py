"""A proxy before etcd that ends TLS and speaks one version of it only.

etcd has options for that since 3.5.8; this does it for every etcd.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import warnings

from support.certificates import Pair
from support.network.proxy import CHUNK, Proxy, Sink, Source


class TlsProxy(Proxy):
    """Takes TLS connections of this version and brings what they carry to etcd."""

    def __init__(
        self, port: int, pair: Pair, version: ssl.TLSVersion, *, client_ca: str | None = None
    ) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with warnings.catch_warnings():
            # That is what the old versions are here for.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._context.minimum_version = self._context.maximum_version = version
        self._context.load_cert_chain(pair.cert, pair.key)
        self._context.set_alpn_protocols(["h2"])
        if client_ca is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(client_ca)
        #: The version of each connection that came about.
        self.spoken: list[str | None] = []
        super().__init__(port)

    async def accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[Source, Sink]:
        stream = _Stream(reader, writer, self._context)
        try:
            self.spoken.append(await stream.shake_hands())
        except ssl.SSLError as exc:
            # In order, so that the alert that says why is not lost behind a reset.
            with contextlib.suppress(OSError):
                await stream.flush()
                writer.write_eof()
                while await reader.read(CHUNK):
                    pass
            raise ConnectionError(str(exc)) from exc
        return stream, stream


class _Stream:
    """What a connection carries inside of TLS. (asyncio's own TLS sends no alert when a handshake fails.)"""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        context: ssl.SSLContext,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def shake_hands(self) -> str | None:
        """Return the version that was agreed on."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                if not await self._receive():
                    raise ConnectionError("ended") from None
            else:
                await self.flush()
                return self._tls.version()

    async def read(self, size: int) -> bytes:
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                if not await self._receive():
                    return b""

    async def readexactly(self, size: int) -> bytes:
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        self._tls.write(data)
        self._writer.write(self._outgoing.read())

    async def drain(self) -> None:
        await self._writer.drain()

    async def flush(self) -> None:
        self._writer.write(self._outgoing.read())
        await self._writer.drain()

    async def _receive(self) -> bool:
        data = await self._reader.read(CHUNK)
        self._incoming.write(data)
        return bool(data)
