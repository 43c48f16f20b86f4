"""The address that this node offers to its peers, and the port."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

# For documentation, never assigned to anyone (RFC 5737 and RFC 3849). Nothing is sent there, only the route
# is looked up.
_ANYWHERE = ((socket.AF_INET, ("192.0.2.1", 9)), (socket.AF_INET6, ("2001:db8::1", 9)))

# The IPv4 side of a host that has IPv6 alone (RFC 7335).
_CLAT = ipaddress.ip_network("192.0.0.0/29")


def local_address(endpoints: Sequence[str]) -> str:
    """Choose the address at which peers can reach this node when no `local_addr` was given.

    The first of these that is not a loopback or link-local address:

    1. the address that this host uses towards etcd, which every peer can reach as well;
    2. where etcd is on this very host, the address towards the default route, IPv4 or IPv6;
    3. where there is no such route, an address of an interface that is up, those of hardware first.

    A host that has loopback addresses alone can have no peer but itself: then it is one of them. A host name
    is never offered: peers may not be able to resolve it (pytorch issues 150532, 73380).

    Args:
        endpoints: URLs of etcd. Names are resolved, one after the other, only as far as needed, and after
            the endpoints that are addresses.

    Returns:
        An IPv4 or IPv6 address.
    """
    last: list[str] = []
    for address in _candidates(endpoints):
        found = ipaddress.ip_address(address.partition("%")[0])
        if not (found.is_loopback or found.is_link_local or found.is_unspecified or found in _CLAT):
            return address
        last.append(address)
    # Of this host alone, or of this link; with a zone it means something here only.
    last = [address for address in last if "%" not in address and address not in ("0.0.0.0", "::")]
    return next(filter(_is_of_link, last), None) or (last[0] if last else "127.0.0.1")


def _is_of_link(address: str) -> bool:
    return ipaddress.ip_address(address).is_link_local


def _candidates(endpoints: Sequence[str]) -> Iterator[str]:
    """Give what may be offered, the best first, each found when it is asked for."""
    # A name may have to wait for a name server that does not answer.
    for endpoint in sorted(endpoints, key=_is_name):
        yield from _sources_towards(endpoint)
    for family, target in _ANYWHERE:
        yield from _source_of_route(family, target)
    yield from interface_addresses()


def _is_name(endpoint: str) -> bool:
    try:
        ipaddress.ip_address(urlsplit(endpoint).hostname or "")
    except ValueError:
        return True
    return False


def _sources_towards(endpoint: str) -> Iterator[str]:
    parts = urlsplit(endpoint)
    name = parts.hostname
    # Python encodes a text by IDNA, and loads tables for it that take a millisecond.
    host = name.encode() if name and name.isascii() else name
    found: list[tuple[int, tuple[object, ...]]] = []
    with contextlib.suppress(OSError, UnicodeError):
        addresses = socket.getaddrinfo(host, parts.port, type=socket.SOCK_DGRAM)
        found = [(family, target) for family, _, _, _, target in addresses]
    for family, target in found:
        yield from _source_of_route(family, target)


def _source_of_route(family: int, target: tuple[object, ...]) -> Iterator[str]:
    # Connecting a datagram socket sends nothing; it binds the socket to the route's address.
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect(target)
        yield str(sock.getsockname()[0])


# From linux/netlink.h, rtnetlink.h, if_addr.h and if.h.
_NLMSG_ERROR, _NLMSG_DONE, _RTM_NEWADDR, _RTM_GETADDR = 2, 3, 20, 22
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RT_SCOPE_UNIVERSE = 0
# Not to be used, not any more, not yet, or for what this host begins itself only.
_IFA_F_TEMPORARY, _IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_TENTATIVE = 0x01, 0x08, 0x20, 0x40
_SIOCGIFFLAGS, _IFF_UP = 0x8913, 0x1


def interface_addresses() -> list[str]:
    """Return the global addresses of all interfaces that are up, those first that peers reach most likely."""
    unusable = _IFA_F_DADFAILED | _IFA_F_TENTATIVE
    ranked = []
    with contextlib.suppress(OSError, struct.error):
        for family, flags, index, address in _dump_addresses():
            name = socket.if_indextoname(index)
            if flags & unusable or not _is_up(name):
                continue
            passing = bool(flags & (_IFA_F_TEMPORARY | _IFA_F_DEPRECATED))
            ranked.append((_remoteness(name), passing, family != socket.AF_INET, index, address))
    return [address for *_, address in sorted(ranked)]


def _remoteness(interface: str) -> int:
    """Tell hardware from what only containers and virtual machines on this host may reach."""
    folder = Path("/sys/class/net") / interface
    if (folder / "device").exists():
        return 0
    return 2 if (folder / "bridge").exists() else 1


def _is_up(interface: str) -> bool:
    request = struct.pack("16sH14x", interface.encode(), 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        (flags,) = struct.unpack_from("H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)
    return bool(flags & _IFF_UP)


def _dump_addresses() -> Iterator[tuple[int, int, int, str]]:
    """Ask the kernel for all addresses of global scope: family, flags, interface and address."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        header = struct.pack("=IHHII", 24, _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
        sock.settimeout(5)
        sock.send(header + struct.pack("=BBBBI", socket.AF_UNSPEC, 0, 0, 0, 0))
        while True:
            answer = sock.recv(1 << 16)
            while answer:
                length, kind = struct.unpack_from("=IH", answer)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    return
                if kind == _RTM_NEWADDR:
                    yield from _address_of(answer[16:length])
                answer = answer[max((length + 3) & ~3, 16) :]


def _address_of(message: bytes) -> Iterator[tuple[int, int, int, str]]:
    family, _, flags, scope, index = struct.unpack_from("=BBBBI", message)
    attributes, rest = {}, message[8:]
    while len(rest) >= 4:
        length, kind = struct.unpack_from("=HH", rest)
        attributes[kind] = rest[4:length]
        rest = rest[max((length + 3) & ~3, 4) :]
    # Of a link from point to point the first is the peer's.
    packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    if packed and scope == _RT_SCOPE_UNIVERSE and family in (socket.AF_INET, socket.AF_INET6):
        yield family, flags, index, socket.inet_ntop(family, packed)


def host_name() -> str:
    """Return the name of this host, for people who read messages: no peer connects to it."""
    return os.uname().nodename or "localhost"
