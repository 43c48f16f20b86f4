"""A member dies, hangs or loses its cluster, and a connection goes dead: the next endpoint is used."""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters

from support.etcd.cluster import Cluster
from support.etcd.metrics import watchers, watchers_left
from support.network.proxy import Proxy
from support.processes.nodes import Run
from support.stores import in_background, opened, seconds
from support.waiting import eventually
from torchetcd.etcd import Client, EtcdAmbiguous, EtcdConnectionFailed
from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler
from torchetcd.etcd_server import EtcdServer
from torchetcd.etcd_store import StoreConnectionError

pytestmark = pytest.mark.needs_etcd

HOWS = [
    pytest.param(signal.SIGKILL, id="killed"),
    pytest.param(signal.SIGSTOP, id="stopped"),
]


@pytest.fixture(scope="module")
def lasting() -> Iterator[Cluster]:
    """Run a cluster in which members are stopped for a while."""
    with Cluster() as running:
        yield running


@pytest.fixture
def cluster(lasting: Cluster) -> Iterator[Cluster]:
    """Provide the cluster with all its members."""
    yield lasting
    lasting.resume()
    with lasting.client() as client:
        # Elections are over.
        eventually(lambda: client.write("/ready", "?"), 20)


@pytest.fixture(params=HOWS)
def how(request: pytest.FixtureRequest) -> signal.Signals:
    """Provide the way in which a member goes."""
    signum: signal.Signals = request.param
    return signum


@pytest.fixture
def hurt(request: pytest.FixtureRequest, how: signal.Signals) -> Iterator[Cluster]:
    """Provide a cluster that may lose a member in this way."""
    if how == signal.SIGSTOP:
        yield request.getfixturevalue("cluster")
    else:
        with Cluster() as mortal:
            yield mortal


class Nobody:
    """Takes connections, counts them, and closes them at once."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.count = 0
        self._thread = in_background(self._accept)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            near.close()
            self.count += 1

    def __enter__(self) -> Nobody:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


def _within(limit: float, call: Callable[[], Any]) -> Any:
    started = time.monotonic()
    result = call()
    assert time.monotonic() - started < limit
    return result


def _handler(endpoints: str, run_id: str, **config: Any) -> EtcdRendezvousHandler:
    return create_rdzv_handler(
        RendezvousParameters("etcd-v3", endpoints, run_id, 1, 1, local_addr="127.0.0.1", **config)
    )


def _keys_with_index(run: Run) -> list[tuple[str, int]]:
    """Return the run's keys, which a node would make anew that had lost its lease."""
    leaves = run.client.read(run.path, recursive=True).leaves
    return [(leaf.key, leaf.createdIndex) for leaf in leaves]


