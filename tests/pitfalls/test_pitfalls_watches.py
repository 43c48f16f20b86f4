"""Watches go on where they were: nothing is lost and nothing comes twice, however they end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.etcd.metrics import watchers, watchers_left
from support.network.http2 import StreamEnder
from support.network.proxy import Proxy
from support.processes.nodes import Run, check_agreement
from support.stores import compact, in_background, opened
from support.waiting import eventually
from torchetcd.etcd import Client, EtcdEventIndexCleared, EtcdResult
from torchetcd.etcd_server import EtcdServer

pytestmark = pytest.mark.needs_etcd

MIB = 1 << 20


@pytest.fixture
def ender(etcd_server: EtcdServer) -> Iterator[StreamEnder]:
    """Provide a proxy that can end streams."""
    with StreamEnder(etcd_server.get_port()) as made:
        yield made


class Follower:
    """Follows a key in a thread, through a client of its own, until the value is "end"."""

    def __init__(self, port: int, key: str, index: int) -> None:
        self.seen: list[EtcdResult] = []
        self._client = Client("127.0.0.1", port, read_timeout=60)
        self._changes = self._client.eternal_watch(key, index=index)
        self._thread = in_background(self._follow)

    def _follow(self) -> None:
        for change in self._changes:
            self.seen.append(change)
            if change.value == "end":
                return

    @property
    def values(self) -> list[str]:
        return [change.value for change in self.seen]

    def finish(self) -> list[str]:
        self._thread.join()
        self._client.close()
        return self.values


class TestWithoutAWatch:
    """Where answers to watches do not come through, waits of stores look by themselves."""

    @pytest.mark.slow(35)
    def test_waits_end(self, client: Client, ender: StreamEnder, prefix: str) -> None:
        ender.muted = True
        with (
            Client("127.0.0.1", ender.port) as far,
            opened(far, prefix, timeout=600) as store,
            opened(client, prefix) as other,
            ThreadPoolExecutor(5) as pool,
        ):
            waits = {
                "get": pool.submit(store.get, "late"),
                "multi_get": pool.submit(store.multi_get, ["there", "late"]),
                "wait": pool.submit(store.wait, ["late", "gone"]),
                "wait for a queue": pool.submit(store.wait, ["q"]),
                "queue_pop": pool.submit(store.queue_pop, "p"),
            }
            # They have looked, and begin to watch.
            eventually(lambda: ender.asked() >= len(waits))
            assert not any(wait.done() for wait in waits.values())
            for key in ("late", "there", "gone"):
                other.set(key, "value")
            other.queue_push("q", "entry")
            other.queue_push("p", "entry")
            ended = {name: wait.result(timeout=90) for name, wait in waits.items()}
            assert ended == {
                "get": b"value",
                "multi_get": [b"value", b"value"],
                "wait": None,
                "wait for a queue": None,
                "queue_pop": b"entry",
            }


class TestResume:
    """What is written while there is no stream is what a watch without a revision would miss."""

    def test_after_an_outage(self, client: Client, prefix: str) -> None:
        index = client.write(prefix, "begin").modifiedIndex
        assert index is not None
        with Proxy(client.port) as proxy:
            follower = Follower(proxy.port, prefix, index)
            eventually(lambda: follower.values == ["begin"])
            numbers = itertools.count()
            expected = ["begin"]
            for _ in range(5):
                proxy.cut()
                for _ in range(3):
                    expected.append(str(next(numbers)))
                    client.write(prefix, expected[-1])
                proxy.mend()
                expected.append(str(next(numbers)))
                client.write(prefix, expected[-1])
                eventually(lambda: len(follower.seen) >= len(expected), 30)
            client.write(prefix, "end")
            assert follower.finish() == [*expected, "end"]

    def test_while_streams_break_at_any_moment(self, client: Client, prefix: str) -> None:
        index = client.write(prefix, "begin").modifiedIndex
        assert index is not None
        with Proxy(client.port) as proxy:
            follower = Follower(proxy.port, prefix, index)
            for number in range(300):
                client.write(prefix, str(number))
                if number % 30 == 29:
                    proxy.cut()
                    proxy.mend()
            client.write(prefix, "end")
            assert follower.finish() == ["begin", *map(str, range(300)), "end"]

    def test_the_changes_of_one_transaction_stay_together(
        self, client: Client, prefix: str
    ) -> None:
        keys = [f"{prefix}/{number}".encode() for number in range(100)]
        with Proxy(client.port) as proxy, Client("127.0.0.1", proxy.port) as far:
            index = client.write(prefix, "begin").modifiedIndex
            changes = far.eternal_watch(prefix, index=index, recursive=True)
            assert next(changes).value == "begin"
            proxy.cut()
            client._native.txn([], [("put", key, b"x", 0) for key in keys], [])
            client.write(f"{prefix}/last", "y")
            proxy.mend()
            seen = [next(changes) for _ in range(101)]
            assert [change.key.encode() for change in seen[:100]] == keys
            assert seen[100].value == "y"

    def test_more_than_a_message_holds(self, client: Client, prefix: str) -> None:
        """gRPC takes 4 MiB unless it is told otherwise."""
        index = client.write(prefix, "begin").modifiedIndex
        value = "x" * MIB
        for _ in range(6):
            client.write(prefix, value)
        follower = Follower(client.port, prefix, index or 0)
        client.write(prefix, "end")
        assert [len(value) for value in follower.finish()] == [5, *[MIB] * 6, 3]
        client.delete(prefix)


class TestStreamEnd:
    """etcd's end of a stream may come without any error."""

    def test_a_watch(self, client: Client, ender: StreamEnder, prefix: str) -> None:
        index = client.write(prefix, "begin").modifiedIndex
        follower = Follower(ender.port, prefix, index or 0)
        eventually(lambda: follower.values == ["begin"])
        for number in range(3):
            eventually(lambda: ender.streams() == 1)
            assert ender.end_streams() == 1
            client.write(prefix, str(number))
            eventually(lambda number=number: follower.values[-1] == str(number))
        client.write(prefix, "end")
        assert follower.finish() == ["begin", "0", "1", "2", "end"]

    @pytest.mark.parametrize("operation", ["get", "wait", "queue_pop"])
    def test_a_wait_of_the_store(
        self, client: Client, ender: StreamEnder, prefix: str, operation: str
    ) -> None:
        with (
            Client("127.0.0.1", ender.port) as far,
            opened(far, prefix) as store,
            opened(client, prefix) as other,
        ):
            waited: list[Any] = []
            key: Any = ["late"] if operation == "wait" else "late"
            waiting = in_background(lambda: waited.append(getattr(store, operation)(key)))
            eventually(lambda: ender.streams() == 1)
            eventually(ender.end_streams)
            if operation == "queue_pop":
                other.queue_push("late", "value")
            else:
                other.set("late", "value")
            waiting.join()
            assert waited == [None if operation == "wait" else b"value"]


