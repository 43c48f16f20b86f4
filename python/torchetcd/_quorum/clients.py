"""Clients of a quorum: those of its agents, and those of people, who know its entries alone."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import NamedTuple

from torchetcd._quorum.entries import Entries, parse_entries
from torchetcd._quorum.material import Material, make_material, read_secret
from torchetcd.etcd import Client

#: Of so many entries one who is no agent assumes that the first run members, until the members are known.
_USUAL_SIZE = 3


class Access(NamedTuple):
    """What one who is no agent needs to ask a quorum."""

    entries: Entries
    #: The certificates, if there is a secret. Their files are there for as long as this is.
    material: Material | None
    secret_file: str | None

    def client(self, timeout_s: float) -> Client:
        """Make a client; it connects at its first call."""
        return connect(self.entries, self.material, timeout_s, secret_file=self.secret_file)

    def tls(self) -> ssl.SSLContext | None:
        """Return what a client of HTTP uses."""
        return self.material.of_client() if self.material else None


def entries_of_people(endpoint: str, *, secure: bool = False) -> Entries:
    """Read the entries for one who does not know how many of them run members.

    Raises:
        ValueError: in one sentence, if there can be no quorum of these.
    """
    found = parse_entries(endpoint, 1, secure=secure)
    return found._replace(size=_USUAL_SIZE if len(found.all) >= _USUAL_SIZE else 1)


def access(endpoint: str, secret_file: str | None, what: str) -> Access:
    """Make what one needs who is no agent.

    Args:
        endpoint: `job://...`.
        secret_file: The file with the secret of the job.
        what: Where it was given, as the subject of a sentence.

    Raises:
        ValueError: in one sentence, if it cannot be.
    """
    secret = read_secret(what, secret_file) if secret_file else None
    entries = entries_of_people(endpoint, secure=secret is not None)
    material = None if secret is None else make_material(secret)
    return Access(entries, material, secret_file)


def connect(
    entries: Entries,
    material: Material | None,
    timeout_s: float,
    cluster_id: int | None = None,
    *,
    secret_file: str | None = None,
) -> Client:
    """Make a client of a quorum; it connects at its first call."""
    client = Client(
        ",".join(entry.client_url(entries.scheme) for entry in entries.all),
        protocol=entries.scheme,
        read_timeout=timeout_s,
        ca_cert=material.ca if material else None,
        cert=(material.cert, material.key) if material else None,
        expected_cluster_id=None if cluster_id is None else f"{cluster_id:x}",
    )
    client._typed = (entries.typed or entries.endpoint, secret_file)
    members_at(client, entries, [entry.client_url(entries.scheme) for entry in entries.first])
    return client


def members_at(client: Client, entries: Entries, urls: Sequence[str]) -> None:
    """Let a client try the members first, then the other entries, some at a time: there may be thousands."""
    others = [entry.client_url(entries.scheme) for entry in entries.all]
    client._native.set_endpoints(list(urls), [url for url in others if url not in urls])