class TestOneMemberIsGone:
    def test_before_anybody_connects(self, hurt: Cluster, how: signal.Signals, prefix: str) -> None:
        hurt.members[0].signal(how)
        for _ in range(4):  # a client begins with any endpoint
            with hurt.client() as client:
                assert not _within(15, lambda client=client: prefix in client)
                assert hurt.serving(client) is not hurt.members[0]

    def test_two_nodes_meet(self, hurt: Cluster, how: signal.Signals) -> None:
        hurt.members[0].signal(how)
        with hurt.client() as client, Run(hurt.endpoints, client) as run:
            first, second = run.nodes(2)
            first.start("join")
            second.start("join")
            assert {first.finish().rank, second.finish().rank} == {0, 1}

    def test_calls_go_on(self, hurt: Cluster, how: signal.Signals, prefix: str) -> None:
        """Each add counts once, whatever became of the answers."""
        threads, each = 4, 60
        with hurt.client() as client, opened(client, prefix) as store:
            begun = threading.Barrier(threads + 1)
            took: list[float] = []

            def add() -> None:
                for number in range(each):
                    if number == each // 3:
                        begun.wait()
                    started = time.monotonic()
                    store.add("counter", 1)
                    took.append(time.monotonic() - started)

            adding = [in_background(add) for _ in range(threads)]
            serving = hurt.serving(client)
            begun.wait()
            serving.signal(how)
            for thread in adding:
                thread.join()
            assert len(took) == threads * each
            assert max(took) < 15
            assert store.add("counter", 0) == threads * each
            store.set("key", "value")
            assert store.get("key") == b"value"
            assert hurt.serving(client) is not serving

    @pytest.mark.slow(15)
    def test_watches_and_waits_go_on(self, hurt: Cluster, how: signal.Signals, prefix: str) -> None:
        with hurt.client() as client, opened(client, prefix, timeout=60) as store:
            serving = hurt.serving(client)
            survivors = [member for member in hurt.members if member is not serving]
            ends = ",".join(member.get_endpoint() for member in survivors)
            written = itertools.count()
            ended = threading.Event()
            seen: list[tuple[int, str]] = []
            waited: list[tuple[bytes, float]] = []

            def watch() -> None:
                for event in client.eternal_watch(f"{prefix}/n", index=first):
                    seen.append((event.modifiedIndex or 0, event.value))
                    if event.value == "end":
                        return

            def put(value: str) -> None:
                while True:
                    # The leader that is hit takes answers with it.
                    with contextlib.suppress(EtcdAmbiguous):
                        other.write(f"{prefix}/n", value)
                        return

            def write() -> None:
                while not ended.wait(0.01):
                    put(str(next(written)))

            with Client(ends, read_timeout=20) as other, opened(other, prefix) as other_store:
                first = other.write(f"{prefix}/n", "begin").modifiedIndex
                before = watchers_left(serving)
                threads = [in_background(watch)]
                threads.append(
                    in_background(lambda: waited.append((store.get("late"), time.monotonic())))
                )
                # One of the watched key, two of the wait (a key or a queue).
                eventually(lambda: watchers(serving) >= before + 2)
                writing = in_background(write)
                eventually(lambda: len(seen) > 5)
                serving.signal(how)
                set_at = time.monotonic()
                other_store.set("late", "value")
                threads[1].join()
                assert waited[0][0] == b"value"
                # No call tells the client: only the pings of the connection.
                assert waited[0][1] - set_at < 20
                at_least = len(seen) + 20
                eventually(lambda: len(seen) > at_least)
                ended.set()
                writing.join()
                put("end")
                threads[0].join()
            indices = [index for index, _ in seen]
            assert indices == sorted(set(indices))
            values = [value for value, _ in itertools.groupby(value for _, value in seen)]
            assert values == ["begin", *map(str, range(next(written))), "end"]

    def test_a_short_lease_survives(self, hurt: Cluster, how: signal.Signals) -> None:
        # A new leader gives every lease its whole time again, so the leader is not what is hit.
        ttl = 5
        with hurt.client() as client, Run(hurt.endpoints, client) as run:
            for _ in range(10):
                handler = _handler(hurt.endpoints, run.run_id, keep_alive_ttl=ttl)
                serving = hurt.serving(handler._rdzv_impl.client)
                if not serving.leads():
                    break
            else:
                pytest.fail("no client begins with a follower")
            with handler.next_rendezvous().store:
                before = _keys_with_index(run)
                assert before
                # By a survivor, so that looking does not wait.
                client.write("/warm", "up")
                serving.signal(how)
                hit_at = time.monotonic()
                while time.monotonic() < hit_at + ttl + 2:
                    assert _keys_with_index(run) == before
                    threading.Event().wait(0.5)
                assert handler.num_nodes_waiting() == 0
                assert not handler.is_closed()
            assert handler.shutdown()