class TestCompaction:
    def test_a_watch_that_begins_before_it(self, client: Client, prefix: str) -> None:
        """etcd says so in a message whose header has revision 0: the next watch must not begin there."""
        index = client.write(prefix, "1").modifiedIndex
        client.write(prefix, "2")
        compact(client)
        for _ in range(2):
            with pytest.raises(EtcdEventIndexCleared, match=f"{index} is compacted"):
                client.watch(prefix, index=index, timeout=10)
        # It harms no other watch of the stream, and reading anew tells from where to go on.
        read = client.read(prefix)
        assert read.value == "2"
        follower = Follower(client.port, prefix, (read.etcd_index or 0) + 1)
        with pytest.raises(EtcdEventIndexCleared):
            client.watch(prefix, index=index, timeout=10)
        client.write(prefix, "end")
        assert follower.finish() == ["end"]

    def test_beside_others(
        self, client: Client, etcd_server: EtcdServer, ender: StreamEnder, prefix: str
    ) -> None:
        """Of two watches that resume, one is behind the compaction."""
        with Client("127.0.0.1", ender.port) as far, opened(far, prefix) as store:
            old = client.write(f"{prefix}-old", "1").modifiedIndex
            waited: list[bytes] = []
            waiting = in_background(lambda: waited.append(store.get("late")))
            before = watchers_left(etcd_server)
            eventually(lambda: ender.streams() == 1)
            eventually(lambda: watchers(etcd_server) >= max(before, 1))
            compact(client)
            with pytest.raises(EtcdEventIndexCleared):
                far.watch(f"{prefix}-old", index=old, timeout=10)
            with opened(client, prefix) as other:
                other.set("late", "value")
            waiting.join()
            assert waited == [b"value"]

    def test_a_rendezvous(self, client: Client, etcd_server: EtcdServer) -> None:
        """Nodes are cut off while the round that they wait in goes on and its history is compacted."""
        with Proxy(client.port) as proxy, Run(etcd_server.get_endpoint(), client) as run:
            near = run.node(2, 2)
            run.endpoint = f"127.0.0.1:{proxy.port}"
            far = run.node(2, 2)
            far.start("join")
            run.await_joined(1)
            proxy.cut()
            compact(client)
            near.start("join")
            run.await_joined(2)
            compact(client)
            proxy.mend()
            check_agreement([node.finish(60) for node in (near, far)])
            # Between rounds the same: the member learns of the next round by reading.
            proxy.cut()
            near.start("join")
            run.await_joined(1, round_=2)
            compact(client)
            proxy.mend()
            assert far.call("await_waiting", 20) == 1
            far.start("join")
            check_agreement([node.finish(60) for node in (near, far)])
