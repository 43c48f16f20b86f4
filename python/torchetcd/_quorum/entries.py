"""The hosts of a quorum, as `job://host-a,host-b,host-c:port` names them."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from torchetcd import _defaults
from torchetcd._endpoints import JOB_SCHEME, parse_addresses, refuse_credentials

_LAST_PORT = 65535
#: The page on which an agent whose entry runs no member says so. etcd has none of this name.
PAGE = "/torchetcd-quorum"
_SEPARATORS = re.compile(r"[\s,]+")


class Entry(NamedTuple):
    """Where a member of the quorum is, or may be."""

    host: str
    port: int
    peer_port: int

    @property
    def name(self) -> str:
        """What messages call it, and etcd its member."""
        return self._at(self.port)

    def client_url(self, scheme: str) -> str:
        """Return where clients reach its member."""
        return f"{scheme}://{self._at(self.port)}"

    def peer_url(self, scheme: str) -> str:
        """Return where the other members reach its member."""
        return f"{scheme}://{self._at(self.peer_port)}"

    def _at(self, port: int) -> str:
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


class Entries(NamedTuple):
    """All hosts that may run a member, in the order in which the job names them."""

    all: tuple[Entry, ...]
    #: How many members there are.
    size: int
    #: "https" where there is a secret.
    scheme: str
    #: The endpoint as somebody typed it.
    typed: str = ""

    @property
    def first(self) -> tuple[Entry, ...]:
        """Those that run the first members."""
        return self.all[: self.size]

    @property
    def majority(self) -> int:
        """How many members decide."""
        return self.size // 2 + 1

    @property
    def endpoint(self) -> str:
        """Return the endpoint that names them."""
        return JOB_SCHEME + ",".join(entry.name for entry in self.all)

    def of_peer_url(self, url: str) -> Entry | None:
        """Return whose member is reached there by the others."""
        return next((entry for entry in self.all if entry.peer_url(self.scheme) == url), None)

    def token(self, run_id: str) -> str:
        """Return the name of the quorum of one job. etcd refuses a member of another one."""
        parts = [run_id, str(self.size), *(entry.peer_url("") for entry in self.first)]
        return "torchetcd-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def initial_cluster(self) -> str:
        """Return the first members, in the form that etcd takes."""
        return ",".join(f"{entry.name}={entry.peer_url(self.scheme)}" for entry in self.first)

    def first_member_id(self, entry: Entry, token: str) -> int:
        """Return the id of a first member, which etcd makes of its URL and the token.

        Source: etcd `server/etcdserver/api/membership/member.go`, `computeMemberID`.
        """
        digest = hashlib.sha1((entry.peer_url(self.scheme) + token).encode()).digest()
        return int.from_bytes(digest[:8], "big")

    def cluster_id(self, token: str) -> int:
        """Return the id of the cluster of the first members, which it keeps when its members change.

        Source: etcd `server/etcdserver/api/membership/cluster.go`, `genID`.
        """
        ids = sorted(self.first_member_id(entry, token) for entry in self.first)
        digest = hashlib.sha1(b"".join(each.to_bytes(8, "big") for each in ids)).digest()
        return int.from_bytes(digest[:8], "big")


def parse_entries(
    endpoint: str, size: int, peer_port: int | None = None, *, secure: bool = False
) -> Entries:
    """Read the hosts of a quorum.

    Args:
        endpoint: `job://` and the hosts, each with or without a port, separated by commas or white space.
        size: How many members there are.
        peer_port: The port between members; without it, the one after the port of the entry. Where an entry
            of the same host has that port, the next free one.
        secure: Whether there is TLS.

    Raises:
        ValueError: in one sentence, if there can be no quorum of these.
    """
    refuse_credentials(endpoint)
    typed = endpoint.strip()
    listed = [part for part in _SEPARATORS.split(typed[len(JOB_SCHEME) :]) if part]
    if not listed:
        message = (
            f"The endpoint '{endpoint}' names no host: give those that run the quorum, such as "
            "job://host-a,host-b,host-c."
        )
        raise ValueError(message)
    with_scheme = next((part for part in listed if "://" in part), None)
    if with_scheme is not None:
        message = (
            f"The entry '{with_scheme}' of the endpoint '{endpoint}' must be a host or host:port, without "
            "a scheme."
        )
        raise ValueError(message)
    addresses = parse_addresses(",".join(listed), _defaults.PORT, "http")
    _check(endpoint, [(address.host, address.port) for address in addresses], size)
    # Several entries of one host are for a trial on one machine.
    taken = {(address.host, address.port) for address in addresses}
    found = []
    for address in addresses:
        peer = address.port + 1 if peer_port is None else peer_port
        while (address.host, peer) in taken:
            peer += 1
        if peer > _LAST_PORT:
            message = (
                f"The entry '{address.host}:{address.port}' leaves no port for the other members, which use "
                "the next free one: give a lower port, or the rendezvous parameter 'quorum_peer_port'."
            )
            raise ValueError(message)
        taken.add((address.host, peer))
        found.append(Entry(address.host, address.port, peer))
    return Entries(tuple(found), size, "https" if secure else "http", typed)


def _check(endpoint: str, hosts: list[tuple[str, int]], size: int) -> None:
    everywhere = next((host for host, _ in hosts if host in ("0.0.0.0", "::")), None)
    if everywhere is not None:
        message = (
            f"The entry '{everywhere}' of the endpoint '{endpoint}' stands for all addresses of any host: "
            "give the name or the address by which the others reach that host."
        )
        raise ValueError(message)
    if len(set(hosts)) < len(hosts):
        twice = max(hosts, key=hosts.count)
        message = f"The endpoint '{endpoint}' names '{twice[0]}:{twice[1]}' twice."
        raise ValueError(message)
    if size > len(hosts):
        named = "only one host" if len(hosts) == 1 else f"only {len(hosts)} hosts"
        message = (
            f"A quorum of {size} members needs {size} hosts, and the endpoint '{endpoint}' names {named}: "
            f"name more, or give the rendezvous parameter 'quorum' as {1 if len(hosts) < 3 else 3}."
        )
        raise ValueError(message)
