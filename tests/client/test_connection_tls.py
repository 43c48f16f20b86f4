"""TLS: certificates of both sides, and what is said when one of them will not do."""

from __future__ import annotations

import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousParameters

from support.certificates import Authority, Pair
from support.network.proxy import Proxy
from support.network.tls import TlsProxy
from support.processes.nodes import Run
from support.stores import in_background, opened
from torchetcd.etcd import Client, EtcdConnectionFailed
from torchetcd.etcd_rendezvous import create_rdzv_handler
from torchetcd.etcd_server import EtcdServer, find_binary, find_free_port
from torchetcd.etcd_store import StoreConnectionError

pytestmark = pytest.mark.needs_etcd

# Long beside the time in which a certificate must be refused.
READ_TIMEOUT_S = 30


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide the directory of the certificates."""
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def ca(directory: Path) -> Authority:
    """Provide the CA of the servers."""
    return Authority(directory)


@pytest.fixture(scope="module")
def stranger(directory: Path) -> Authority:
    """Provide a CA that no server knows."""
    return Authority(directory, "stranger")


@pytest.fixture(scope="module")
def mine(ca: Authority) -> Pair:
    """Provide a client certificate that is good."""
    return ca.issue("client")


@pytest.fixture(scope="module")
def server(ca: Authority) -> Iterator[EtcdServer]:
    """Run a server with a certificate."""
    with _server(ca.issue("server")) as running:
        yield running


@pytest.fixture(scope="module")
def mutual(ca: Authority) -> Iterator[EtcdServer]:
    """Run a server that wants a certificate of its clients."""
    pair = ca.issue("mutual")
    with _server(pair, "--client-cert-auth", f"--trusted-ca-file={ca.ca_cert}") as running:
        yield running


def _server(pair: Pair, *more: str) -> EtcdServer:
    return EtcdServer(extra_args=[f"--cert-file={pair.cert}", f"--key-file={pair.key}", *more])


def _client(server: EtcdServer, host: str = "localhost", **options: Any) -> Client:
    given: dict[str, Any] = {"protocol": "https", "read_timeout": READ_TIMEOUT_S} | options
    return Client(host, server.get_port(), **given)


def _refusal(client: Client) -> str:
    """What a call says that is refused at once."""
    started = time.monotonic()
    with client, pytest.raises(EtcdConnectionFailed) as caught:
        client.write("/x", "y")
    assert time.monotonic() - started < READ_TIMEOUT_S / 2
    text = str(caught.value)
    assert text.count(client.base_uri) == 1
    return text


class TestOneSided:
    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
    def test_keys_leases_and_watches(
        self, server: EtcdServer, ca: Authority, prefix: str, host: str
    ) -> None:
        with _client(server, host, ca_cert=ca.ca_cert) as client:
            index = client.write(prefix, "one").modifiedIndex
            client.write(prefix, "two", ttl=60)
            assert client.read(prefix).ttl > 0
            seen = client.watch(prefix, index=index + 1)
            assert (seen.value, seen.modifiedIndex) == ("two", index + 1)
            assert client.machines == [f"https://{server.get_endpoint()}"]
            assert client.version.count(".") == 2

    def test_an_ipv6_address(self, server: EtcdServer, ca: Authority, prefix: str) -> None:
        # etcd listens on one address; the names that its certificate is for are what counts.
        with (
            Proxy(server.get_port(), "::1") as proxy,
            Client(f"[::1]:{proxy.port}", protocol="https", ca_cert=ca.ca_cert) as client,
        ):
            client.write(prefix, "y")
            assert client.read(prefix).value == "y"

    def test_store(self, server: EtcdServer, ca: Authority, prefix: str) -> None:
        with _client(server, ca_cert=ca.ca_cert) as client, opened(client, prefix) as store:
            setter = in_background(lambda: store.set("late", "value"), after=0.1)
            assert store.get("late") == b"value"
            assert [store.add("counter", 2) for _ in range(3)] == [2, 4, 6]
            setter.join()

    @pytest.mark.parametrize("name", ["ca_cert", "cacert"])
    def test_rendezvous(self, server: EtcdServer, ca: Authority, prefix: str, name: str) -> None:
        config = {"protocol": "https", name: ca.ca_cert}
        _rendezvous_of_one(server.get_endpoint(), prefix, config)

    def test_the_endpoint_says_https(self, server: EtcdServer, ca: Authority, prefix: str) -> None:
        endpoint = f"https://{server.get_endpoint()}"
        _rendezvous_of_one(endpoint, prefix, {"ca_cert": ca.ca_cert})

    def test_the_systems_authorities(
        self, server: EtcdServer, ca: Authority, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", ca.ca_cert)
        with _client(server) as client:
            client.write(prefix, "y")

    def test_no_authority_at_all(
        self, server: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "none.pem").touch()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
        monkeypatch.delenv("SSL_CERT_DIR", raising=False)
        with (
            _client(server) as client,
            pytest.raises(ValueError, match="no CA certificates, and none was given"),
        ):
            client.read("/x")


class TestRefused:
    def test_no_ca_given(self, server: EtcdServer) -> None:
        text = _refusal(_client(server))
        assert "not signed by a CA that this system trusts, and no CA certificate was given" in text

    def test_another_ca(self, server: EtcdServer, stranger: Authority) -> None:
        text = _refusal(_client(server, ca_cert=stranger.ca_cert))
        assert f"not signed by a CA in '{stranger.ca_cert}'" in text

    def test_every_endpoint_is_named(self, server: EtcdServer, stranger: Authority) -> None:
        text = _refusal(_client(server, "localhost,127.0.0.1", ca_cert=stranger.ca_cert))
        assert f"https://127.0.0.1:{server.get_port()}: its certificate is not signed" in text

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
    def test_another_host_name(self, ca: Authority, host: str) -> None:
        with _server(ca.issue("elsewhere", ["elsewhere.example"])) as elsewhere:
            text = _refusal(_client(elsewhere, host, ca_cert=ca.ca_cert))
        assert f'certificate not valid for name "{host}"' in text
        assert "elsewhere.example" in text

    def test_expired(self, ca: Authority) -> None:
        with _server(ca.issue("expired", expired=True)) as expired:
            text = _refusal(_client(expired, ca_cert=ca.ca_cert))
        assert "certificate expired" in text

    def test_one_endpoint_of_two(self, server: EtcdServer, ca: Authority, prefix: str) -> None:
        with _server(ca.issue("elsewhere", ["elsewhere.example"])) as elsewhere:
            hosts = (("localhost", elsewhere.get_port()), ("localhost", server.get_port()))
            for _ in range(3):  # a client begins at any of the two
                with Client(hosts, protocol="https", ca_cert=ca.ca_cert) as client:
                    client.write(prefix, "y")

    def test_a_store_and_a_rendezvous(
        self, server: EtcdServer, stranger: Authority, prefix: str
    ) -> None:
        said = f"https://{server.get_endpoint()}: its certificate is not signed by a CA in "
        with _client(server, ca_cert=stranger.ca_cert) as client, opened(client, prefix) as store:
            for call in (lambda: store.set("x", "y"), lambda: store.get("x")):
                with pytest.raises(StoreConnectionError, match=said):
                    call()
        config = {"protocol": "https", "cacert": stranger.ca_cert}
        with pytest.raises(RendezvousConnectionError, match=said):
            create_rdzv_handler(_parameters(server.get_endpoint(), prefix, config))

    def test_http_to_https(self, server: EtcdServer) -> None:
        client = _client(server, protocol="http", read_timeout=4)
        with client, pytest.raises(EtcdConnectionFailed, match=r"4\.0 s: http:.*want https\?"):
            client.write("/x", "y")

    def test_https_to_http(self, etcd_server: EtcdServer, ca: Authority) -> None:
        client = _client(etcd_server, ca_cert=ca.ca_cert, read_timeout=4)
        with client, pytest.raises(EtcdConnectionFailed, match=r"4\.0 s: https:.*want.* http\?"):
            client.write("/x", "y")

    def test_nobody_finishes_the_handshake(self, ca: Authority) -> None:
        with find_free_port() as sock:
            client = Client(
                "localhost",
                sock.getsockname()[1],
                protocol="https",
                ca_cert=ca.ca_cert,
                read_timeout=1,
            )
            with client, pytest.raises(EtcdConnectionFailed, match=rf"{client.base_uri}: no "):
                client.write("/x", "y")


class TestFiles:
    """Settings that cannot work are a ValueError, before anything is sent."""

    @pytest.fixture
    def garbage(self, tmp_path: Path) -> str:
        path = tmp_path / "garbage.pem"
        path.write_bytes(b"\xff no PEM \x00")
        return str(path)

    @pytest.fixture
    def said(self, server: EtcdServer, ca: Authority) -> Callable[..., str]:
        """Provide what a client says that has these options."""

        def call(**options: Any) -> str:
            with _client(server, **{"ca_cert": ca.ca_cert} | options) as client:
                with pytest.raises(ValueError, match=r"^The [^\n]*\.$") as caught:
                    client.read("/x")
                return str(caught.value)

        return call

    def test_a_missing_file(self, said: Callable[..., str], mine: Pair) -> None:
        for options, what in (
            ({"ca_cert": "/nowhere.pem"}, "CA certificate"),
            ({"cert": "/nowhere.pem"}, "client certificate"),
            ({"cert": (mine.cert, "/nowhere.pem")}, "client key"),
        ):
            text = said(**options)
            assert f"The {what} file '/nowhere.pem' cannot be read: No such file" in text

    def test_a_broken_certificate(self, said: Callable[..., str], tmp_path: Path) -> None:
        path = tmp_path / "broken.pem"
        path.write_text("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")
        assert f"The CA certificate file '{path}' is not valid PEM" in said(ca_cert=str(path))

    def test_no_pem(self, said: Callable[..., str], mine: Pair, garbage: str) -> None:
        for options, what in (
            ({"ca_cert": garbage}, "CA certificate"),
            ({"cert": garbage}, "client certificate"),
            ({"cert": (mine.cert, garbage)}, "client key"),
        ):
            assert f"The {what} file '{garbage}' holds no PEM block" in said(**options)

    def test_the_files_are_swapped(self, said: Callable[..., str], mine: Pair) -> None:
        assert f"'{mine.key}' holds no PEM block" in said(cert=(mine.key, mine.cert))

    def test_the_key_of_another_certificate(
        self, said: Callable[..., str], mine: Pair, stranger: Authority
    ) -> None:
        other = stranger.issue("other")
        text = said(cert=(mine.cert, other.key))
        assert f"'{mine.cert}', key '{other.key}'" in text
        assert "KeyMismatch" in text

    def test_an_encrypted_key(self, said: Callable[..., str], mine: Pair, tmp_path: Path) -> None:
        path = tmp_path / "encrypted.pem"
        path.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n")
        assert f"The client key file '{path}' is encrypted" in said(cert=(mine.cert, str(path)))

    def test_rendezvous(self, server: EtcdServer, garbage: str, prefix: str) -> None:
        config = {"protocol": "https", "ca_cert": garbage}
        with pytest.raises(RendezvousConnectionError, match="holds no PEM block") as caught:
            create_rdzv_handler(_parameters(server.get_endpoint(), prefix, config))
        assert isinstance(caught.value.__cause__, ValueError)


class TestMutual:
    def test_keys(self, mutual: EtcdServer, ca: Authority, mine: Pair, prefix: str) -> None:
        with _client(mutual, ca_cert=ca.ca_cert, cert=tuple(mine)) as client:
            client.write(prefix, "y")
            assert client.read(prefix).value == "y"

    def test_one_file_for_both(
        self, mutual: EtcdServer, ca: Authority, mine: Pair, prefix: str, tmp_path: Path
    ) -> None:
        both = tmp_path / "both.pem"
        both.write_text(Path(mine.cert).read_text() + Path(mine.key).read_text())
        with _client(mutual, ca_cert=ca.ca_cert, cert=str(both)) as client:
            client.write(prefix, "y")

    @pytest.mark.parametrize("names", [("ssl_cert", "ssl_cert_key"), ("cert", "key")])
    def test_rendezvous(
        self, mutual: EtcdServer, ca: Authority, mine: Pair, prefix: str, names: tuple[str, str]
    ) -> None:
        config = {
            "protocol": "https",
            "ca_cert": ca.ca_cert,
            names[0]: mine.cert,
            names[1]: mine.key,
        }
        _rendezvous_of_one(mutual.get_endpoint(), prefix, config)

    def test_two_nodes(self, mutual: EtcdServer, ca: Authority, mine: Pair) -> None:
        config: dict[str, Any] = {"ssl_cert": mine.cert, "ssl_cert_key": mine.key}
        config["ca_cert"] = ca.ca_cert
        with (
            _client(mutual, ca_cert=ca.ca_cert, cert=tuple(mine)) as client,
            Run(mutual.get_endpoint(), client) as run,
        ):
            first, second = run.nodes(2, protocol="https", **config)
            first.start("join")
            second.start("join")
            assert {first.finish().rank, second.finish().rank} == {0, 1}
            first.start("store_get", "key")
            second.call("store_set", "key", "value")
            assert first.finish() == b"value"

    # With TLS 1.3 etcd refuses after the handshake, and the reason can get lost on the way: then the
    # client tries again.

    def test_without_one(self, mutual: EtcdServer, ca: Authority) -> None:
        text = _refusal(_client(mutual, ca_cert=ca.ca_cert))
        assert "wants a client certificate, and none was given" in text

    @pytest.mark.parametrize("kind", ["stranger", "expired"])
    def test_a_wrong_one(
        self, mutual: EtcdServer, ca: Authority, stranger: Authority, kind: str
    ) -> None:
        issuer = stranger if kind == "stranger" else ca
        pair = issuer.issue(f"{kind}-client", expired=kind == "expired")
        text = _refusal(_client(mutual, ca_cert=ca.ca_cert, cert=tuple(pair)))
        assert f"refuses the client certificate ('{pair.cert}', key '{pair.key}')" in text


class TestVersions:
    """TLS 1.2 and 1.3, each as the only version that the server speaks."""

    @pytest.fixture(params=["TLSv1_2", "TLSv1_3"])
    def version(self, request: pytest.FixtureRequest) -> ssl.TLSVersion:
        return ssl.TLSVersion[request.param]

    def test_one_sided(
        self, etcd_server: EtcdServer, ca: Authority, prefix: str, version: ssl.TLSVersion
    ) -> None:
        with TlsProxy(etcd_server.get_port(), ca.issue("proxy"), version) as proxy:
            config = {"protocol": "https", "ca_cert": ca.ca_cert}
            _rendezvous_of_one(f"localhost:{proxy.port}", prefix, config)
            assert set(proxy.spoken) == {version.name.replace("_", ".")}

    def test_mutual(
        self,
        etcd_server: EtcdServer,
        ca: Authority,
        stranger: Authority,
        mine: Pair,
        prefix: str,
        version: ssl.TLSVersion,
    ) -> None:
        pair = ca.issue("proxy")
        with TlsProxy(etcd_server.get_port(), pair, version, client_ca=ca.ca_cert) as proxy:
            options: dict[str, Any] = {"protocol": "https", "ca_cert": ca.ca_cert}
            options["read_timeout"] = READ_TIMEOUT_S
            with Client("localhost", proxy.port, cert=(mine.cert, mine.key), **options) as client:
                client.write(prefix, "y")
            assert set(proxy.spoken) == {version.name.replace("_", ".")}
            text = _refusal(Client("localhost", proxy.port, **options))
            assert "wants a client certificate, and none was given" in text
            for wrong in (stranger.issue("other"), ca.issue("late", expired=True)):
                text = _refusal(
                    Client("localhost", proxy.port, cert=(wrong.cert, wrong.key), **options)
                )
                assert f"refuses the client certificate ('{wrong.cert}'" in text

    def test_older_ones_are_refused(self, etcd_server: EtcdServer, ca: Authority) -> None:
        pair = ca.issue("proxy")
        with TlsProxy(etcd_server.get_port(), pair, ssl.TLSVersion.TLSv1_1) as proxy:
            options: dict[str, Any] = {"protocol": "https", "ca_cert": ca.ca_cert}
            options["read_timeout"] = READ_TIMEOUT_S
            text = _refusal(Client("localhost", proxy.port, **options))
            assert "it speaks no TLS 1.2 or 1.3" in text
            assert not proxy.spoken

    @pytest.mark.parametrize("version", ["TLS1.2", "TLS1.3"])
    def test_etcd_itself(self, ca: Authority, mine: Pair, prefix: str, version: str) -> None:
        told = subprocess.run([find_binary(), "--help"], capture_output=True, check=False)
        if b"--tls-max-version" not in told.stdout + told.stderr:
            pytest.skip("this etcd has no options for it (3.5.8 and later have)")
        limits = [f"--tls-min-version={version}"]
        limits += [f"--tls-max-version={version}"] if version == "TLS1.2" else []
        mutual = ["--client-cert-auth", f"--trusted-ca-file={ca.ca_cert}"]
        with (
            _server(ca.issue("limited"), *mutual, *limits) as server,
            _client(server, ca_cert=ca.ca_cert, cert=tuple(mine)) as client,
        ):
            client.write(prefix, "one", ttl=60)
            assert client.watch(prefix, index=1, timeout=10).value == "one"


@pytest.mark.slow(14)
def test_certificates_replaced_while_in_use(
    server: EtcdServer, ca: Authority, stranger: Authority, prefix: str, tmp_path: Path
) -> None:
    """What once worked is not given up: a connection that breaks meanwhile comes back."""
    ca_cert = tmp_path / "ca.pem"
    good = Path(ca.ca_cert).read_bytes()
    ca_cert.write_bytes(good)
    with (
        Proxy(server.get_port()) as proxy,
        Client("localhost", proxy.port, protocol="https", ca_cert=str(ca_cert)) as client,
        _client(server, ca_cert=ca.ca_cert) as other,
        opened(client, prefix) as store,
        opened(other, prefix) as other_store,
    ):
        store.set("a", "b")
        waited: list[bytes] = []
        waiting = in_background(lambda: waited.append(store.get("late")))
        client.read_timeout = 4
        # Before the cut: an attempt that had read the good file could still be under way afterwards.
        ca_cert.write_bytes(Path(stranger.ca_cert).read_bytes())
        proxy.cut()
        with pytest.raises(EtcdConnectionFailed):
            client.read("/x")
        proxy.mend()
        with pytest.raises(EtcdConnectionFailed, match=r"4\.0 s: .*not signed by a CA in"):
            client.read("/x")
        ca_cert.write_bytes(b"")
        with pytest.raises(EtcdConnectionFailed, match=r"4\.0 s: .*holds no PEM block"):
            client.read("/x")
        ca_cert.write_bytes(good)
        client.read_timeout = READ_TIMEOUT_S
        client.write("/x", "y")
        other_store.set("late", "value")
        waiting.join()
        assert waited == [b"value"]


def test_a_client_certificate_runs_out_and_is_replaced(
    mutual: EtcdServer, ca: Authority, prefix: str, tmp_path: Path
) -> None:
    """A connection that is open goes on, and the next one takes what the files hold then."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def replace(pair: Pair) -> None:
        cert.write_bytes(Path(pair.cert).read_bytes())
        key.write_bytes(Path(pair.key).read_bytes())

    replace(ca.issue("first"))
    options: dict[str, Any] = {"protocol": "https", "ca_cert": ca.ca_cert}
    options["cert"] = (str(cert), str(key))
    with (
        Proxy(mutual.get_port()) as proxy,
        Client("localhost", proxy.port, **options, read_timeout=READ_TIMEOUT_S) as client,
    ):
        client.write(prefix, "one")
        replace(ca.issue("second", expired=True))
        client.write(prefix, "two")
        proxy.cut()
        client.read_timeout = 4
        # So that it makes a connection anew: tonic would make the old one again with what it knows.
        with pytest.raises(EtcdConnectionFailed):
            client.read(prefix)
        proxy.mend()
        with pytest.raises(EtcdConnectionFailed, match=r"refuses the client certificate|does it"):
            client.read(prefix)
        client.read_timeout = READ_TIMEOUT_S
        replace(ca.issue("third"))
        assert client.read(prefix).value == "two"


def _parameters(endpoint: str, prefix: str, config: dict[str, Any]) -> RendezvousParameters:
    return RendezvousParameters(
        "etcd-v3",
        endpoint,
        "run",
        1,
        1,
        local_addr="127.0.0.1",
        **{"etcd_prefix": prefix, "join_timeout": 30, "read_timeout": READ_TIMEOUT_S} | config,
    )


def _rendezvous_of_one(endpoint: str, prefix: str, config: dict[str, Any]) -> None:
    handler = create_rdzv_handler(_parameters(endpoint, prefix, config))
    info = handler.next_rendezvous()
    assert (info.rank, info.world_size) == (0, 1)
    with info.store as store:
        store.set("key", "value")
        assert store.get("key") == b"value"
    assert handler.shutdown()
