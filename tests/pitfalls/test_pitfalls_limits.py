"""What etcd does not take: requests that are too large, transactions that are too long, a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

from support.processes.nodes import TTL, NodeError, Run, join_all
from support.records import connected
from support.stores import opened
from support.waiting import eventually
from torchetcd.aio import RunInUseError
from torchetcd.etcd import Client, EtcdException, EtcdNoSpace
from torchetcd.etcd._transactions import get_below
from torchetcd.etcd_rendezvous import create_rdzv_handler
from torchetcd.etcd_server import EtcdServer
from torchetcd.etcd_store import StoreError

pytestmark = pytest.mark.needs_etcd

MIB = 1 << 20
# etcd answers to the one, and gRPC refuses the other before etcd sees it.
TOO_LARGE = [
    pytest.param(int(1.6 * MIB), "request is too large", id="1.6 MiB"),
    pytest.param(3 * MIB, "larger than max", id="3 MiB"),
]


class TestTooLarge:
    @pytest.mark.parametrize(("size", "text"), TOO_LARGE)
    def test_a_call(self, client: Client, prefix: str, size: int, text: str) -> None:
        with pytest.raises(EtcdException, match=text) as caught:
            client.write(prefix, "x" * size)
        # Refused, not tried again until the time is up.
        assert type(caught.value) is EtcdException
        assert client.base_uri in str(caught.value)
        assert prefix not in client

    @pytest.mark.parametrize("size", [int(1.6 * MIB), 3 * MIB])
    def test_a_store_says_it_before(self, client: Client, prefix: str, size: int) -> None:
        with opened(client, prefix) as store:
            for call in (
                lambda: store.set("k", b"x" * size),
                lambda: store.compare_set("k", b"", b"x" * size),
                lambda: store.append("k", b"x" * size),
                lambda: store.multi_set(["a", "k"], [b"y", b"x" * size]),
                lambda: store.queue_push("k", b"x" * size),
            ):
                with pytest.raises(ValueError, match=rf'"k" has {size} bytes.*1\.5 MiB'):
                    call()
            assert store.num_keys() == 0

    def test_a_key(self, client: Client, prefix: str) -> None:
        with (
            opened(client, prefix) as store,
            pytest.raises(ValueError, match=r"too large|larger than|1\.5 MiB"),
        ):
            store.set("k" * 3 * MIB, b"x")

    def test_answers_may_be_larger(self, client: Client, prefix: str) -> None:
        """More than the 4 MiB that gRPC takes unless it is told otherwise."""
        keys = [f"k{number}" for number in range(6)]
        with opened(client, prefix) as store:
            for key in keys:
                store.set(key, key.encode() * (MIB // 2))
            assert store.multi_get(keys) == [key.encode() * (MIB // 2) for key in keys]
        assert sum(len(leaf.value) for leaf in client.read(prefix, recursive=True).leaves) > 6 * MIB
        client.delete(prefix, recursive=True)


class TestTransactions:
    def test_too_many_operations(self, client: Client, prefix: str) -> None:
        def puts(count: int) -> list[Any]:
            return [("put", f"{prefix}/{number}".encode(), b"x", 0) for number in range(count)]

        assert client._native.txn([], puts(128), [])[0]
        with pytest.raises(EtcdException, match="too many operations in txn request") as caught:
            client._native.txn([], puts(129), [])
        assert client.base_uri in str(caught.value)

    def test_one_key_twice(self, client: Client, prefix: str) -> None:
        put = ("put", prefix.encode(), b"x", 0)
        with pytest.raises(EtcdException, match="duplicate key"):
            client._native.txn([], [put, put], [])

    def test_a_store_splits_them(self, client: Client, prefix: str) -> None:
        keys = [f"k{number}" for number in range(300)]
        with opened(client, prefix) as store:
            store.multi_set(keys, keys)
            store.wait(keys)
            assert store.check(keys)
            assert store.multi_get(keys) == [key.encode() for key in keys]
            # The last one that is written counts, in a list that names a key twice.
            store.multi_set(["twice", "twice"], ["1", "2"])
            assert store.get("twice") == b"2"


class TestFullDisk:
    """The alarm NOSPACE: etcd renews leases, and takes nothing new."""

    @pytest.fixture
    def server(self) -> Iterator[EtcdServer]:
        with EtcdServer(extra_args=[f"--quota-backend-bytes={4 * MIB}"]) as made:
            yield made

    @pytest.fixture
    def client(self, server: EtcdServer) -> Iterator[Client]:
        with server.get_client() as made:
            yield made

    def test_worlds_go_on_and_all_is_well_after_it(
        self, server: EtcdServer, client: Client
    ) -> None:
        said = r"space exceeded.*NOSPACE.*torchetcd purge.*compact.*defragment.*disarm"
        with Run(server.get_endpoint(), client) as run, opened(client, "/store") as store:
            members = run.nodes(2, 2, 3, keep_alive_ttl=TTL)
            join_all(members)
            store.set("before", "value")
            revision = _fill(client)
            # A clear answer, at once, to all that writes.
            with pytest.raises(EtcdException, match=said):
                client.write("/x", "y")
            with pytest.raises(EtcdException, match=said):
                client._native.lease_grant(10)
            with pytest.raises(StoreError, match=said):
                store.set("during", "value")
            with pytest.raises(StoreError, match=said):
                store.add("counter", 1)
            with pytest.raises(RendezvousConnectionError, match=said):
                # Versions before 3.5.2 refuse transactions that only read, too.
                create_rdzv_handler(run._parameters(2, 3, {})).next_rendezvous()
            # Who is in a world stays in it.
            assert [node.call("most_waiting", 2 * TTL) for node in members] == [0, 0]
            _make_room(client, revision)
            client.write("/x", "y")
            assert store.get("before") == b"value"
            assert store.add("counter", 1) == 1
            store.set("after", "value")
            # A node that comes now makes the next world.
            members.append(run.node(2, 3, keep_alive_ttl=TTL))
            members[2].start("join")
            for node in members[:2]:
                assert node.call("await_waiting", 20) == 1
                node.start("join")
            assert {node.finish().world for node in members} == {3}

    def test_a_node_that_comes_back_is_told(self, server: EtcdServer, client: Client) -> None:
        with Run(server.get_endpoint(), client) as run:
            first, second = run.nodes(2, keep_alive_ttl=TTL)
            join_all([first, second])
            assert second.call("waiting") == 0
            _fill(client)
            first.start("join")
            with pytest.raises(NodeError, match=r"RendezvousConnectionError.*NOSPACE"):
                first.finish()

    def test_stores_make_room(self, server: EtcdServer, client: Client) -> None:
        """etcd never refuses a deletion that is a request of its own, nor a read."""
        with opened(client, "/store") as store, server.get_client() as another:
            for key in "abc":
                store.set(key, "value")
            assert store.add("counter", 5) == 5
            store.set("number", "7")
            for entry in ("first", "second", "third"):
                store.queue_push("queue", entry)
            revision = _fill(client)
            with pytest.raises(EtcdNoSpace):
                another.write("/x", "y")
            assert (store.delete_key("a"), store.delete_key("a")) == (True, False)
            assert store.delete_key("no such key") is False
            # One that has never written has no lease for receipts, and is granted none.
            with opened(another, "/store") as fresh:
                assert (fresh.delete_key("b"), fresh.delete_key("b")) == (True, False)
                assert (fresh.add("counter", 0), fresh.add("number", 0)) == (5, 7)
                assert fresh.queue_pop("queue") == b"first"
            assert store.queue_pop("queue") == b"second"
            assert store.delete_key("counter") is True
            assert sorted(store.list_keys()) == ["c", "number"]
            _make_room(client, revision)
            assert store.add("counter", 1) == 1, "nothing is left of the one before"
            assert (store.delete_key("c"), store.queue_pop("queue")) == (True, b"third")

    def test_a_run_is_purged(self, server: EtcdServer, client: Client) -> None:
        with Run(server.get_endpoint(), client) as run:
            nodes = run.nodes(2, keep_alive_ttl=TTL)
            join_all(nodes)
            for node in nodes:
                node.kill()
            _fill(client)

            async def purge() -> int:
                async with connected(client) as asked:
                    while True:
                        with contextlib.suppress(RunInUseError):
                            return await asked.purge(run.run_id)

            assert asyncio.run(purge()) > 0
            below = get_below(f"{run.path}/".encode())
            assert client._native.txn([], [below], [])[2][0][0] == []

    def test_what_is_on_its_way_when_it_becomes_full(self, server: EtcdServer) -> None:
        """etcd applies that and refuses it: the receipt knows."""
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.get_client()) for _ in range(8)]
            stores = [stack.enter_context(opened(made, "/store")) for made in clients]
            for store in stores:
                store.add("counter", 0)
            filler = "x" * (MIB // 128)

            def add(number: int) -> int:
                for done in itertools.count():
                    try:
                        stores[number % 8].set(f"filler{number}", filler)
                        stores[number % 8].add("counter", 1)
                    except StoreError as full:
                        assert "NOSPACE" in str(full)  # noqa: PT017 - until it is raised
                        return done
                raise AssertionError

            with ThreadPoolExecutor(64) as pool:
                done = sum(pool.map(add, range(64)))
            # The last addition of each may not have come, never two of them.
            assert stores[0].add("counter", 0) == done


def _fill(client: Client) -> int:
    """Write until etcd is full, and return the last revision."""
    revision = 0
    while True:
        try:
            revision = client.write("/filler", "x" * (MIB // 2)).modifiedIndex or 0
        except EtcdException as full:
            assert "space exceeded" in str(full)  # noqa: PT017 - until it is raised
            break
    eventually(lambda: _post(client, "/v3/maintenance/alarm", {"action": "GET"}).get("alarms"))
    return revision


def _make_room(client: Client, revision: int) -> None:
    """Do what the error tells to do."""
    _post(client, "/v3/kv/compaction", {"revision": revision, "physical": True})
    _post(client, "/v3/maintenance/defragment", {})
    for alarm in _post(client, "/v3/maintenance/alarm", {"action": "GET"})["alarms"]:
        _post(client, "/v3/maintenance/alarm", {"action": "DEACTIVATE", **alarm})


def _post(client: Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(f"{client.base_uri}{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return dict(json.load(answer))
