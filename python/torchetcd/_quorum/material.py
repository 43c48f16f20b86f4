"""The certificates of a quorum, which all agents make of the same secret."""

from __future__ import annotations

import os
import shutil
import ssl
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path

from torchetcd import _native
from torchetcd._quorum.entries import Entry
from torchetcd._rendezvous.local_address import host_name, interface_addresses


class Material:
    """PEM files for both ports and for clients, in a folder that is deleted with this object."""

    def __init__(self, ca: str, cert: str, key: str) -> None:
        folder = Path(tempfile.mkdtemp(prefix="torchetcd-tls-"))
        self.ca, self.cert, self.key = (
            str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem")
        )
        for path, text in ((self.ca, ca), (self.cert, cert), (self.key, key)):
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
        self._delete = weakref.finalize(self, _delete, os.getpid(), folder)

    def of_server(self) -> ssl.SSLContext:
        """Return what a server uses: whoever does not know the secret is refused."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        return self._loaded(context)

    def of_client(self) -> ssl.SSLContext:
        """Return what a client uses. The secret is what counts: a member may be reached by another name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        return self._loaded(context)

    def _loaded(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.load_verify_locations(self.ca)
        context.load_cert_chain(self.cert, self.key)
        return context


def _delete(owner: int, folder: Path) -> None:
    if os.getpid() == owner:  # a forked child has this object, too
        shutil.rmtree(folder, ignore_errors=True)


def read_secret(what: str, path: str) -> bytes:
    """Read a file with the secret of a job.

    Args:
        what: Where it was named, as the subject of a sentence.
        path: The file.

    Raises:
        ValueError: if it cannot be one.
    """
    try:
        secret = Path(path).read_bytes().strip()
    except OSError as exc:
        message = f"{what} names the file '{path}', which cannot be read: {exc.strerror}."
        raise ValueError(message) from None
    if len(secret) < 16:
        message = (
            f"{what} names the file '{path}', whose secret has {len(secret)} bytes: it needs at least 16, "
            "such as those of `openssl rand -hex 32`."
        )
        raise ValueError(message)
    return secret


def make_material(secret: bytes, own: Iterable[Entry] = ()) -> Material:
    """Make the certificates of this agent.

    Args:
        secret: The secret of the job.
        own: The entries whose member it may run.
    """
    # etcd compares the address from which another member comes with those of its certificate.
    hosts = ["localhost", "127.0.0.1", "::1", host_name(), *interface_addresses()]
    hosts += [entry.host for entry in own]
    ca, cert, key = _native.quorum_certificates(secret, list(dict.fromkeys(hosts)))
    return Material(ca, cert, key)
