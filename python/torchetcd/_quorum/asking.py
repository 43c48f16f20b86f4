"""Asks an entry of a quorum who is there: an agent, a member, something else or nobody."""

from __future__ import annotations

import contextlib
import enum
import json
import socket
import ssl
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any

from torchetcd._quorum.entries import PAGE, Entry

#: How long an entry may take to answer.
PATIENCE_S = 2.0
_AT_ONCE = 16
_LONGEST = 1 << 20


class Who(enum.Enum):
    """Who is at an entry."""

    AGENT = enum.auto()
    #: A member, of this quorum or of another one.
    ETCD = enum.auto()
    #: Nobody, on a host that is up.
    NOBODY = enum.auto()
    #: The host does not answer, or its name is not known.
    SILENT = enum.auto()
    #: Somebody who does not belong to this quorum.
    OTHER = enum.auto()
    #: Somebody with another secret, or without one.
    UNTRUSTED = enum.auto()


@dataclass(frozen=True)
class Answer:
    """What came back."""

    entry: Entry
    who: Who
    #: For people: what is wrong there.
    text: str = ""
    #: What an agent says of itself.
    says: dict[str, Any] = field(default_factory=dict, compare=False)
    #: The cluster of a member.
    cluster: int = 0
    #: Whether it knows a member that was started, itself included: they say so once there is a leader.
    #: `None` if it does not say.
    knows_started: bool | None = None


def ask_all(entries: Iterable[Entry], tls: ssl.SSLContext | None) -> list[Answer]:
    """Ask several entries at once; the answers are in their order."""
    listed = list(entries)
    if not listed:
        return []
    with ThreadPoolExecutor(min(len(listed), _AT_ONCE), "torchetcd-ask") as pool:
        return list(pool.map(lambda entry: ask(entry, tls), listed))


def ask(entry: Entry, tls: ssl.SSLContext | None) -> Answer:
    """Ask one entry: first for a member, then for an agent.

    A member is asked at the port for other members, because etcd serves no clients before it has a leader.
    """
    found = ask_member(entry, tls)
    if found.who is Who.ETCD:
        return found
    try:
        status, _, body = _get(entry, entry.port, tls, PAGE)
        says = json.loads(body) if status == 200 else None
        if isinstance(says, dict) and "token" in says:
            return Answer(entry, Who.AGENT, says=says)
        # Who is no agent may not know the port for other members.
        status, _, body = _get(entry, entry.port, tls, "/version")
        version = json.loads(body) if status == 200 else None
        if isinstance(version, dict) and "etcdserver" in version:
            # A member that starts, or hung until now, says only at the other port which quorum is its own.
            again = ask_member(entry, tls)
            return again if again.who is Who.ETCD else Answer(entry, Who.ETCD)
    except (OSError, HTTPException, ValueError) as exc:
        return _failed(entry, entry.port, tls, exc)
    return Answer(entry, Who.OTHER, "another program answers there")


def ask_member(entry: Entry, tls: ssl.SSLContext | None) -> Answer:
    """Ask for a member alone.

    It says which members it knows, as it does to a member that joins (etcd `etcdhttp/peer.go`). It needs no
    leader for that.
    """
    try:
        status, cluster, body = _get(entry, entry.peer_port, tls, "/members")
        listed = json.loads(body) if status == 200 else {}
        if cluster is not None and not isinstance(listed, dict):
            # Started with its data, a member of 3.5.1 knows nobody before it has heard of a leader (null).
            started = None if listed is None else any(each.get("clientURLs") for each in listed)
            return Answer(entry, Who.ETCD, cluster=int(cluster, 16), knows_started=started)
    except (OSError, HTTPException, ValueError, AttributeError, TypeError) as exc:
        return _failed(entry, entry.peer_port, tls, exc)
    return Answer(entry, Who.OTHER, "another program answers there")


def _get(
    entry: Entry, port: int, tls: ssl.SSLContext | None, page: str
) -> tuple[int, str | None, bytes]:
    connection = HTTPConnection(entry.host, port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.sock = socket.create_connection((entry.host, port), PATIENCE_S)
        if tls is not None:
            connection.sock = tls.wrap_socket(connection.sock, server_hostname=entry.host)
        # The other side closes first: ours would keep its port for a minute, which may be that of an entry.
        connection.request("GET", page, headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.getheader("X-Etcd-Cluster-Id"), answer.read(_LONGEST)


def _failed(entry: Entry, port: int, tls: ssl.SSLContext | None, exc: Exception) -> Answer:
    who, text = _meaning(exc)
    closed = who in (Who.OTHER, Who.NOBODY) and not isinstance(exc, ConnectionRefusedError)
    if closed and tls is None and _speaks_tls(entry, port):
        who, text = Who.UNTRUSTED, "it speaks TLS: quorum_secret_file is given there and not here"
    return Answer(entry, who, text)


#: What Python's TLS says of a server that speaks none.
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_EOF_WHILE_READING")


def _meaning(exc: Exception) -> tuple[Who, str]:  # noqa: PLR0911 - one table of cases
    if isinstance(exc, ssl.SSLError):
        if exc.reason in _NO_TLS:
            return Who.UNTRUSTED, "it speaks no TLS, as if it had no quorum_secret_file"
        return Who.UNTRUSTED, "its quorum_secret_file holds another secret"
    if isinstance(exc, socket.gaierror):
        return Who.SILENT, "its name is not known"
    if isinstance(exc, TimeoutError):
        return Who.SILENT, f"it does not answer within {PATIENCE_S:.0f} s"
    if isinstance(exc, ConnectionRefusedError):
        return Who.NOBODY, "no agent runs there (connection refused)"
    if isinstance(exc, ConnectionError):
        # As by a member that starts or ends.
        return Who.NOBODY, "it closes the connection"
    if isinstance(exc, OSError):
        return Who.SILENT, f"it cannot be reached ({exc.strerror or exc})"
    return Who.OTHER, "another program answers there"


def _speaks_tls(entry: Entry, port: int) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        contextlib.suppress(OSError),
        socket.create_connection((entry.host, port), PATIENCE_S) as sock,
    ):
        try:
            context.wrap_socket(sock, server_hostname=entry.host).close()
        except ssl.SSLError as exc:
            # It wants a certificate, which only a server of TLS does.
            return exc.reason not in _NO_TLS
        return True
    return False
