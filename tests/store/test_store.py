"""Every method of EtcdStore, itself and as C++ calls it, against a real etcd."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch.distributed as dist

from support.network.proxy import Proxy
from support.stores import compact, in_background, opened, seconds
from torchetcd import metrics
from torchetcd.etcd import Client, EtcdConnectionFailed
from torchetcd.etcd._transactions import get_below
from torchetcd.etcd_server import EtcdServer
from torchetcd.etcd_store import (
    EtcdStore,
    StoreConnectionError,
    StoreError,
    StoreTimeoutError,
)

MIB = 1 << 20
AWKWARD = [
    "",
    "plain",
    "with / slash",
    "ключ-キー-🔑",
    "nul\0inside",
    "x" * 2000,
    ".op/1",
    "#1",
    "+",
]
VALUES = [b"", b"plain", b"\0\xff\xfe", b"#5", "ключ".encode(), b"x" * 100_000]


@pytest.fixture(params=["direct", "prefixed"])
def store(request: pytest.FixtureRequest, client: Client, prefix: str) -> Iterator[dist.Store]:
    """Provide a store, itself and below a PrefixStore."""
    with opened(client, prefix, request.param) as made:
        yield made


@pytest.fixture
def direct(client: Client, prefix: str) -> Iterator[EtcdStore]:
    """Provide a store for what C++ does not pass on."""
    with EtcdStore(client, prefix, seconds(30)) as made:
        yield made


@pytest.mark.parametrize("key", AWKWARD)
def test_any_key(store: dist.Store, key: str) -> None:
    assert not store.check([key])
    store.set(key, b"value")
    assert store.get(key) == b"value"
    assert store.check([key])
    assert store.num_keys() == 1
    assert store.add(key + "n", 2) == 2
    assert store.delete_key(key)
    assert not store.check([key])


@pytest.mark.parametrize("value", VALUES)
def test_any_value(store: dist.Store, value: bytes) -> None:
    store.set("k", value)
    found = store.get("k")
    assert found == value
    assert type(found) is bytes
    assert store.multi_get(["k"]) == [value]
    assert store.compare_set("k", value, b"next" + value) == b"next" + value
    store.append("k", value)
    assert store.get("k") == b"next" + value + value


def test_text_and_bytes_are_the_same(direct: EtcdStore) -> None:
    direct.set(b"k", "välue")
    assert direct.get("k") == "välue".encode()
    direct.set("k", bytearray(b"array"))
    assert direct.get(b"k") == b"array"
    direct.set("k", memoryview(b"view"))
    assert direct.get("k") == b"view"
    direct.set(b"\xff\xfe", b"no utf-8")
    assert sorted(key.encode("utf-8", "surrogateescape") for key in direct.list_keys()) == [
        b"k",
        b"\xff\xfe",
    ]
    assert [direct.get(key) for key in sorted(direct.list_keys())] == [b"view", b"no utf-8"]


@pytest.mark.parametrize("wrong", [5, None, 1.5, ["k"]])
def test_other_types_are_refused(direct: EtcdStore, wrong: Any) -> None:
    with pytest.raises(TypeError, match="str or bytes"):
        direct.set("k", wrong)
    with pytest.raises(TypeError, match="str or bytes"):
        direct.get(wrong)
    with pytest.raises(TypeError, match="list"):
        direct.wait("one string")


class TestAdd:
    def test_counts_from_zero(self, store: dist.Store) -> None:
        assert store.add("n", 0) == 0
        assert store.add("n", 5) == 5
        assert store.add("n", -7) == -2
        assert store.add("n", 5) == 3
        assert store.get("n") == b"3"
        assert store.num_keys() == 1

    def test_goes_on_from_a_value(self, store: dist.Store) -> None:
        store.set("n", "40")
        assert store.add("n", 2) == 42
        store.set("n", "1")
        assert store.add("n", 2) == 3
        assert store.get("n") == b"3"

    def test_starts_anew_after_a_deletion(self, store: dist.Store) -> None:
        store.add("n", 5)
        assert store.delete_key("n")
        assert not store.check(["n"])
        assert store.add("n", 5) == 5

    def test_other_methods_see_a_number(self, store: dist.Store) -> None:
        store.add("n", 41)
        assert store.compare_set("n", "40", "0") == b"41"
        assert store.compare_set("n", "41", "50") == b"50"
        assert store.add("n", 1) == 51
        store.append("n", "2")
        assert store.multi_get(["n", "n"]) == [b"512", b"512"]
        assert store.add("n", 1) == 513

    @pytest.mark.parametrize(
        ("text", "after"), [(" 7", 8), ("5abc", 6), ("-3", -2), ("+3", 4), ("1.5", 2)]
    )
    def test_reads_numbers_as_tcpstore_does(self, store: dist.Store, text: str, after: int) -> None:
        store.set("n", text)
        assert store.add("n", 1) == after

    @pytest.mark.parametrize("text", ["", "abc", "9" * 20])
    def test_needs_an_integer(self, store: dist.Store, text: str) -> None:
        store.set("n", text)
        with pytest.raises(ValueError, match='"n" is' if isinstance(store, EtcdStore) else "n"):
            store.add("n", 1)
        assert store.get("n") == text.encode()

    def test_wraps_at_64_bits(self, store: dist.Store) -> None:
        assert store.add("n", 2**63 - 1) == 2**63 - 1
        assert store.add("n", 1) == -(2**63)
        assert store.get("n") == str(-(2**63)).encode()
        store.set("n", str(2**63 - 1))
        assert store.add("n", 2) == -(2**63) + 1

    def test_of_many_different_numbers(
        self, store: dist.Store, client: Client, prefix: str
    ) -> None:
        total = 0
        for n in range(1, 101):
            total += n
            assert store.add("n", n) == total
        assert store.get("n") == str(total).encode()
        # They are folded into one number from time to time.
        assert len(list(client.read(f"{prefix}/.add").children)) < 50


class TestCompareSet:
    def test_absent(self, store: dist.Store) -> None:
        assert store.compare_set("k", "expected", "new") == b"expected"
        assert not store.check(["k"])
        assert store.compare_set("k", "", "new") == b"new"
        assert store.get("k") == b"new"

    def test_present(self, store: dist.Store) -> None:
        store.set("k", "old")
        assert store.compare_set("k", "", "new") == b"old"
        assert store.compare_set("k", "other", "new") == b"old"
        assert store.compare_set("k", "old", "") == b""
        assert store.compare_set("k", "", "new") == b"new"

    def test_of_large_values(self, store: dist.Store) -> None:
        one, two = b"1" * MIB, b"2" * MIB
        store.set("k", one)
        assert store.compare_set("k", two, b"small") == one
        assert store.compare_set("k", one, two) == two
        assert store.get("k") == two
        assert store.compare_set("absent", one, two) == one
        assert not store.check(["absent"])


def test_append(store: dist.Store) -> None:
    for part in (b"x", b"x", b"", b"\0y"):
        store.append("k", part)
    assert store.get("k") == b"xx\0y"


def test_delete_and_count(store: dist.Store) -> None:
    assert not store.delete_key("k")
    store.multi_set(["k", "l", ""], ["1", "2", "3"])
    assert store.num_keys() == 3
    assert store.delete_key("k")
    assert not store.delete_key("k")
    assert store.num_keys() == 2


def test_list_keys(direct: EtcdStore) -> None:
    assert direct.list_keys() == []
    for key in AWKWARD:
        direct.set(key, "v")
    direct.add("counter", 1)
    direct.queue_push("queue", "v")
    assert sorted(direct.list_keys()) == sorted([*AWKWARD, "counter"])
    assert direct.num_keys() == len(AWKWARD) + 1


def test_stores_do_not_see_each_other(client: Client, prefix: str) -> None:
    with opened(client, prefix) as one, opened(client, f"{prefix}2") as two:
        one.set("k", "1")
        assert not two.check(["k"])
        assert two.num_keys() == 0
        below = dist.PrefixStore("p", one)
        below.set("k", "below")
        assert one.get("k") == b"1"


@pytest.mark.parametrize("form", ["{}", "{}/", "/{}", "/{}/"])
def test_any_form_of_the_prefix(client: Client, prefix: str, form: str) -> None:
    name = prefix.strip("/")
    with opened(client, form.format(name), timeout=10) as store:
        thread = in_background(lambda: store.set("k", "v"), after=0.1)
        assert store.get("k") == b"v"
        thread.join()
    with opened(client, f"/{name}") as other:
        assert other.get("k") == b"v"
    # And the python-etcd shaped client sees the layout of torch's EtcdStore.
    assert client.read(f"{name}/aw==").value == "dg=="


class TestWaiting:
    def test_get_waits(self, store: dist.Store) -> None:
        thread = in_background(lambda: store.set("k", "v"), after=0.2)
        assert store.get("k") == b"v"
        thread.join()

    def test_get_waits_for_a_counter(self, store: dist.Store) -> None:
        thread = in_background(lambda: store.add("n", 7), after=0.2)
        assert store.get("n") == b"7"
        thread.join()

    def test_waiting_writes_nothing(self, store: dist.Store, client: Client, prefix: str) -> None:
        begun = client.write(f"{prefix}/begun", "")
        with pytest.raises(StoreTimeoutError):
            store.wait(["k"], seconds(0.5))
        client.write(f"{prefix}/ended", "")
        first = client.watch(prefix, index=begun.modifiedIndex + 1, recursive=True)
        assert first.key == f"{prefix}/ended"

    def test_wait_for_several(self, store: dist.Store) -> None:
        store.set("there", "1")
        keys = ["there", "second", "first", "first"]

        def write() -> None:
            store.set("first", "1")
            store.set("second", "2")

        thread = in_background(write, after=0.2)
        store.wait(keys)
        assert store.check(keys)
        thread.join()

    def test_multi_get_has_the_newest_values(self, store: dist.Store) -> None:
        store.set("early", "old")

        def write() -> None:
            store.set("early", "new")
            store.set("late", "1")

        thread = in_background(write, after=0.2)
        assert store.multi_get(["late", "early", "late"]) == [b"1", b"new", b"1"]
        thread.join()

    def test_multi_get_waits_for_what_went_again(self, store: dist.Store) -> None:
        store.set("a", "1")

        def write() -> None:
            store.delete_key("a")
            store.set("b", "2")
            store.set("a", "3")

        thread = in_background(write, after=0.2)
        assert store.multi_get(["a", "b"]) == [b"3", b"2"]
        thread.join()

    def test_wait_counts_what_came_and_went(self, store: dist.Store) -> None:
        def write() -> None:
            store.set("a", "1")
            store.delete_key("a")
            store.set("b", "2")

        thread = in_background(write, after=0.2)
        store.wait(["a", "b"], seconds(10))
        assert not store.check(["a"])
        thread.join()

    def test_nothing_to_wait_for(self, store: dist.Store) -> None:
        store.wait([])
        store.wait([], seconds(0))
        assert store.check([])
        assert store.multi_get([]) == []
        store.multi_set([], [])

    @pytest.mark.parametrize("timeout", [0, 0.00025, 0.3])
    def test_times_out(self, store: dist.Store, timeout: float) -> None:
        store.set("there", "1")
        store.set_timeout(seconds(timeout))
        waits = [
            lambda: store.get("missing"),
            lambda: store.multi_get(["there", "missing"]),
            lambda: store.wait(["there", "missing"]),
            lambda: store.wait(["missing", "there"], seconds(timeout)),
        ]
        for wait in waits:
            started = time.monotonic()
            with pytest.raises(StoreTimeoutError, match=r"missing") as caught:
                wait()
            took = time.monotonic() - started
            assert int(timeout * 1000) / 1000 <= took < timeout + 10
            assert isinstance(caught.value, dist.DistStoreError)
            assert isinstance(caught.value, LookupError)
            assert "there" not in str(caught.value)
        # What is there needs no time.
        assert store.get("there") == b"1"
        store.wait(["there"])

    def test_timeout_names_some_of_many(self, direct: EtcdStore) -> None:
        with pytest.raises(StoreTimeoutError, match=r"20 of 20 keys missing.* and 15 more"):
            direct.wait([f"k{i}" for i in range(20)], seconds(0))

    def test_negative_timeout_is_none(self, direct: EtcdStore) -> None:
        with pytest.raises(StoreTimeoutError):
            direct.wait(["k"], seconds(-1))

    def test_very_long_timeout(self, direct: EtcdStore) -> None:
        direct.set_timeout(seconds(10**12))
        thread = in_background(lambda: direct.set("k", "v"), after=0.1)
        assert direct.get("k") == b"v"
        thread.join()

    @pytest.mark.parametrize("operation", ["get", "multi_get", "wait"])
    @pytest.mark.parametrize("missed", [True, False])
    def test_compaction_while_disconnected(
        self, client: Client, prefix: str, operation: str, missed: bool
    ) -> None:
        with (
            Proxy(client.port) as proxy,
            Client(port=proxy.port) as far,
            opened(far, prefix, timeout=30) as waiting,
            opened(client, prefix) as store,
        ):
            store.set("early", "e")

            def write() -> None:
                proxy.cut()
                store.set("early", "e2")
                if missed:
                    store.set("late", "l")
                compact(client)
                proxy.mend()
                if not missed:
                    pause = threading.Event()
                    pause.wait(0.5)  # for the new watch
                    store.set("late", "l")

            thread = in_background(write, after=0.3)
            if operation == "get":
                assert waiting.get("late") == b"l"
            elif operation == "multi_get":
                assert waiting.multi_get(["early", "late"]) == [b"e2", b"l"]
            else:
                waiting.wait(["early", "late"])
            thread.join()

    def test_outage_while_waiting(self, client: Client, prefix: str) -> None:
        with (
            Proxy(client.port) as proxy,
            Client(port=proxy.port) as far,
            opened(far, prefix, timeout=30) as waiting,
            opened(client, prefix) as store,
        ):

            def write() -> None:
                proxy.cut()
                store.set("late", "l")
                store.delete_key("late")
                store.set("other", "l")
                proxy.mend()

            thread = in_background(write, after=0.3)
            # Nothing that happened meanwhile is lost.
            waiting.wait(["late", "other"])
            thread.join()

    def test_no_connection_when_the_time_is_over(self, client: Client, prefix: str) -> None:
        with (
            Proxy(client.port) as proxy,
            Client(port=proxy.port) as far,
            opened(far, prefix, timeout=6) as waiting,
        ):
            thread = in_background(proxy.cut, after=0.3)
            with pytest.raises(StoreConnectionError):
                waiting.get("missing")
            thread.join()

    def test_other_threads_go_on(self, store: dist.Store) -> None:
        waiting = [in_background(lambda i=i: store.get(f"k{i}")) for i in range(8)]
        for i in range(8):
            store.set(f"k{i}", "v")
        for thread in waiting:
            thread.join(10)
            assert not thread.is_alive()


class TestQueues:
    def test_first_in_first_out(self, direct: EtcdStore) -> None:
        for value in VALUES:
            direct.queue_push("q", value)
        assert direct.queue_len("q") == len(VALUES)
        assert [direct.queue_pop("q") for _ in VALUES] == VALUES
        assert direct.queue_len("q") == 0

    def test_the_order_is_that_of_the_keys(self, client: Client, prefix: str) -> None:
        """So that etcd need not sort them, which it does by reading all of them."""
        with ExitStack() as stack:
            stores = [stack.enter_context(opened(client, prefix)) for _ in range(3)]
            for number in range(12):
                stores[number % 3].queue_push("q", str(number))
            below = get_below(f"{prefix}/.queue/".encode())
            entries = client._native.txn([], [below], [])[2][0][0]
            values = [b64decode(value) for _, value, *_ in entries]
            assert values == [b"%d" % number for number in range(12)]
            assert [stores[0].queue_pop("q") for _ in range(12)] == values

    def test_empty(self, direct: EtcdStore) -> None:
        with pytest.raises(dist.DistStoreError, match="empty") as caught:
            direct.queue_pop("q", block=False)
        assert type(caught.value).__name__.endswith("QueueEmptyError")
        direct.set_timeout(seconds(0.2))
        with pytest.raises(StoreTimeoutError):
            direct.queue_pop("q")

    def test_pop_waits(self, direct: EtcdStore) -> None:
        thread = in_background(lambda: direct.queue_push("q", "v"), after=0.2)
        assert direct.queue_pop("q") == b"v"
        thread.join()

    def test_apart_from_keys(self, direct: EtcdStore) -> None:
        direct.set("name", "value")
        direct.queue_push("name", "entry")
        assert direct.num_keys() == 1
        assert direct.delete_key("name")
        assert direct.queue_len("name") == 1
        assert direct.check(["name"])
        assert not direct.delete_key("name")
        direct.wait(["name"], seconds(0))
        assert direct.queue_pop("name") == b"entry"
        assert not direct.check(["name"])

    def test_wait_for_a_push(self, direct: EtcdStore) -> None:
        direct.set("key", "v")
        thread = in_background(lambda: direct.queue_push("q", "v"), after=0.2)
        direct.wait(["key", "q"])
        thread.join()

    def test_each_entry_is_popped_once(self, direct: EtcdStore) -> None:
        popped: list[bytes] = []

        def pop() -> None:
            for _ in range(10):
                popped.append(direct.queue_pop("q"))

        threads = [in_background(pop) for _ in range(5)]
        for i in range(50):
            direct.queue_push("q", str(i))
        for thread in threads:
            thread.join(20)
        assert sorted(map(int, popped)) == list(range(50))


def _calls(rpc: str) -> int:
    return int(metrics.snapshot()["torchetcd_rpcs_total"].get((rpc, "ok"), 0))


class TestLimits:
    def test_one_mebibyte(self, store: dist.Store) -> None:
        value = bytes(range(256)) * (MIB // 256)
        store.set("k", value)
        assert store.get("k") == value
        store.multi_set(["a", "b", "c"], [value] * 3)
        assert store.multi_get(["a", "b", "c"]) == [value] * 3
        assert store.compare_set("k", value, value) == value

    def test_too_large(self, direct: EtcdStore) -> None:
        with pytest.raises(ValueError, match=r'"k" has 2097152 bytes.* leaves 11\d\d\d\d\d bytes'):
            direct.set("k", b"x" * 2 * MIB)
        with pytest.raises(ValueError, match='"b" has'):
            direct.multi_set(["a", "b"], [b"small", b"x" * 2 * MIB])
        assert direct.num_keys() == 0
        direct.set("k", b"x" * MIB)
        with pytest.raises(ValueError, match='"k" has'):
            direct.append("k", b"x" * MIB)
        with pytest.raises(ValueError, match='"q" has'):
            direct.queue_push("q", b"x" * 2 * MIB)
        assert direct.get("k") == b"x" * MIB

    def test_the_largest_value(self, direct: EtcdStore) -> None:
        with pytest.raises(ValueError, match="leaves") as caught:
            direct.set("k", b"x" * 2 * MIB)
        limit = int(str(caught.value).split("leaves ")[1].split()[0])
        direct.set("k", b"x" * limit)
        assert len(direct.get("k")) == limit
        with pytest.raises(ValueError, match="leaves"):
            direct.set("k", b"x" * (limit + 1))

    def test_large_values_come_in_several_answers(self, direct: EtcdStore) -> None:
        keys = [f"k{number}" for number in range(20)]
        for number, key in enumerate(keys):
            direct.set(key, b"%d" % number * 100_000)
        before = _calls("txn")
        values = direct.multi_get(keys)
        assert [value[:2] for value in values] == [(b"%d" % n * 2)[:2] for n in range(20)]
        assert _calls("txn") - before > 1

    def test_a_thousand_keys(self, store: dist.Store) -> None:
        keys = [f"key{i}" for i in range(1000)]
        values = [str(i).encode() for i in range(1000)]
        store.multi_set(keys, values)
        assert store.num_keys() == 1000
        assert store.multi_get(keys) == values
        assert store.check(keys)
        store.wait(keys, seconds(0))
        assert not store.check([*keys, "missing"])
        with pytest.raises(StoreTimeoutError, match="1 of 1001"):
            store.wait([*keys, "missing"], seconds(0))

    def test_wait_for_a_thousand_keys(self, store: dist.Store) -> None:
        keys = [f"key{i}" for i in range(1000)]

        def write() -> None:
            for start in range(0, 1000, 250):
                store.multi_set(keys[start : start + 250], ["v"] * 250)

        thread = in_background(write, after=0.2)
        store.wait(keys)
        thread.join()
        for key in keys[::100]:
            store.delete_key(key)
        thread = in_background(lambda: store.multi_set(keys[::100], ["w"] * 10), after=0.2)
        assert store.multi_get(keys) == [b"w" if i % 100 == 0 else b"v" for i in range(1000)]
        thread.join()

    def test_a_hundred_counters(self, store: dist.Store) -> None:
        keys = [f"key{i}" for i in range(130)]
        for i, key in enumerate(keys):
            store.add(key, i)
        assert store.multi_get(keys) == [str(i).encode() for i in range(130)]

    def test_more_keys_than_a_page(self, direct: EtcdStore) -> None:
        keys = [f"key{i:05}" for i in range(11_000)]
        direct.multi_set(keys, itertools.repeat("v", len(keys)))
        assert sorted(direct.list_keys()) == keys
        assert direct.check(keys)

    def test_uneven_lists(self, store: dist.Store) -> None:
        with pytest.raises((ValueError, RuntimeError)):
            store.multi_set(["a", "b"], ["1"])


class TestFailures:
    def test_unreachable(self, prefix: str) -> None:
        with Client(port=1, read_timeout=1) as client, opened(client, prefix, timeout=0.2) as store:
            for operation in (
                lambda: store.set("k", "v"),
                lambda: store.add("k", 1),
                lambda: store.check(["k"]),
                store.num_keys,
            ):
                with pytest.raises(StoreConnectionError, match=r"127\.0\.0\.1:1") as caught:
                    operation()
                assert isinstance(caught.value, dist.DistNetworkError)
                assert isinstance(caught.value.__cause__, EtcdConnectionFailed)
            started = time.monotonic()
            with pytest.raises(StoreConnectionError):
                store.get("k")
            assert time.monotonic() - started < 10

    def test_not_written_by_a_store(self, direct: EtcdStore, client: Client, prefix: str) -> None:
        client.write(f"{prefix}/aw==", "not base64!")
        with pytest.raises(StoreError, match='"k" was not written by a store'):
            direct.get("k")
        with pytest.raises(StoreError, match="not written by a store"):
            direct.add("k", 1)

    def test_closed(self, direct: EtcdStore) -> None:
        clone = direct.clone()
        direct.set("k", "v")
        direct.close()
        direct.close()
        with pytest.raises(RuntimeError, match="closed"):
            direct.get("k")
        assert clone.get("k") == b"v"
        clone.close()

    def test_a_clone_of_a_subclass(self, client: Client, prefix: str) -> None:
        class Counting(EtcdStore):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.hits = 0

            def set(self, key: Any, value: Any) -> None:
                self.hits += 1
                super().set(key, value)

        with Counting(client, prefix) as store:
            store.set("k", "v")
            with store.clone() as clone:
                assert type(clone) is Counting
                clone.set("k", "w")
                assert (clone.hits, store.hits) == (2, 1)
                # As C++ does it.
                dist.PrefixStore("p", clone).set("k", "x")
                assert clone.hits == 3

    def test_closed_client(self, etcd_server: EtcdServer, prefix: str) -> None:
        client = etcd_server.get_client()
        with opened(client, prefix) as store:
            thread = in_background(client.close, after=0.2)
            with pytest.raises(RuntimeError, match="closed"):
                store.get("k")
            thread.join()

    def test_no_client(self) -> None:
        with pytest.raises(TypeError, match="client"):
            EtcdStore(object(), "/p")

    def test_lease_that_ran_out(self, client: Client, prefix: str) -> None:
        from torchetcd._torchetcd import Store as NativeStore

        lease = client._native.lease_grant(60)
        native = NativeStore(client._native, prefix.encode(), lease)
        with EtcdStore._of_round(client, prefix, native, seconds(1)) as store:
            store.set("k", "v")
            store.add("n", 1)
            store.queue_push("q", "v")
            client._native.lease_revoke(lease)
            assert (
                client._native.txn(
                    [], [("get", prefix.encode() + b"/", prefix.encode() + b"0", 0, False, 0)], []
                )[2][0][1]
                == 0
            )
            with pytest.raises(StoreError, match="lease of this store has run out"):
                store.set("k", "v")

    def test_signals_end_a_wait(self, direct: EtcdStore) -> None:
        import _thread

        # A shell starts what it runs in the background with SIGINT ignored.
        former = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            started = time.monotonic()
            timer = threading.Timer(0.3, _thread.interrupt_main)
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                direct.get("missing")
            assert time.monotonic() - started < 5
            timer.join()
        finally:
            signal.signal(signal.SIGINT, former)


def test_parts_of_the_layout_stay_after_use(direct: EtcdStore, client: Client, prefix: str) -> None:
    direct.set("k", "v")
    direct.add("n", 1)
    direct.delete_key("n")
    direct.queue_push("q", "v")
    direct.queue_pop("q")
    names = {child.key.removeprefix(prefix) for child in client.read(prefix).children}
    assert names == {"/aw==", "/.op"}
    # Receipts live under a lease of their own.
    receipts = client._native.txn(
        [], [("get", f"{prefix}/.op/".encode(), f"{prefix}/.op0".encode(), 0, False, 0)], []
    )[2][0][0]
    assert receipts
    assert all(kv[5] != 0 for kv in receipts)
