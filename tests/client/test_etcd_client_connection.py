"""`torchetcd.etcd.Client`: addresses, connections, errors, and client objects of python-etcd."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from support.network.proxy import Proxy
from torchetcd import etcd
from torchetcd.etcd import Client, EtcdResult, as_client
from torchetcd.etcd_server import EtcdServer, find_free_port
from torchetcd.etcd_store import EtcdStore


@pytest.fixture
def nobody() -> int:
    """Provide a port where nothing listens."""
    with find_free_port() as sock:
        port: int = sock.getsockname()[1]
    return port


class TestAddresses:
    @pytest.mark.parametrize(
        ("arguments", "uris"),
        [
            ({}, ["http://127.0.0.1:2379"]),
            ({"host": "h"}, ["http://h:2379"]),
            ({"host": "h", "port": 1}, ["http://h:1"]),
            ({"host": "h", "protocol": "https"}, ["https://h:2379"]),
            ({"host": "h1:1,h2"}, ["http://h1:1", "http://h2:2379"]),
            ({"host": " h1 , h2:5 ", "port": 7}, ["http://h1:7", "http://h2:5"]),
            ({"host": "https://h:1,http://g"}, ["https://h:1", "http://g:2379"]),
            ({"host": "::1"}, ["http://[::1]:2379"]),
            ({"host": "[::1]:5,[fe80::1]"}, ["http://[::1]:5", "http://[fe80::1]:2379"]),
            ({"host": (("h1", 1), ("h2", 2))}, ["http://h1:1", "http://h2:2"]),
            ({"host": (("::1", 1),)}, ["http://[::1]:1"]),
        ],
    )
    def test_forms(self, arguments: dict[str, Any], uris: list[str]) -> None:
        client = Client(**arguments)
        assert client.endpoints == uris
        assert client._native.endpoints == uris
        assert client.base_uri == uris[0]

    def test_the_first_endpoint(self) -> None:
        client = Client("https://[::1]:5,h2")
        assert (client.protocol, client.host, client.port) == ("https", "::1", 5)

    @pytest.mark.parametrize(
        "host", ["", "h1,,h2", "h:port", "h:99999", "ftp://h", "http://h/path", "::1:x", ()]
    )
    def test_bad_hosts(self, host: Any) -> None:
        with pytest.raises(ValueError, match=r"etcd endpoint|[Pp]ort|IPv6"):
            _ = Client(host)._native

    def test_bad_protocol(self) -> None:
        with pytest.raises(ValueError, match="http or https"):
            Client(protocol="gopher")

    def test_python_etcds_other_arguments(self, caplog: pytest.LogCaptureFixture) -> None:
        client = Client(
            "h",
            1,
            version_prefix="/v2",
            allow_redirect=False,
            use_proxies=True,
            allow_reconnect=True,
            per_host_pool_size=3,
            lock_prefix="/locks",
        )
        assert client.version_prefix == "/v2"
        assert client.key_endpoint == "/v2/keys"
        assert not client.allow_redirect
        assert client.lock_prefix == "/locks"
        assert client.per_host_pool_size == 3
        assert not caplog.records

    def test_what_is_not_done_is_said(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, "torchetcd"):
            client = Client("h", username="u")
        assert "both are ignored" in caplog.text
        assert (client.username, client.password) == (None, None)
        with pytest.raises(etcd.EtcdException, match="SRV"):
            Client(srv_domain="example.com")

    def test_only_the_cluster_that_is_expected_is_used(self, client: Client) -> None:
        (_, cluster, *_), *_ = client._native.status()
        right = Client(client.base_uri, expected_cluster_id=f"{cluster:x}")
        assert right.write("/of/this/cluster", "1").value == "1"
        wrong = Client(client.base_uri, expected_cluster_id=f"{cluster ^ 1:x}", read_timeout=1)
        with pytest.raises(etcd.EtcdConnectionFailed, match="another cluster"):
            wrong.write("/of/another/cluster", "1")
        with pytest.raises(etcd.EtcdKeyNotFound):
            client.read("/of/another/cluster")

    @pytest.mark.parametrize("text", ["", "0", "x", "1" * 17, "-1"])
    def test_what_is_no_id_of_a_cluster(self, text: str) -> None:
        with pytest.raises(ValueError, match="expected_cluster_id must be"):
            Client("h", expected_cluster_id=text)

    def test_the_password_is_not_shown(self) -> None:
        client = Client("h", username="somebody", password="secret")
        assert repr(client) == "Client('http://h:2379', username='somebody')"
        assert (client.username, client.password) == ("somebody", "secret")

    @pytest.mark.parametrize("cert", ["/nowhere/both.pem", ("/nowhere/c.pem", "/nowhere/k.pem")])
    def test_tls_files_that_are_missing(self, cert: Any) -> None:
        client = Client("https://localhost", cert=cert, ca_cert="/nowhere/ca.pem", read_timeout=5)
        with pytest.raises(ValueError, match="/nowhere/"):
            client.read("/x")


class TestConnection:
    def test_it_connects_at_the_first_call(self, nobody: int) -> None:
        with Client("127.0.0.1", nobody, read_timeout=1) as client:
            with pytest.raises(etcd.EtcdConnectionFailed, match=str(nobody)):
                client.read("/x")
            with pytest.raises(etcd.EtcdConnectionFailed):
                client.write("/x", "y")
            with pytest.raises(etcd.EtcdConnectionFailed):
                client.write("/x", "y", ttl=60)

    @pytest.mark.parametrize("host", ["127.0.0.1", "does-not-exist.invalid"])
    def test_allow_reconnect_connects_at_once(self, host: str, nobody: int) -> None:
        with pytest.raises(etcd.EtcdConnectionFailed, match=host):
            Client(host, nobody, allow_reconnect=True, read_timeout=1)

    def test_the_next_endpoint_is_used(self, nobody: int, etcd_server: EtcdServer) -> None:
        hosts = (("127.0.0.1", nobody), ("localhost", etcd_server.get_port()))
        with Client(hosts, allow_reconnect=True, read_timeout=10) as client:
            client.write("/x", "y")
            assert client.read("/x").value == "y"

    def test_cluster(self, client: Client, etcd_server: EtcdServer) -> None:
        uri = f"http://{etcd_server.get_endpoint()}"
        assert client.machines == [uri]
        assert client.members == {uri: {"clientURLs": [uri]}}
        assert client.version.count(".") == 2

    def test_read_timeout_can_be_changed(self, client: Client, nobody: int) -> None:
        assert client.read_timeout == 10
        with Client("127.0.0.1", nobody) as lost:
            assert lost.read_timeout == 60
            lost.read_timeout = 0.2
            with pytest.raises(etcd.EtcdConnectionFailed, match=r"0\.2 s"):
                lost.read("/x")

    @pytest.mark.parametrize("seconds", [0, 10**19, 1e300, float("inf")])
    def test_no_timeout(self, etcd_server: EtcdServer, seconds: float) -> None:
        with etcd_server.get_client(read_timeout=seconds) as client:
            client.write("/x", "y")
            assert client.read("/x").value == "y"

    @pytest.mark.parametrize("timeout", [1e9, 1e18, 1.8e19])
    def test_any_timeout(self, etcd_server: EtcdServer, prefix: str, timeout: float) -> None:
        with Client("localhost", etcd_server.get_port(), read_timeout=timeout) as client:
            index = client.write(prefix, "x").modifiedIndex
            assert client.read(prefix, timeout=timeout).value == "x"
            assert client.watch(prefix, index=index, timeout=timeout).value == "x"
            with EtcdStore(client, prefix, timedelta(seconds=min(timeout, 1e13))) as store:
                store.set("key", "value")
                assert store.get("key") == b"value"

    def test_closing_ends_calls_under_way(self, etcd_server: EtcdServer, prefix: str) -> None:
        with Proxy(etcd_server.get_port()) as proxy, Client("127.0.0.1", proxy.port) as client:
            client.write(prefix, "x")
            proxy.freeze()
            with ThreadPoolExecutor(2) as pool:
                calls = [
                    pool.submit(client.read, prefix, timeout=300),
                    pool.submit(client.write, prefix, "y"),
                ]
                client.close()
                for call in calls:
                    with pytest.raises(RuntimeError, match="the etcd client is closed"):
                        call.result(timeout=60)

    def test_closed(self, etcd_server: EtcdServer) -> None:
        with etcd_server.get_client() as client:
            client.write("/x", "y")
        with pytest.raises(RuntimeError, match="closed"):
            client.read("/x")

    def test_many_threads(self, client: Client, prefix: str) -> None:
        def work(number: int) -> None:
            for _ in range(10):
                client.write(f"{prefix}/{number}", number)
                assert client.read(f"{prefix}/{number}").value == str(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list(client.read(prefix).leaves)) == 8

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
    def test_in_a_forked_child(self, client: Client, prefix: str) -> None:
        client.write(prefix, "parent")
        child = os.fork()
        if child == 0:
            try:
                client.write(prefix, "child")
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert client.read(prefix).value == "child"

    def test_a_value_that_is_too_large(self, client: Client, prefix: str) -> None:
        with pytest.raises(etcd.EtcdException, match=r"too large|larger than max"):
            client.write(prefix, "x" * (3 << 20))

    def test_a_large_listing(self, client: Client, prefix: str) -> None:
        # More than the 4 MiB that a gRPC client takes unless it is told otherwise.
        for number in range(6):
            client.write(f"{prefix}/{number}", "x" * (1 << 20))
        assert sum(len(leaf.value) for leaf in client.read(prefix).leaves) == 6 << 20
        client.delete(prefix, recursive=True)


class TestCopies:
    """What goes to another process (spawn, a DataLoader's worker) connects there."""

    @pytest.mark.parametrize(
        "copied", [lambda made: pickle.loads(pickle.dumps(made)), copy.deepcopy]
    )
    @pytest.mark.parametrize("used", [False, True])
    def test_of_a_client(
        self, client: Client, prefix: str, copied: Callable[[Client], Client], used: bool
    ) -> None:
        with Client(client.host, client.port) as one:
            if used:
                one.write(f"{prefix}/k", "v", ttl=60)
            with copied(one) as twin:
                twin.write(f"{prefix}/k", "w", ttl=60)
                assert one.read(f"{prefix}/k").value == "w"
            # It has a connection of its own.
            assert one.read(f"{prefix}/k").value == "w"


class TestWhatIsGone:
    @pytest.mark.parametrize(
        "name", ["leader", "stats", "leader_stats", "store_stats", "cluster_version", "election"]
    )
    def test_properties(self, name: str) -> None:
        with pytest.raises(etcd.EtcdException, match=r"^[A-Za-z].*\.$"):
            getattr(Client("h"), name)

    def test_methods(self) -> None:
        with pytest.raises(NotImplementedError, match="lock"):
            Client("h").get_lock("x")
        with pytest.raises(etcd.EtcdException, match="gRPC"):
            Client("h").api_execute("/v2/keys", "GET")
        with pytest.raises(etcd.EtcdException, match="lock"):
            etcd.Lock(Client("h"), "x")


class TestExceptions:
    def test_names_and_families(self) -> None:
        names = [name for name in etcd.__all__ if name.startswith("Etcd") and name != "EtcdResult"]
        assert len(names) == 20
        for name in names:
            kind = getattr(etcd, name)
            assert issubclass(kind, etcd.EtcdException)
            assert kind().payload is None
            assert str(kind()) == ""
            assert str(kind("text", {"a": 1})) == "text"
        assert issubclass(etcd.EtcdValueError, ValueError)
        assert issubclass(etcd.EtcdAmbiguous, etcd.EtcdConnectionFailed)
        assert etcd.EtcdConnectionFailed("x", cause=(cause := OSError())).cause is cause

    def test_they_can_be_pickled(self, client: Client, prefix: str) -> None:
        with pytest.raises(etcd.EtcdKeyNotFound) as caught:
            client.read(prefix)
        copied = pickle.loads(pickle.dumps(caught.value))
        assert str(copied) == str(caught.value)
        assert copied.payload == caught.value.payload

    @pytest.mark.parametrize("name", ["Client", "EtcdResult", "EtcdKeyNotFound", "as_client"])
    def test_pickles_name_the_public_module(self, name: str) -> None:
        """Whatever module of the package defines it."""
        value = getattr(etcd, name)
        pickled = pickle.dumps(value, protocol=2)
        assert pickled.startswith(b"\x80\x02ctorchetcd.etcd\n")
        assert pickle.loads(pickled) is value


class TestResult:
    def test_from_v2_nodes(self) -> None:
        result = EtcdResult(
            "get",
            {
                "key": "/d",
                "dir": True,
                "modifiedIndex": 3,
                "createdIndex": 2,
                "nodes": [{"key": "/d/a", "value": "1", "ttl": 5, "expiration": "soon"}],
            },
            prevNode={"key": "/d", "value": "before"},
        )
        (child,) = result.children
        assert (child.key, child.value, child.ttl, child.expiration) == ("/d/a", "1", 5, "soon")
        assert result.prev_node is not None
        assert result.prev_node is result._prev_node
        assert result.prev_node.value == "before"
        assert "children=1" in repr(result)

    def test_without_anything(self) -> None:
        result = EtcdResult()
        assert (result.key, result.value, result.ttl, result.prev_node) == (None,) * 4
        assert list(result.leaves) == [result]
        assert result == copy.copy(result)

    def test_mutable_and_so_not_hashable(self) -> None:
        with pytest.raises(TypeError, match="unhashable"):
            hash(EtcdResult())


class TestAsClient:
    def test_ours(self) -> None:
        client = Client("h")
        assert as_client(client) is client

    def test_python_etcds(self, etcd_server: EtcdServer, prefix: str) -> None:
        theirs = _python_etcd("localhost", etcd_server.get_port())
        with as_client(theirs) as client:
            assert client.endpoints == [f"http://localhost:{etcd_server.get_port()}"]
            assert client.read_timeout == 7
            assert client.write(prefix, "x").value == "x"

    def test_with_everything(self) -> None:
        theirs = _python_etcd("::1", 5, protocol="https", username="u", password="p")
        theirs.http.connection_pool_kw = {
            "cert_file": "cert.pem",
            "key_file": "key.pem",
            "ca_certs": "ca.pem",
        }
        theirs._machines_cache = ["https://other:2379"]
        client = as_client(theirs)
        assert client.endpoints == ["https://[::1]:5", "https://other:2379"]
        assert (client.username, client.password) == ("u", "p")
        assert (client._cert, client._key, client._ca_cert) == ("cert.pem", "key.pem", "ca.pem")
        del theirs.http.connection_pool_kw["key_file"]
        assert as_client(theirs)._key == "cert.pem"

    @pytest.mark.parametrize("other", [None, "localhost:2379", SimpleNamespace(host="h", port="1")])
    def test_something_else(self, other: object) -> None:
        with pytest.raises(TypeError, match=r"must be a torchetcd\.etcd\.Client or"):
            as_client(other)


def _python_etcd(host: str, port: int, protocol: str = "http", **more: Any) -> Any:
    """Make an object with the attributes of python-etcd 0.4.5's client."""
    attributes: dict[str, Any] = {"username": None, "password": None, **more}
    return SimpleNamespace(
        host=host,
        port=port,
        protocol=protocol,
        read_timeout=7,
        _machines_cache=[],
        http=SimpleNamespace(connection_pool_kw={"maxsize": 10, "timeout": 7}),
        **attributes,
    )


def test_the_import_needs_no_torch() -> None:
    code = "import sys; from torchetcd import etcd, etcd_server; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
