"""The address that this node offers to its peers."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

_logger = logging.getLogger(__name__)

# RFC 5737: never assigned to anyone. Nothing is sent there, only the route is looked up.
_ANYWHERE = ("192.0.2.1", 9)


def local_address(endpoints: Sequence[str]) -> str:
    """Choose the address at which peers can reach this node when no `local_addr` was given.

    It is the address that this host uses towards etcd, which every peer can reach as well. Where
    etcd is on this very host that would be a loopback address: then it is the address towards the
    default route, and without one (a machine without a network) the loopback address after all. A
    host name is never offered: peers may not be able to resolve it (pytorch issues 150532, 73380).

    Args:
        endpoints: URLs of etcd, in the order of preference.

    Returns:
        An IPv4 or IPv6 address.
    """
    found = [address for address in map(_source_towards, endpoints) if address]
    for address in [*found, _source_of_route(socket.AF_INET, _ANYWHERE) or ""]:
        if address and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            return address
    return found[0] if found else "127.0.0.1"


def _source_towards(endpoint: str) -> str | None:
    parts = urlsplit(endpoint)
    name = parts.hostname
    # Python encodes a text by IDNA, and loads tables for it that take a millisecond.
    host = name.encode() if name and name.isascii() else name
    with contextlib.suppress(OSError):
        for family, _, _, _, target in socket.getaddrinfo(host, parts.port, type=socket.SOCK_DGRAM):
            source = _source_of_route(family, target)
            if source:
                return source
    return None


def _source_of_route(family: int, target: tuple[object, ...]) -> str | None:
    # Connecting a datagram socket sends nothing; it binds the socket to the route's address.
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect(target)
        return str(sock.getsockname()[0])
    return None


def host_name(fallback: str) -> str:
    """Return the name of this host, for people who read messages: no peer connects to it."""
    return os.uname().nodename or fallback
