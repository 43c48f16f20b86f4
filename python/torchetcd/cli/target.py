"""Where etcd is and who asks."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import click

from torchetcd import _defaults
from torchetcd._credentials import find_credentials
from torchetcd._endpoints import is_job
from torchetcd._quorum.clients import Access, access
from torchetcd.aio import Client


@dataclasses.dataclass(frozen=True)
class Target:
    """The etcd that a command talks to, and how it answers."""

    endpoint: str
    protocol: str | None
    ca_cert: str | None
    cert: str | None
    key: str | None
    user: str | None
    quorum_secret_file: str | None
    prefix: str
    timeout: float
    json: bool

    def client(self, endpoint: str | None = None) -> Client:
        """Make a client, which connects at its first call.

        Args:
            endpoint: One of the endpoints; all of them without it.

        Raises:
            click.UsageError: if an option is not valid.
        """
        if self.quorum is not None:
            return self._of_quorum(self.quorum, endpoint)
        if self.key and not self.cert:
            message = "--key needs --cert, which is not given."
            raise click.UsageError(message)
        try:
            credentials = find_credentials(self.user, None)
            return Client(
                endpoint or self.endpoint,
                protocol=self.scheme,
                cert=self.pair,
                ca_cert=self.ca_cert,
                username=credentials.user,
                password=credentials.password,
                password_file=credentials.password_file,
                read_timeout=self.timeout,
            )
        except ValueError as exc:
            raise click.UsageError(str(exc)) from None

    def _of_quorum(self, quorum: Access, endpoint: str | None) -> Client:
        if endpoint is None:
            secret_file = self.quorum_secret_file
            return Client(self.endpoint, read_timeout=self.timeout, quorum_secret_file=secret_file)
        ca_cert = quorum.material.ca if quorum.material else None
        return Client(endpoint, cert=self.pair, ca_cert=ca_cert, read_timeout=self.timeout)

    @property
    def pair(self) -> tuple[str, str] | None:
        """The files of the client's certificate and of its key."""
        if self.quorum is not None:
            material = self.quorum.material
            return (material.cert, material.key) if material else None
        return (self.cert, self.key or self.cert) if self.cert else None

    @functools.cached_property
    def quorum(self) -> Access | None:
        """How the quorum inside a job is reached; `None` where the endpoint names an etcd.

        Raises:
            click.UsageError: if its secret cannot be used.
        """
        if not is_job(self.endpoint):
            return None
        try:
            return access(self.endpoint, self.quorum_secret_file, "--quorum-secret-file")
        except ValueError as exc:
            raise click.UsageError(str(exc)) from None

    @property
    def scheme(self) -> str:
        """The protocol of endpoints that do not say it: https where a TLS option is given."""
        return self.protocol or ("https" if self.ca_cert or self.cert else "http")


def target_of(given: dict[str, Any], **other: Any) -> Target:
    """Make a target of some options; the others have their defaults."""
    usual = {
        "endpoint": _defaults.ENDPOINT,
        "prefix": _defaults.PREFIX,
        "timeout": 10.0,
    }
    names = [field.name for field in dataclasses.fields(Target)]
    chosen = {name: given.get(name) or usual.get(name) for name in names}
    return Target(**{**chosen, "json": False, **other})
