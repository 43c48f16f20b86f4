"""A server before etcd that ends TLS and speaks one version of it only.

etcd has options for that since 3.5.8; this does it for every etcd.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import warnings
from collections.abc import Callable

from support.certificates import Pair


class TlsProxy:
    """Takes TLS connections of this version and brings what they carry to etcd."""

    def __init__(
        self, port: int, pair: Pair, version: ssl.TLSVersion, *, client_ca: str | None = None
    ) -> None:
        self._target = port
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
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._run(self._accept)

    def __enter__(self) -> TlsProxy:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._end(self._listener)
        self._threads[0].join()  # takes no more connections
        for sock in self._sockets:
            self._end(sock)
        for thread in self._threads[1:]:
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
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                self._run(self._serve, near, far)

    def _serve(self, near: socket.socket, far: socket.socket) -> None:
        # One thread for both directions: an SSL object is not for two at once.
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._context.wrap_bio(incoming, outgoing, server_side=True)
        lock = threading.Lock()
        try:
            self._shake_hands(tls, near, incoming, outgoing)
            self.spoken.append(tls.version())
            back = threading.Thread(target=self._answers, args=(tls, near, far, outgoing, lock))
            back.start()
            self._requests(tls, near, far, incoming, lock)
        except (OSError, ssl.SSLError):
            # The alert that says why.
            with contextlib.suppress(OSError):
                near.sendall(outgoing.read())
        finally:
            # In order, so that the alert is not lost behind a reset.
            for sock in (near, far):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(UnboundLocalError):
            back.join()

    @staticmethod
    def _shake_hands(
        tls: ssl.SSLObject, near: socket.socket, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
    ) -> None:
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                near.sendall(outgoing.read())
                data = near.recv(1 << 16)
                if not data:
                    raise ConnectionError from None
                incoming.write(data)
            else:
                near.sendall(outgoing.read())
                return

    @staticmethod
    def _requests(
        tls: ssl.SSLObject,
        near: socket.socket,
        far: socket.socket,
        incoming: ssl.MemoryBIO,
        lock: threading.Lock,
    ) -> None:
        while True:
            with lock, contextlib.suppress(ssl.SSLWantReadError):
                while data := tls.read(1 << 16):
                    far.sendall(data)
            received = near.recv(1 << 16)
            if not received:
                return
            with lock:
                incoming.write(received)

    @staticmethod
    def _answers(
        tls: ssl.SSLObject,
        near: socket.socket,
        far: socket.socket,
        outgoing: ssl.MemoryBIO,
        lock: threading.Lock,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(1 << 16):
                with lock:
                    tls.write(data)
                    near.sendall(outgoing.read())

    @staticmethod
    def _end(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
