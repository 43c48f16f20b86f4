"""Certificates of every kind that Go's TLS takes, as etcdctl does; what it does not take is explained."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from support.certificates import LOOPBACK, Authority, Pair
from torchetcd.etcd import Client, EtcdConnectionFailed
from torchetcd.etcd_server import EtcdServer

pytestmark = pytest.mark.needs_etcd

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

KEYS: dict[str, Callable[[], Key]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA-2048": lambda: rsa.generate_private_key(65537, 2048),
    "RSA-3072": lambda: rsa.generate_private_key(65537, 3072),
}


class Made:
    """A certificate with its key, which may sign others."""

    def __init__(
        self,
        path: Path,
        key: Key,
        by: Made | None = None,
        *,
        ca: bool | None = None,
        hosts: tuple[str, ...] = LOOPBACK,
        days: int = 1,
    ) -> None:
        self.key = key
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path.name)])
        issuer = by or self
        end = datetime.now(timezone.utc) + timedelta(days=days)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(issuer.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - timedelta(days=10))
            .not_valid_after(end)
        )
        if ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
        if hosts:
            names: list[x509.GeneralName] = [x509.DNSName("localhost")]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        signs = None if isinstance(issuer.key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        cert = builder.sign(issuer.key, signs)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path.with_suffix(".pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        path.with_suffix(".key").write_bytes(pem)
        self.pair = Pair(str(path.with_suffix(".pem")), str(path.with_suffix(".key")))


def _served(pair: Pair, trusted: str, prefix: str, client: Pair | None = None) -> None:
    mutual = ["--client-cert-auth", f"--trusted-ca-file={trusted}"] if client else []
    files = [f"--cert-file={pair.cert}", f"--key-file={pair.key}", *mutual]
    options: dict[str, Any] = {"cert": tuple(client)} if client else {}
    with (
        EtcdServer(extra_args=files) as server,
        Client(
            "localhost",
            server.get_port(),
            protocol="https",
            ca_cert=trusted,
            read_timeout=30,
            **options,
        ) as connected,
    ):
        connected.write(prefix, "value")
        assert connected.read(prefix).value == "value"


@pytest.mark.parametrize("kind", KEYS)
def test_keys_and_curves(tmp_path: Path, prefix: str, kind: str) -> None:
    """Of the CA, the server and the client."""
    make = KEYS[kind]
    ca = Made(tmp_path / "ca", make(), ca=True, hosts=())
    server = Made(tmp_path / "server", make(), ca, ca=False)
    client = Made(tmp_path / "client", make(), ca, ca=False)
    _served(server.pair, ca.pair.cert, prefix, client.pair)


@pytest.mark.parametrize("ca", [True, False, None])
def test_one_certificate_for_all(tmp_path: Path, prefix: str, ca: bool | None) -> None:
    """`openssl req -x509` makes one that is a CA's."""
    made = Made(tmp_path / "one", KEYS["RSA-2048"](), ca=ca)
    _served(made.pair, made.pair.cert, prefix)


def test_the_servers_own_is_trusted(tmp_path: Path, prefix: str) -> None:
    """Its CA is in nobody's hands any more."""
    ca = Made(tmp_path / "ca", KEYS["P-256"](), ca=True, hosts=())
    server = Made(tmp_path / "server", KEYS["P-256"](), ca, ca=False)
    _served(server.pair, server.pair.cert, prefix)


def _refused(pair: Pair, trusted: str, prefix: str) -> str:
    with pytest.raises(EtcdConnectionFailed) as caught:
        _served(pair, trusted, prefix)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestRefused:
    """What etcdctl refuses too, with the reason and the way on."""

    def test_trusted_but_expired(self, tmp_path: Path, prefix: str) -> None:
        made = Made(tmp_path / "one", KEYS["P-256"](), ca=True, days=-1)
        assert "expired" in _refused(made.pair, made.pair.cert, prefix)

    def test_trusted_but_of_another_name(self, tmp_path: Path, prefix: str) -> None:
        made = Made(tmp_path / "one", KEYS["P-256"](), ca=True, hosts=())
        assert "subjectAltName" in _refused(made.pair, made.pair.cert, prefix)

    def test_a_common_name_only(self, tmp_path: Path, prefix: str) -> None:
        ca = Made(tmp_path / "ca", KEYS["P-256"](), ca=True, hosts=())
        made = Made(tmp_path / "localhost", KEYS["P-256"](), ca, ca=False, hosts=())
        assert "subjectAltName" in _refused(made.pair, ca.pair.cert, prefix)

    def test_of_a_ca_and_not_the_trusted_one(self, tmp_path: Path, prefix: str) -> None:
        """This one etcdctl takes; a server has no need of it."""
        ca = Made(tmp_path / "ca", KEYS["P-256"](), ca=True, hosts=())
        made = Made(tmp_path / "server", KEYS["P-256"](), ca, ca=True)
        assert "basicConstraints" in _refused(made.pair, ca.pair.cert, prefix)

    def test_another_that_looks_like_the_trusted_one(self, tmp_path: Path, prefix: str) -> None:
        made = Made(tmp_path / "one", KEYS["P-256"](), ca=True)
        trusted = Authority(tmp_path).ca_cert
        assert _refused(made.pair, trusted, prefix)
