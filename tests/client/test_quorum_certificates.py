"""Certificates that agents make apart, of a secret they share: etcd, our client and `ssl` take them."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from typing_extensions import Self

from support.etcd.cluster import take_port
from support.waiting import eventually
from torchetcd import _native
from torchetcd._torchetcd import Client
from torchetcd.etcd import EtcdConnectionFailed
from torchetcd.etcd_server import EtcdServer, find_binary

SECRET = b"of one job, and not of another"
OTHER_SECRET = b"of another job, and not of one"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Material(NamedTuple):
    """The files of an agent."""

    ca: str
    cert: str
    key: str


def material(
    folder: Path, name: str, secret: bytes = SECRET, hosts: Sequence[str] = LOOPBACK
) -> Material:
    """Make the files of an agent that knows the secret."""
    made = Material(*(str(folder / f"{name}-{part}.pem") for part in Material._fields))
    for path, pem in zip(made, _native.quorum_certificates(secret, list(hosts)), strict=True):
        Path(path).write_text(pem, encoding="ascii")
    return made


def native(endpoint: str, files: Material, timeout_s: float = 20.0) -> Client:
    return _native.Client(
        endpoint,
        ca_cert=files.ca,
        cert=files.cert,
        key=files.key,
        request_timeout_s=timeout_s,
    )


class TestWhatIsMade:
    def test_one_ca_and_certificates_of_ones_own(self, tmp_path: Path) -> None:
        one, other = (material(tmp_path, name) for name in ("one", "other"))
        cas = [
            x509.load_pem_x509_certificate(Path(files.ca).read_bytes()) for files in (one, other)
        ]
        assert cas[0].public_key() == cas[1].public_key()
        assert cas[0].subject == cas[1].subject
        for files in (one, other):
            cert = x509.load_pem_x509_certificate(Path(files.cert).read_bytes())
            for ca in cas:
                cert.verify_directly_issued_by(ca)
            names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert names.get_values_for_type(x509.DNSName) == ["localhost"]
            assert names.get_values_for_type(x509.IPAddress) == [
                ipaddress.ip_address("127.0.0.1"),
                ipaddress.ip_address("::1"),
            ]
            assert cert.not_valid_before_utc.year == 1970
            assert cert.not_valid_after_utc.year == 9999
        assert Path(one.key).read_bytes() != Path(other.key).read_bytes()

    def test_the_key_is_derived_as_other_versions_do(self, tmp_path: Path) -> None:
        """By HKDF and nothing else, here of another library."""
        info = b"torchetcd quorum CA key, P-256, version 1\0"
        number = HKDF(hashes.SHA256(), 32, b"torchetcd quorum", info).derive(SECRET)
        key = ec.derive_private_key(int.from_bytes(number, "big"), ec.SECP256R1())
        ca = x509.load_pem_x509_certificate(Path(material(tmp_path, "x").ca).read_bytes())
        assert ca.public_key() == key.public_key()

    def test_the_secrets_are_told_apart(self, tmp_path: Path) -> None:
        subjects = {
            x509.load_pem_x509_certificate(
                Path(material(tmp_path, "x", secret).ca).read_bytes()
            ).subject.rfc4514_string()
            for secret in (SECRET, OTHER_SECRET)
        }
        assert len(subjects) == 2
        assert all(subject.startswith("CN=torchetcd quorum CA ") for subject in subjects)

    def test_what_cannot_be_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 16 bytes, not 15") as caught:
            _native.quorum_certificates(b"hush" * 3 + b"hus", ["h"])
        assert "hush" not in str(caught.value)
        with pytest.raises(ValueError, match="'h:1' cannot be in a certificate"):
            _native.quorum_certificates(SECRET, ["h:1"])


class TestPythonTakesThem:
    """`ssl` with OpenSSL, both sides, names checked, and as strict as it can be."""

    @staticmethod
    def context(files: Material, purpose: ssl.Purpose) -> ssl.SSLContext:
        context = ssl.create_default_context(purpose, cafile=files.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_cert_chain(files.cert, files.key)
        return context

    @pytest.mark.parametrize("name", LOOPBACK)
    @pytest.mark.parametrize("named", [True, False], ids=["server's own", "client without hosts"])
    def test_both_sides(self, tmp_path: Path, name: str, named: bool) -> None:
        server = self.context(material(tmp_path, "server"), ssl.Purpose.CLIENT_AUTH)
        hosts = LOOPBACK if named else ()
        client = self.context(material(tmp_path, "client", hosts=hosts), ssl.Purpose.SERVER_AUTH)
        assert client.check_hostname
        with self.serving(server) as (address, served), socket.create_connection(address) as raw:
            with client.wrap_socket(raw, server_hostname=name) as tls:
                assert tls.recv(2) == b"ok"
            assert served == ["torchetcd quorum member"]

    def test_another_name_and_another_secret_are_refused(self, tmp_path: Path) -> None:
        server = self.context(material(tmp_path, "server"), ssl.Purpose.CLIENT_AUTH)
        client = self.context(material(tmp_path, "client"), ssl.Purpose.SERVER_AUTH)
        stranger = self.context(
            material(tmp_path, "stranger", OTHER_SECRET), ssl.Purpose.SERVER_AUTH
        )
        for context, name, why in [
            (client, "example", "mismatch"),
            (stranger, "localhost", "self.signed certificate|unable to get local issuer"),
        ]:
            with (
                self.serving(server) as (address, _),
                socket.create_connection(address) as raw,
                pytest.raises(ssl.SSLCertVerificationError, match=why),
            ):
                context.wrap_socket(raw, server_hostname=name)

    @staticmethod
    @contextlib.contextmanager
    def serving(context: ssl.SSLContext) -> Iterator[tuple[tuple[str, int], list[str]]]:
        """Take one connection, and say who it is of."""
        served: list[str] = []
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve() -> None:
                near, _ = listener.accept()
                with contextlib.suppress(OSError), context.wrap_socket(near, True) as tls:
                    subject = tls.getpeercert()["subject"]
                    served.append(subject[0][0][1])
                    tls.sendall(b"ok")
                near.close()

            thread = threading.Thread(target=serve)
            thread.start()
            try:
                yield listener.getsockname(), served
            finally:
                thread.join()


def mutual(files: Material, to: str = "") -> list[str]:
    """Return etcd's options for one of its two sides, `to` clients or ("peer-") peers."""
    return [
        f"--{to}client-cert-auth",
        f"--{to}trusted-ca-file={files.ca}",
        f"--{to}cert-file={files.cert}",
        f"--{to}key-file={files.key}",
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a folder for what agents make."""
    return tmp_path_factory.mktemp("quorum")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[EtcdServer]:
    """Run an etcd that only takes clients with the secret."""
    with EtcdServer(extra_args=mutual(material(folder, "server"))) as running:
        yield running


@pytest.mark.needs_etcd
class TestEtcdTakesThem:
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    @pytest.mark.parametrize("hosts", [LOOPBACK, ()], ids=["of a member", "of a client alone"])
    def test_a_client(
        self, server: EtcdServer, folder: Path, host: str, hosts: Sequence[str]
    ) -> None:
        agent = material(folder, "agent", hosts=hosts)
        client = native(f"https://{host}:{server.get_port()}", agent)
        assert client.version()
        client.close()

    def test_over_ipv6(self, folder: Path) -> None:
        with EtcdServer(host="::1", extra_args=mutual(material(folder, "six"))) as server:
            client = native(f"https://[::1]:{server.get_port()}", material(folder, "agent"))
            assert client.version()
            client.close()

    def test_a_client_of_another_secret(self, server: EtcdServer, folder: Path) -> None:
        stranger = material(folder, "stranger", OTHER_SECRET)
        with pytest.raises(
            EtcdConnectionFailed,
            match="made of another secret than ours: all agents of a job need the same one",
        ):
            native(f"https://127.0.0.1:{server.get_port()}", stranger).version()

    def test_etcd_refuses_the_other_secret_too(self, server: EtcdServer, folder: Path) -> None:
        """Where the client is made to trust the server."""
        stranger = material(folder, "stranger", OTHER_SECRET)
        mixed = stranger._replace(ca=material(folder, "agent").ca)
        with pytest.raises(EtcdConnectionFailed, match=r"stranger-cert\.pem"):
            native(f"https://127.0.0.1:{server.get_port()}", mixed, 3).version()

    @pytest.mark.slow(10)
    @pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
    def test_members_of_one_cluster(self, tmp_path: Path, address: str) -> None:
        """Each makes its own; a member with another secret is no peer of theirs."""
        with Quorum(tmp_path, address) as quorum:
            client = native(quorum.endpoints, material(tmp_path, "agent"))
            eventually(lambda: all(name for _, name, *_ in client.member_list()))
            assert len(client.member_list()) == 3
            client.close()


class Quorum:
    """Three members that talk TLS with clients and with one another."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder = folder
        host = f"[{address}]" if ":" in address else address
        self._processes: list[subprocess.Popen[bytes]] = []
        with contextlib.ExitStack() as held:
            ports = [held.enter_context(take_port()).getsockname()[1] for _ in range(6)]
        self._urls = [f"https://{host}:{port}" for port in ports]
        self.endpoints = ",".join(self._urls[:3])

    def __enter__(self) -> Self:
        cluster = ",".join(f"m{number}={self._urls[3 + number]}" for number in range(3))
        for number in range(3):
            client, peer = self._urls[number], self._urls[3 + number]
            files = material(self._folder, f"m{number}")
            log = self._folder / f"m{number}.log"
            with log.open("wb") as output:
                command = [
                    find_binary(),
                    f"--name=m{number}",
                    f"--data-dir={self._folder / f'm{number}'}",
                    f"--listen-client-urls={client}",
                    f"--advertise-client-urls={client}",
                    f"--listen-peer-urls={peer}",
                    f"--initial-advertise-peer-urls={peer}",
                    f"--initial-cluster={cluster}",
                    *mutual(files),
                    *mutual(files, "peer-"),
                ]
                made = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            self._processes.append(made)
        return self

    def __exit__(self, *_exc: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for number in range(3):
            print((self._folder / f"m{number}.log").read_text()[-2000:])
