"""Which entries of a quorum are on this host, and where a member listens."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterable, Iterator

from torchetcd._quorum.entries import Entry
from torchetcd._rendezvous.local_address import host_name

#: So many names are looked up at most; thousands of agents would ask the name servers at once.
_LOOK_UPS = 16


def looked_up(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries whose names are looked up where none is this host's."""
    return [entry for entry in entries if not _is_address(entry.host)][:_LOOK_UPS]


def is_unknown(entry: Entry) -> bool:
    """Return whether the name of an entry has no address yet, as that of a pod that has just started."""
    return not _look_up(entry.host)


def own_entries(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries that are on this host, in their order.

    An address is one of this host if it can be bound. A name is one of this host if it is the host's, with or
    without its domain. Only where no entry is found so are the first names looked up.
    """
    listed = list(entries)
    here = {name for name in _own_names() if name}
    found = [entry for entry in listed if _is_own_address(entry.host) or _matches(entry.host, here)]
    if found:
        return found
    names = looked_up(listed)
    return [entry for entry in names if any(map(_is_own_address, _look_up(entry.host)))]


def _own_names() -> Iterator[str]:
    name = host_name().lower()
    yield name
    yield name.partition(".")[0]
    yield "localhost"


def _matches(host: str, here: set[str]) -> bool:
    # With a domain, a name may belong to a host of another one that has the same short name.
    return host in here or (
        host.partition(".")[0] in here and any(map(_is_own_address, _look_up(host)))
    )


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return False


def _is_own_address(host: str) -> bool:
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        return False
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        return True
    return False


def _look_up(host: str) -> list[str]:
    with contextlib.suppress(OSError, UnicodeError):
        return [
            str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        ]
    return []


def listening_address(host: str) -> str:
    """Return the address at which the member of an entry listens.

    For an address it is that one, so a loopback address admits nobody else. A name may mean another address
    here than elsewhere (Debian's 127.0.1.1), so it is all addresses of this host.
    """
    if _is_address(host):
        return host
    if host == "localhost":
        return "127.0.0.1"
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


class PortTakenError(OSError):
    """Why a port of an entry cannot be used."""

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(f"port {port} of {host} cannot be used: {why}")
        self.host, self.port = host, port


def listen(host: str, port: int) -> socket.socket:
    """Listen at a port of an entry.

    Raises:
        PortTakenError: if something else does.
    """
    address = listening_address(host)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server(
            (address, port), family=family, dualstack_ipv6=address == "::", backlog=128
        )
    except OSError as exc:
        raise PortTakenError(host, port, os.strerror(exc.errno or 0)) from None


def is_served(host: str, port: int) -> bool:
    """Return whether something accepts connections at a port of this host."""
    with contextlib.suppress(OSError):
        socket.create_connection((host, port), 1.0).close()
        return True
    return False


def is_loopback(host: str) -> bool:
    """Return whether only this host reaches an entry."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
