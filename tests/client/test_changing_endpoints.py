"""The endpoints of a client are replaced while it is used."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters

from support.etcd.cluster import Cluster
from support.etcd.metrics import watchers, watchers_left
from support.network.proxy import Proxy
from support.processes.nodes import PREFIX
from support.stores import in_background, opened, seconds
from support.waiting import eventually
from torchetcd import _native
from torchetcd._torchetcd import Client
from torchetcd.etcd import Client as EtcdClient
from torchetcd.etcd import EtcdConnectionFailed
from torchetcd.etcd_rendezvous import create_rdzv_handler
from torchetcd.etcd_server import EtcdServer

pytestmark = pytest.mark.needs_etcd


def native(endpoints: str, timeout_s: float = 20.0) -> Client:
    return _native.Client(endpoints, request_timeout_s=timeout_s)


def keys(client: EtcdClient, path: str) -> list[tuple[str, int | None]]:
    """Return keys with the revisions at which they were made: a lost lease makes others."""
    return [(leaf.key, leaf.createdIndex) for leaf in client.read(path, recursive=True).leaves]


@pytest.fixture
def proxy(etcd_server: EtcdServer) -> Iterator[Proxy]:
    with Proxy(etcd_server.get_port()) as made:
        yield made


@pytest.fixture
def silent() -> Iterator[str]:
    """Provide an endpoint that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.slow(15)
def test_a_member_leaves_while_watches_and_leases_live(prefix: str, run_id: str) -> None:
    """The connection to it is kept until it dies; then one of the new endpoints serves."""
    ttl = 5
    with Cluster(3) as cluster:
        # A new leader gives every lease its whole time again, so the leader is not what is killed.
        leaving = next(member for member in cluster.members if not member.leads())
        staying = [member for member in cluster.members if member is not leaving]
        before = watchers_left(leaving)
        parameters = RendezvousParameters(
            "etcd-v3",
            leaving.get_endpoint(),
            run_id,
            1,
            1,
            local_addr="127.0.0.1",
            keep_alive_ttl=ttl,
        )
        handler = create_rdzv_handler(parameters)
        shared = handler._rdzv_impl.client
        with (
            handler.next_rendezvous().store,
            staying[0].get_client() as other,
            opened(shared, prefix, timeout=60) as store,
            opened(other, prefix) as other_store,
        ):
            waited: list[bytes] = []
            waiting = in_background(lambda: waited.append(store.get("late")))
            eventually(lambda: watchers(leaving) > before)
            path = f"{PREFIX}/run_{run_id}"
            made = keys(other, path)
            assert made

            shared._native.set_endpoints([member.url for member in staying])
            assert shared._native.endpoints == [member.url for member in staying]
            store.set("early", "value")
            assert cluster.serving(shared) is leaving
            assert watchers(leaving) > before

            leaving.signal(signal.SIGKILL)
            killed_at = time.monotonic()
            other_store.set("late", "value")
            waiting.join()
            assert waited == [b"value"]
            assert cluster.serving(shared) in staying
            while time.monotonic() < killed_at + ttl + 2:
                assert keys(other, path) == made
                threading.Event().wait(0.5)
            assert handler.num_nodes_waiting() == 0
            assert not handler.is_closed()
        assert handler.shutdown()


def test_a_client_that_is_connecting_begins_anew(etcd_server: EtcdServer, silent: str) -> None:
    """Not only when the endpoint that says nothing is given up."""
    client = _native.Client(silent, connect_timeout_s=60, request_timeout_s=60)
    answered: list[str] = []
    calling = in_background(lambda: answered.append(client.version()))
    eventually(lambda: silent in established())
    client.set_endpoints([etcd_server.get_endpoint()])
    calling.join(20)
    assert answered


def established() -> set[str]:
    """Return the IPv4 endpoints of this machine that somebody has a connection to."""
    with open("/proc/net/tcp", encoding="ascii") as table:
        rows = [line.split() for line in table.read().splitlines()[1:]]
    ports = [int(row[2].partition(":")[2], 16) for row in rows if row[3] == "01"]
    return {f"127.0.0.1:{port}" for port in ports}


def test_all_that_share_the_client_follow(proxy: Proxy, prefix: str) -> None:
    with (
        EtcdClient("127.0.0.1", proxy.port, read_timeout=20) as client,
        opened(client, prefix) as store,
    ):
        store.set_timeout(seconds(20))
        store.set("key", "value")
        client._native.set_endpoints([f"127.0.0.1:{proxy._target}"])
        proxy.cut()
        assert store.get("key") == b"value"

        async def version() -> str:
            return await _native.AsyncClient(client._native).version()

        assert asyncio.run(version())


class TestWhatIsTriedFirst:
    def test_the_rest_is_left_alone(self, etcd_server: EtcdServer, proxy: Proxy) -> None:
        """However long it is, and with names that nobody resolves."""
        rest = [f"host-{number}.invalid" for number in range(5000)]
        for _ in range(20):
            client = native("127.0.0.1:1")
            client.set_endpoints([etcd_server.get_endpoint()], [f"127.0.0.1:{proxy.port}", *rest])
            assert client.version()
            assert len(client.endpoints) == 5002
            client.close()
        assert proxy.connections == 0

    def test_the_rest_serves_where_the_first_do_not(self, etcd_server: EtcdServer) -> None:
        client = native("127.0.0.1:1")
        client.set_endpoints(["127.0.0.1:1", "127.0.0.1:2"], [etcd_server.get_endpoint()])
        assert client.version()

    def test_the_first_come_again_before_all_of_the_rest(self, etcd_server: EtcdServer) -> None:
        """A thousand hosts are away as well, and each takes the time of a connection to learn that."""
        with socket.socket() as later:
            later.bind(("127.0.0.1", 0))
            first = f"127.0.0.1:{later.getsockname()[1]}"
            client = native(first, 2)
            client.set_endpoints([first], [f"127.0.0.1:{port}" for port in range(1, 1000)])
            with pytest.raises(EtcdConnectionFailed, match=f"{first}: .*; and .* endpoints more"):
                client.version()
        with Proxy(etcd_server.get_port(), own_port=int(first.partition(":")[2])):
            assert client.version(10)


def test_what_cannot_be_an_endpoint_changes_nothing(etcd_server: EtcdServer) -> None:
    client = native(etcd_server.get_endpoint())
    before = client.endpoints
    with pytest.raises(ValueError, match="port '0'"):
        client.set_endpoints(["h1", "h2:0"])
    with pytest.raises(ValueError, match="at least one endpoint"):
        client.set_endpoints([])
    assert client.endpoints == before
    assert client.version()


def test_a_forked_child_has_the_new_ones(etcd_server: EtcdServer) -> None:
    client = native("127.0.0.1:1")
    client.set_endpoints([etcd_server.get_endpoint()])
    assert client.version()
    child = os.fork()
    if child == 0:
        os._exit(0 if client.version() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
