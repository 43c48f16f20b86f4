"""Ports for the entries of a quorum."""

from __future__ import annotations

import contextlib
import random
import socket


def entry_ports(number: int) -> list[int]:
    """Return ports that are free, and so are the next ones, at which members reach each other.

    They are below those that the system hands out by itself, which another test may get meanwhile.
    """
    found: set[int] = set()
    while len(found) < number:
        port = random.randrange(20000, 32000, 2)
        with (
            contextlib.suppress(OSError),
            socket.create_server(("127.0.0.1", port)),
            socket.create_server(("127.0.0.1", port + 1)),
        ):
            found.add(port)
    return sorted(found)
