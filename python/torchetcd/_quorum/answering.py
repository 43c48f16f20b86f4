"""What an agent says at its entry where no member runs: that there is an agent, and whether it is fresh.

It holds the port until its etcd takes it over.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any

from torchetcd._quorum.entries import PAGE

#: How long one who asks may take.
_PATIENCE_S = 5.0


class Answerer:
    """Answers at a port until `close`."""

    def __init__(
        self, listening: socket.socket, tls: ssl.SSLContext | None, says: dict[str, Any]
    ) -> None:
        """Begin to answer.

        Args:
            listening: A socket that listens at the port. It is closed with this object.
            tls: Who may ask; everybody without it.
            says: What it says. It can be changed at any time.
        """
        self.says = says
        self._server = _Server(listening, tls, self)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="torchetcd-entry",
            daemon=True,
        )
        self._thread.start()

    def close(self) -> None:
        """Give the port up."""
        self._server.shutdown()
        self._thread.join(_PATIENCE_S)
        self._server.server_close()


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(
        self, listening: socket.socket, tls: ssl.SSLContext | None, owner: Answerer
    ) -> None:
        super().__init__(listening.getsockname()[:2], _Page, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.tls, self.owner = tls, owner

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.settimeout(_PATIENCE_S)
        return connection, address

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer in the thread of this connection."""
        # The handshake waits for the other side, so it does not belong where connections are accepted.
        with contextlib.suppress(OSError):  # an `SSLError` is one
            if self.tls is not None:
                request = self.tls.wrap_socket(request, server_side=True)
            _Page(request, client_address, self)
            request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: whoever comes here may be anybody."""


class _Page(BaseHTTPRequestHandler):
    server: _Server
    raw_requestline: bytes

    def parse_request(self) -> bool:
        """Leave a client of etcd without an answer, so that it goes to another endpoint."""
        if self.raw_requestline.startswith(b"PRI "):
            self.close_connection = True
            return False
        return super().parse_request()

    def do_GET(self) -> None:
        """Answer the one question."""
        if self.path != PAGE:
            self.send_error(404)
            return
        body = json.dumps({**self.server.owner.says, "now": time.time()}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""
