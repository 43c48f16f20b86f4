"""etcd comes back with another history: wiped, restored from a backup, or another cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.etcd.cluster import Cluster
from support.etcd.metrics import watchers
from support.processes.nodes import Run, check_agreement, join_all
from support.stores import in_background, opened
from support.waiting import eventually
from torchetcd.etcd import Client, EtcdEventIndexCleared

pytestmark = pytest.mark.needs_etcd

# Longer than any test: what is noticed is not noticed by a lease that ran out.
LONG_TTL = 60


@pytest.fixture
def etcd() -> Iterator[Cluster]:
    """Run a server of its own, which can be wiped."""
    with Cluster(1) as made:
        yield made


@pytest.fixture
def client(etcd: Cluster) -> Iterator[Client]:
    """Provide a client of it."""
    with etcd.client(read_timeout=30) as made:
        yield made


def _wipe(etcd: Cluster, client: Client) -> None:
    etcd.wipe()


def _restore(etcd: Cluster, client: Client) -> None:
    etcd.restore()


def _replace(etcd: Cluster, client: Client) -> None:
    revision = client.write("/x", "y").modifiedIndex
    assert revision is not None
    etcd.replace(revision + 100)


WAYS = [
    pytest.param(_wipe, id="wiped"),
    pytest.param(_restore, id="restored"),
    pytest.param(_replace, id="another"),
]


class TestWatch:
    @pytest.mark.parametrize("way", WAYS)
    def test_it_ends(
        self, etcd: Cluster, client: Client, prefix: str, way: Callable[..., None]
    ) -> None:
        """It would sleep for long: the revision that it waits for is far away, or was another."""
        client.write(prefix, "first")
        etcd.save()
        for _ in range(20):
            index = client.write("/other", "x").modifiedIndex
        assert index is not None
        raised: list[BaseException] = []

        def watch() -> None:
            with pytest.raises(EtcdEventIndexCleared, match="history") as caught:
                client.watch(prefix, index=index, timeout=60)
            raised.append(caught.value)

        watching = in_background(watch)
        eventually(lambda: watchers(etcd.members[0]) == 1)
        way(etcd, client)
        watching.join()
        assert raised
        # What was read before is no more of use, and all else goes on.
        written = client.write(prefix, "second").modifiedIndex
        assert client.watch(prefix, index=written, timeout=10).value == "second"

    def test_a_restart_is_no_other_history(
        self, etcd: Cluster, client: Client, prefix: str
    ) -> None:
        client.write(prefix, "first")
        index = client.write("/other", "x").modifiedIndex
        seen: list[Any] = []
        watching = in_background(
            lambda: seen.append(client.watch(prefix, index=index, timeout=60).value)
        )
        eventually(lambda: watchers(etcd.members[0]) == 1)
        with etcd.away():
            pass
        with etcd.client() as other:
            other.write(prefix, "second")
        watching.join()
        assert seen == ["second"]


class TestStore:
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("operation", ["get", "wait", "queue_pop"])
    def test_a_wait_goes_on(
        self,
        etcd: Cluster,
        client: Client,
        prefix: str,
        way: Callable[..., None],
        operation: str,
    ) -> None:
        with opened(client, prefix, timeout=60) as store:
            store.set("x", "y")
            etcd.save()
            for _ in range(20):
                store.add("counter", 1)
            waited: list[Any] = []

            def wait() -> None:
                call = getattr(store, operation)
                waited.append(call(["late"] if operation == "wait" else "late"))

            waiting = in_background(wait)
            eventually(lambda: watchers(etcd.members[0]) >= 1)
            with etcd.client() as other:
                way(etcd, client)
                with opened(other, prefix) as others:
                    if operation == "queue_pop":
                        others.queue_push("late", "value")
                    else:
                        others.set("late", "value")
                    waiting.join()
            assert waited == [None if operation == "wait" else b"value"]
            # Its own writes go on as well, from what is there now.
            before = store.add("counter", 0)
            assert before < 20
            assert store.add("counter", 1) == before + 1


class TestRendezvous:
    @pytest.fixture
    def run(self, etcd: Cluster, client: Client) -> Iterator[Run]:
        with Run(etcd.endpoints, client) as made:
            yield made

    @pytest.mark.parametrize("way", WAYS)
    def test_members_are_told_and_meet_again(
        self, etcd: Cluster, client: Client, run: Run, way: Callable[..., None]
    ) -> None:
        nodes = run.nodes(2, keep_alive_ttl=LONG_TTL)
        join_all(nodes)
        for node in nodes:
            assert node.call("waiting") == 0
        etcd.save()
        for _ in range(20):
            client.write("/other", "x")
        nodes[0].start("store_get", "never")
        eventually(lambda: watchers(etcd.members[0]) > 4)
        way(etcd, client)
        # Whoever waits for a key of the old world is told, too.
        with pytest.raises(Exception, match=r"MemberLostError.*lost its lease"):
            nodes[0].finish(40)
        assert [node.call("await_waiting", 40, timeout=50) for node in nodes] == [1, 1]
        again = join_all(nodes)
        check_agreement(again)
        assert [node.call("waiting") for node in nodes] == [0, 0]
        assert run.control()["state"] == "final"

    @pytest.mark.parametrize("way", WAYS)
    def test_a_node_in_the_barrier_joins_again(
        self, etcd: Cluster, client: Client, run: Run, way: Callable[..., None]
    ) -> None:
        client.write("/x", "y")
        etcd.save()
        first, second = run.nodes(2, keep_alive_ttl=LONG_TTL)
        first.start("join")
        run.await_joined(1)
        for _ in range(20):
            client.write("/other", "x")
        way(etcd, client)
        second.start("join")
        check_agreement([node.finish(50) for node in (first, second)])

    def test_a_spare_joins_again(self, etcd: Cluster, client: Client, run: Run) -> None:
        members = run.nodes(2, keep_alive_ttl=LONG_TTL)
        join_all(members)
        spare = run.node(2, 2, keep_alive_ttl=LONG_TTL)
        spare.start("join")
        run.await_waiting(1)
        etcd.wipe()
        assert [node.call("await_waiting", 40, timeout=50) for node in members] == [1, 1]
        # Two of three meet; which ones is no matter.
        members[0].start("join")
        check_agreement([node.finish(50) for node in (members[0], spare)])

    def test_between_two_runs_of_one_name(self, etcd: Cluster, client: Client, run: Run) -> None:
        """A closed run is as little known to an etcd without data as any other."""
        for _ in range(3):
            nodes = run.nodes(2)
            join_all(nodes)
            assert run.control()["round"] == 1
            assert nodes[0].call("shutdown") is True
            etcd.wipe()