class TestTheClusterIsGone:
    def test_the_error_names_every_endpoint(self, cluster: Cluster, prefix: str) -> None:
        for member in cluster.members:
            member.signal(signal.SIGSTOP)
        with cluster.client(read_timeout=2) as client:
            said = pytest.raises(EtcdConnectionFailed, match=r"within 2\.\d s")
            with said as caught:
                _within(10, lambda: client.write(prefix, "y"))
        assert any(member.get_endpoint() in str(caught.value) for member in cluster.members)

    def test_no_leader(self, cluster: Cluster, prefix: str) -> None:
        """The last member answers, but only that it has no leader; then all goes on."""
        with cluster.client(read_timeout=60) as client, opened(client, prefix) as store:
            left = cluster.serving(client)
            before = watchers_left(left)
            waited: list[bytes] = []
            store.set_timeout(seconds(60))
            waiting = in_background(lambda: waited.append(store.get("late")))
            eventually(lambda: watchers(left) > before)
            for member in cluster.members:
                if member is not left:
                    member.signal(signal.SIGSTOP)
            with Client(left.get_endpoint(), read_timeout=6) as lonely:
                with pytest.raises(EtcdConnectionFailed, match="no leader"):
                    lonely.read(prefix)
                # The streams of the member are ended by now.
                eventually(lambda: watchers(left) == 0)
                writing = in_background(lambda: store.set("late", "value"))
                cluster.resume()
                writing.join()
                waiting.join()
                assert waited == [b"value"]
                lonely.write(f"{prefix}/x", "y")

    def test_reconnects_are_few(self, prefix: str) -> None:
        with (
            Nobody() as nobody,
            Client(nobody.endpoint, read_timeout=3) as client,
            opened(client, prefix, timeout=3) as store,
        ):

            def get() -> None:
                with pytest.raises(StoreConnectionError, match=nobody.endpoint):
                    store.get("x")

            threads = [in_background(get) for _ in range(8)]
            with pytest.raises(EtcdConnectionFailed, match=nobody.endpoint):
                client.read("/x")
            for thread in threads:
                thread.join()
            # Pauses grow to a second. Without them there are thousands.
            assert 3 <= nobody.count < 300


class TestHalfOpen:
    """Packets go nowhere from one moment on, and nobody says so."""

    @pytest.fixture
    def proxy(self, etcd_server: EtcdServer) -> Iterator[Proxy]:
        with Proxy(etcd_server.get_port()) as made:
            yield made

    @pytest.fixture
    def proxied(self, etcd_server: EtcdServer, proxy: Proxy) -> Iterator[Client]:
        """Provide a client that is connected through the proxy, and knows of the server."""
        hosts = (("127.0.0.1", proxy.port), ("localhost", etcd_server.get_port()))
        for _ in range(50):
            with Client(hosts, read_timeout=20) as made:
                made.write("/x", "y")
                if proxy.connections:
                    yield made
                    return
        pytest.fail("no client begins with the first endpoint")

    def test_a_call(self, proxied: Client, proxy: Proxy, prefix: str) -> None:
        with opened(proxied, prefix) as store:
            assert store.add("counter", 1) == 1
            proxy.freeze()
            assert _within(10, lambda: store.add("counter", 1)) == 2
            assert _within(4, lambda: store.add("counter", 1)) == 3

    @pytest.mark.parametrize("calls", [True, False], ids=["beside calls", "alone"])
    def test_a_wait(
        self,
        proxied: Client,
        proxy: Proxy,
        client: Client,
        etcd_server: EtcdServer,
        prefix: str,
        calls: bool,
    ) -> None:
        with opened(proxied, prefix, timeout=60) as store, opened(client, prefix) as other:
            waited: list[bytes] = []
            before = watchers_left(etcd_server)
            waiting = in_background(lambda: waited.append(store.get("late")))
            eventually(lambda: watchers(etcd_server) > before)
            proxy.freeze()
            other.set("late", "value")
            if calls:
                # An answer that does not come tells the watch, too.
                assert not _within(10, lambda: f"{prefix}/x" in proxied)
                _within(5, waiting.join)
            else:
                _within(20, waiting.join)
            assert waited == [b"value"]

    def test_a_lease(self, etcd_server: EtcdServer, proxy: Proxy, client: Client) -> None:
        ttl = 5
        endpoints = f"127.0.0.1:{proxy.port},{etcd_server.get_endpoint()}"
        with Run(etcd_server.get_endpoint(), client) as run:
            while not proxy.connections:
                handler = _handler(endpoints, run.run_id, keep_alive_ttl=ttl)
            with handler.next_rendezvous().store:
                before = _keys_with_index(run)
                proxy.freeze()
                threading.Event().wait(ttl + 2)
                assert _keys_with_index(run) == before
                assert handler.num_nodes_waiting() == 0
            assert handler.shutdown()
