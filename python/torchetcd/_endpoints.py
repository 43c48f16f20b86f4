"""Where an etcd cluster is, as python-etcd's constructor takes it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

#: One host, a list of endpoints in a string ("h1:2379,h2"), or python-etcd's ((host, port), ...).
Host: TypeAlias = "str | Iterable[tuple[str, int]]"

#: What the endpoint of a quorum inside the job begins with (`_quorum/entries.py`).
JOB_SCHEME = "job://"

_LAST_PORT = 65535
# How much of what somebody gave is shown in a message.
_SHOWN = 200


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


def is_job(endpoint: object) -> bool:
    """Return whether an endpoint names the quorum of a job, and no etcd."""
    return isinstance(endpoint, str) and endpoint.strip().lower().startswith(JOB_SCHEME)


def parse_addresses(host: Host, port: int, protocol: str) -> list[Address]:
    """Make addresses of what a caller gave; `port` and `protocol` are for parts that name none.

    Raises:
        ValueError: if a part is no endpoint.
    """
    if protocol not in ("http", "https"):
        message = f"The protocol must be http or https, not {protocol!r}."
        raise ValueError(message)
    if isinstance(host, str):
        refuse_job(host)
        parts = [_parse(part.strip(), host, port, protocol) for part in host.split(",")]
    else:
        parts = [_pair(name, number, protocol) for name, number in host]
    if not parts:
        message = "No etcd endpoint was given."
        raise ValueError(message)
    return parts


def refuse_job(endpoints: str) -> None:
    """Refuse the quorum of a job where an etcd must be named, and credentials in endpoints.

    Raises:
        ValueError: if it is one, or if there are any.
    """
    refuse_credentials(endpoints)
    if is_job(endpoints):
        message = (
            f"The endpoint {_short(endpoints)} names a quorum inside the job, which only the rendezvous "
            "backend 'etcd-v3', `torchetcd.aio.Client` and the command line know: give the endpoints of "
            "its members here, such as http://host-a:2379."
        )
        raise ValueError(message)


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
    if not isinstance(name, str) or not 0 <= port <= _LAST_PORT:
        message = f"The etcd endpoint {(name, number)!r} is not a host name and a port."
        raise ValueError(message)
    return Address(protocol, name, port)


def _parse(part: str, whole: str, port: int, protocol: str) -> Address:
    try:
        return _endpoint(part, port, protocol, is_part="," in whole)
    except _InvalidError as exc:
        shown = _short(part)
        if part != whole.strip():
            shown = f"{shown} in {_short(whole)}" if part else _short(whole)
        message = (
            f"The etcd endpoint {shown} is not valid: {exc}. Expected host, host:port, [ipv6]:port, "
            "http://host:port or https://host:port, or several of them separated by commas."
        )
        raise ValueError(message) from None


class _InvalidError(Exception):
    """Why a part is no endpoint."""


def _endpoint(part: str, port: int, protocol: str, *, is_part: bool) -> Address:
    """Read one endpoint as the native client does, which is given what comes out."""
    if not part:
        reason = "there is nothing before or after a comma" if is_part else "it is empty"
        raise _InvalidError(reason)
    scheme, separator, rest = part.rpartition("://")
    if separator and scheme.lower() not in ("http", "https"):
        reason = f"its scheme '{scheme[:40]}://' is not http:// or https://"
        raise _InvalidError(reason)
    rest, slash, path = rest.partition("/")
    if path:
        reason = (
            f"it has the path {_short(slash + path)}, and an endpoint is only a host and a port"
        )
        raise _InvalidError(reason)
    host, given_port = _host_and_port(rest)
    number = port if given_port is None else _number(given_port)
    return Address(scheme.lower() or protocol, host, number)


def _host_and_port(text: str) -> tuple[str, str | None]:
    host, port = text, None
    if text.startswith("["):
        host, bracket, after = text[1:].partition("]")
        if not bracket:
            reason = "the bracket is not closed"
            raise _InvalidError(reason)
        if not _is_ipv6(host):
            reason = f"{_short(host)} is not an IPv6 address"
            raise _InvalidError(reason)
        if after and not after.startswith(":"):
            reason = f"{_short(after)} after the bracket is not a port"
            raise _InvalidError(reason)
        return host.lower(), after[1:] if after else None
    if text.count(":") > 1:
        if not _is_ipv6(text):
            reason = "an IPv6 address with a port needs brackets"
            raise _InvalidError(reason)
    elif ":" in text:
        host, _, port = text.partition(":")
    if not host:
        reason = "the host is missing"
        raise _InvalidError(reason)
    if bad := next((c for c in host if not _may_stand_in_a_host(c)), ""):
        hint = ": commas separate endpoints" if bad in "; |" else ""
        reason = f"the host must not contain {bad!r}{hint}"
        raise _InvalidError(reason)
    return host.lower(), port


def _may_stand_in_a_host(character: str) -> bool:
    return character.isascii() and (character.isalnum() or character in ".-_:")


def _is_ipv6(text: str) -> bool:
    try:
        # A zone means something on one host only.
        return "%" not in text and ipaddress.IPv6Address(text) is not None
    except ValueError:
        return False


def _number(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= _LAST_PORT:
        return int(text)
    reason = f"the port {_short(text)} is not a number from 1 to {_LAST_PORT}"
    raise _InvalidError(reason)


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
