"""Endpoints: learners, pings that etcd suffers, and errors that name what went wrong where."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousParameters

from support.etcd.metrics import watchers, watchers_left
from support.network.proxy import Proxy
from support.stores import in_background, opened
from support.waiting import eventually
from torchetcd.etcd import Client, EtcdConnectionFailed
from torchetcd.etcd_rendezvous import create_rdzv_handler
from torchetcd.etcd_server import EtcdServer, find_free_port
from torchetcd.etcd_store import StoreConnectionError

pytestmark = pytest.mark.needs_etcd


class _Learner(EtcdServer):
    """Ready when it takes connections: it serves no reads that need the cluster."""

    def _answers(self, client: Client, health: int | None) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.get_port()), 1).close()
        except OSError:
            return False
        return True


@pytest.fixture(scope="module")
def learner() -> Iterator[tuple[EtcdServer, EtcdServer]]:
    """Run a member and a learner of its cluster."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(find_free_port()) for _ in range(2)]
        peers = [f"http://localhost:{sock.getsockname()[1]}" for sock in sockets]
    first = EtcdServer(
        extra_args=[
            "--name=voter",
            f"--listen-peer-urls={peers[0]}",
            f"--initial-advertise-peer-urls={peers[0]}",
            f"--initial-cluster=voter={peers[0]}",
        ]
    )
    with first:
        body = json.dumps({"peerURLs": [peers[1]], "isLearner": True}).encode()
        url = f"http://{first.get_endpoint()}/v3/cluster/member/add"
        urllib.request.urlopen(urllib.request.Request(url, body), timeout=10).close()
        second = _Learner(
            extra_args=[
                "--name=learner",
                f"--listen-peer-urls={peers[1]}",
                f"--initial-advertise-peer-urls={peers[1]}",
                f"--initial-cluster=voter={peers[0]},learner={peers[1]}",
                "--initial-cluster-state=existing",
            ]
        )
        with second:
            yield first, second


class TestLearner:
    def test_it_is_passed_over(self, learner: tuple[EtcdServer, EtcdServer], prefix: str) -> None:
        endpoints = ",".join(server.get_endpoint() for server in reversed(learner))
        for number in range(6):  # a client begins with any endpoint
            with (
                Client(endpoints, read_timeout=20) as client,
                opened(client, f"{prefix}/{number}") as store,
            ):
                setting = in_background(lambda store=store: store.set("late", "value"), after=0.05)
                assert store.get("late") == b"value"
                setting.join()
                assert store.add("counter", 1) == 1
                lease = client._native.lease_grant(10)
                assert client._native.lease_keep_alive_once(lease)
        handler = create_rdzv_handler(
            RendezvousParameters("etcd-v3", endpoints, "run", 1, 1, local_addr="127.0.0.1")
        )
        with handler.next_rendezvous().store:
            assert handler.num_nodes_waiting() == 0
        assert handler.shutdown()

    def test_alone(self, learner: tuple[EtcdServer, EtcdServer], prefix: str) -> None:
        endpoint = learner[1].get_endpoint()
        with Client(endpoint, read_timeout=2) as client, opened(client, prefix) as store:
            with pytest.raises(EtcdConnectionFailed, match=f"{endpoint}: it is a learner"):
                client.read("/x")
            with pytest.raises(StoreConnectionError, match=f"{endpoint}: it is a learner"):
                store.set("x", "y")


class TestPings:
    @pytest.mark.slow(21)
    def test_etcd_suffers_them(self, client: Client, etcd_server: EtcdServer, prefix: str) -> None:
        """etcd ends connections that ping more than once in 5 s (etcd issue 8905)."""
        with (
            Proxy(etcd_server.get_port()) as proxy,
            Client("127.0.0.1", proxy.port) as far,
            opened(far, prefix, timeout=60) as store,
            opened(client, prefix) as other,
        ):
            before = watchers_left(etcd_server)
            waited: list[bytes] = []
            waiting = in_background(lambda: waited.append(store.get("late")))
            eventually(lambda: watchers(etcd_server) > before)
            # The third that comes too early is one too many.
            threading.Event().wait(21)
            other.set("late", "value")
            waiting.join()
            assert waited == [b"value"]
            assert proxy.connections == 1


class TestErrors:
    """Each endpoint is named with what became of it, before or after the first connection."""

    @pytest.fixture
    def silent(self) -> Iterator[socket.socket]:
        """Provide a port where connections are taken and nobody answers."""
        with socket.create_server(("127.0.0.1", 0)) as made:
            yield made

    @pytest.mark.slow(25)
    def test_every_endpoint_is_named_with_its_failure(
        self, silent: socket.socket, prefix: str
    ) -> None:
        with find_free_port() as sock:
            refusing = f"127.0.0.1:{sock.getsockname()[1]}"
        quiet = f"127.0.0.1:{silent.getsockname()[1]}"
        nowhere = "does-not-exist.invalid:2379"
        endpoints = f"{refusing},{quiet},{nowhere}"
        texts = []
        with Client(endpoints, read_timeout=12) as client, opened(client, prefix) as store:
            store_text: list[str] = []

            def store_set() -> None:
                with pytest.raises(StoreConnectionError) as caught:
                    store.set("x", "y")
                store_text.append(str(caught.value))

            setting = in_background(store_set)
            with pytest.raises(EtcdConnectionFailed, match=r"within 12\.\d s") as caught:
                client.write(prefix, "x")
            setting.join()
            texts = [str(caught.value), *store_text]
        with pytest.raises(RendezvousConnectionError) as at_once:
            create_rdzv_handler(
                RendezvousParameters(
                    "etcd-v3", endpoints, "run", 1, 1, local_addr="127.0.0.1", join_timeout=12
                )
            )
        texts.append(str(at_once.value))
        for text in texts:
            assert "\n" not in text
            causes = dict(part.split(": ", 1) for part in text.split(": ", 1)[1].split("; "))
            assert set(causes) == {f"http://{each}" for each in (refusing, quiet, nowhere)}
            assert "refused" in causes[f"http://{refusing}"]
            assert "no answer within 5.0 s" in causes[f"http://{quiet}"]
            assert "dns error" in causes[f"http://{nowhere}"]
