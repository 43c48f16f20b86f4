"""Where an etcd cluster is, as python-etcd's constructor takes it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias
from urllib.parse import urlsplit

#: One host, a list of endpoints in a string ("h1:2379,h2"), or python-etcd's ((host, port), ...).
Host: TypeAlias = "str | Iterable[tuple[str, int]]"


class Address(NamedTuple):
    """One endpoint."""

    protocol: str
    host: str
    port: int

    @property
    def uri(self) -> str:
        """The address as a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol}://{host}:{self.port}"


def parse_addresses(host: Host, port: int, protocol: str) -> list[Address]:
    """Make addresses of what a caller gave; `port` and `protocol` are for parts that name none.

    Raises:
        ValueError: if a part is no endpoint.
    """
    if protocol not in ("http", "https"):
        message = f"The protocol must be http or https, not {protocol!r}."
        raise ValueError(message)
    if isinstance(host, str):
        refuse_credentials(host)
        parts = [_parse(part.strip(), port, protocol) for part in host.split(",")]
    else:
        parts = [_pair(name, number, protocol) for name, number in host]
    if not parts:
        message = "No etcd endpoint was given."
        raise ValueError(message)
    return parts


def refuse_credentials(endpoints: str) -> None:
    """Refuse endpoints with a user or a password in it, without showing it.

    Raises:
        ValueError: if there is an "@" anywhere: a password may hold commas and slashes.
    """
    if "@" in endpoints:
        message = (
            "An etcd endpoint must not hold a user or a password ('...@host'): give them by the "
            "parameter 'user' and by TORCHETCD_PASSWORD_FILE or TORCHETCD_PASSWORD."
        )
        raise ValueError(message)


def _pair(name: object, number: object, protocol: str) -> Address:
    if isinstance(name, str):
        refuse_credentials(name)
    try:
        port = int(number)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        port = -1
    if not isinstance(name, str) or not 0 <= port <= 65535:
        message = f"The etcd endpoint {(name, number)!r} is not a host name and a port."
        raise ValueError(message)
    return Address(protocol, name, port)


def _parse(part: str, port: int, protocol: str) -> Address:
    # An IPv6 address without brackets has no port.
    bare_ipv6 = part.count(":") > 1 and not part.startswith("[") and "://" not in part
    try:
        url = urlsplit(part if "://" in part else f"//{f'[{part}]' if bare_ipv6 else part}")
        scheme, given_port = url.scheme or protocol, url.port
        valid = scheme in ("http", "https") and url.path in ("", "/")
        valid = valid and not (url.query or url.fragment)
    except ValueError:
        valid = False
    # urlsplit leaves brackets in what is no IPv6 address.
    if not valid or not url.hostname or set(url.hostname) & set("[]"):
        message = (
            f"The etcd endpoint {part!r} is not valid. Expected host, host:port, [ipv6]:port, "
            "http://host:port or https://host:port, or several of them separated by commas."
        )
        raise ValueError(message)
    return Address(scheme, url.hostname, port if given_port is None else given_port)
