"""etcd with authentication: its users, by the JSON form of its API."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from torchetcd.etcd_server import EtcdServer

ROOT_PASSWORD = "root's"
# The cheapest hash: etcd spends most of a log-in on it.
CHEAP = "--bcrypt-cost=4"
_ATTEMPTS = 5


class Users:
    """The users of one server, on which authentication is enabled by the constructor."""

    def __init__(self, server: EtcdServer) -> None:
        self._base = f"http://{server.get_endpoint()}"
        self._enabled = False
        self.add("root", ROOT_PASSWORD, role="root")
        self.enable()

    def enable(self) -> None:
        self._post("/v3/auth/enable", {})
        self._enabled = True

    def disable(self) -> None:
        self._post("/v3/auth/disable", {})
        self._enabled = False

    def add(self, name: str, password: str, *, prefix: str = "", role: str = "") -> None:
        """Add a user who may read and write below `prefix`, or has a role that is there."""
        if prefix:
            role = _role_of(name)
            self._post("/v3/auth/role/add", {"name": role})
            self.allow(name, prefix)
        self._post("/v3/auth/user/add", {"name": name, "password": password})
        self._post("/v3/auth/user/grant", {"user": name, "role": role})

    def allow(self, name: str, prefix: str) -> None:
        """Let a user read and write all that begins with this."""
        permission = {"permType": "READWRITE", "key": _b64(prefix), "range_end": _end_of(prefix)}
        self._post("/v3/auth/role/grant", {"name": _role_of(name), "perm": permission})

    def forbid(self, name: str, prefix: str) -> None:
        """Take back what `allow` gave."""
        revoked = {"role": _role_of(name), "key": _b64(prefix), "range_end": _end_of(prefix)}
        self._post("/v3/auth/role/revoke", revoked)

    def change_password(self, name: str, password: str) -> None:
        """Change a password, which also makes all simple tokens of the user invalid."""
        self._post("/v3/auth/user/changepw", {"name": name, "password": password})

    def token(self, name: str = "root", password: str = ROOT_PASSWORD) -> str:
        """Log in."""
        body = {"name": name, "password": password}
        answer = self._request("/v3/auth/authenticate", body, None)
        return str(answer["token"])

    def accepts(self, token: str) -> bool:
        """Return whether a request with this token is let in (whatever it may do there)."""
        try:
            self._request("/v3/kv/range", {"key": _b64("/")}, token)
        except urllib.error.HTTPError as exc:
            text = exc.read().decode()
            return "invalid auth token" not in text
        return True

    def _post(self, path: str, body: dict[str, Any]) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                self._request(path, body, self.token() if self._enabled else None)
            except urllib.error.HTTPError as exc:
                # A token of one second may be over at once, or made old by another change.
                told = exc.read().decode()
                stale = "invalid auth token" in told or "auth store is old" in told
                if not stale or attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def _request(self, path: str, body: dict[str, Any], token: str | None) -> dict[str, Any]:
        request = urllib.request.Request(f"{self._base}{path}", json.dumps(body).encode())
        if token is not None:
            request.add_header("Authorization", token)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return dict(json.load(answer))


def jwt_option(directory: Path, ttl_s: int) -> str:
    """Make the keys for tokens of this lifetime, and the option of etcd that uses them."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private, public = directory / "jwt.key", directory / "jwt.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return f"--auth-token=jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl={ttl_s}s"


def _role_of(name: str) -> str:
    return f"role of {name}"


def _end_of(prefix: str) -> str:
    return _b64(prefix[:-1] + chr(ord(prefix[-1]) + 1))


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
