"""A request whose answer is lost is answered with what truly happened, and took effect once.

Each row of the tables runs five times: the answer is lost, or the request itself on its way, each with
and without another client's write to the same key in between, and once with nothing lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from support.network.proxy import Proxy
from support.stores import compact, opened
from support.waiting import eventually
from torchetcd.etcd import Client, EtcdAmbiguous, EtcdConnectionFailed
from torchetcd.etcd._transactions import get_below
from torchetcd.etcd_server import EtcdServer
from torchetcd.etcd_store import EtcdStore, QueueEmptyError, StoreOutcomeUnknownError

# What every write of a store carries: the key of its receipt.
A_WRITE = b"/.op/"


@pytest.fixture
def proxy(etcd_server: EtcdServer) -> Iterator[Proxy]:
    with Proxy(etcd_server.get_port()) as made:
        yield made


@pytest.fixture
def proxied(proxy: Proxy) -> Iterator[Client]:
    with Client("127.0.0.1", proxy.port, read_timeout=20) as made:
        yield made


class Row(NamedTuple):
    """A write, and what it must return and leave behind."""

    #: What there is before.
    given: Callable[[EtcdStore], object]
    write: Callable[[EtcdStore], object]
    #: What another client writes in between.
    meddle: Callable[[EtcdStore], object]
    #: What is looked at in the end.
    look: Callable[[EtcdStore], object]
    #: Returned and seen when nobody else writes.
    alone: tuple[object, object]
    #: The other one wrote right after the write took effect.
    after: tuple[object, object]
    #: The other one wrote while the write had not arrived.
    before: tuple[object, object]
    #: Which request is hit, where the write takes several.
    nth: int = 0
    #: How many of them write nothing, that one included: they leave no receipt.
    reads: int = 0


def nothing(_store: EtcdStore) -> None:
    pass


def value(store: EtcdStore) -> bytes | None:
    return store.get("k") if store.check(["k"]) else None


def counted(store: EtcdStore) -> int:
    return store.add("k", 0)


def queued(store: EtcdStore) -> list[bytes]:
    entries = []
    with contextlib.suppress(QueueEmptyError):
        while True:
            entries.append(store.queue_pop("q", block=False))
    return entries


def put(text: str) -> Callable[[EtcdStore], object]:
    return lambda store: store.set("k", text)


def add(number: int) -> Callable[[EtcdStore], int]:
    return lambda store: store.add("k", number)


def append(text: str) -> Callable[[EtcdStore], None]:
    return lambda store: store.append("k", text)


def swap(expected: str, desired: str) -> Callable[[EtcdStore], bytes]:
    return lambda store: store.compare_set("k", expected, desired)


def delete(store: EtcdStore) -> bool:
    return store.delete_key("k")


def push(*entries: str) -> Callable[[EtcdStore], None]:
    def pushes(store: EtcdStore) -> None:
        for entry in entries:
            store.queue_push("q", entry)

    return pushes


def pop(store: EtcdStore) -> bytes:
    return store.queue_pop("q")


def push_and_pop(entry: str) -> Callable[[EtcdStore], object]:
    return lambda store: (push(entry)(store), pop(store))


def put_two(store: EtcdStore) -> None:
    store.multi_set(["k", "l"], ["mine", "mine"])


def two(store: EtcdStore) -> list[bytes]:
    return store.multi_get(["k", "l"])


def put_many(store: EtcdStore) -> None:
    """More than one request can hold."""
    store.multi_set([f"k{number}" for number in range(150)], ["mine"] * 150)


def mine_of_many(store: EtcdStore) -> int:
    return store.multi_get([f"k{number}" for number in range(150)]).count(MINE)


def many_numbers(store: EtcdStore) -> None:
    """As many different ones as a counter is kept in; with one more they are folded."""
    for number in range(2, 34):
        store.add("k", number)


MINE = b"mine"
THEIRS = b"theirs"
ROWS = {
    "set a new key": Row(
        nothing, put("mine"), put("theirs"), value, (None, MINE), (None, THEIRS), (None, MINE)
    ),
    "set": Row(
        put("old"), put("mine"), put("theirs"), value, (None, MINE), (None, THEIRS), (None, MINE)
    ),
    "set a counter": Row(
        add(5), put("mine"), put("theirs"), value, (None, MINE), (None, THEIRS), (None, MINE)
    ),
    "multi_set": Row(
        nothing,
        put_two,
        put("theirs"),
        two,
        (None, [MINE, MINE]),
        (None, [THEIRS, MINE]),
        (None, [MINE, MINE]),
    ),
    "multi_set in several requests": Row(
        nothing,
        put_many,
        lambda store: store.set("other", "theirs"),
        mine_of_many,
        (None, 150),
        (None, 150),
        (None, 150),
        nth=1,
    ),
    "add to nothing": Row(nothing, add(1), add(10), counted, (1, 1), (1, 11), (11, 11)),
    "add to a counter": Row(add(5), add(1), add(10), counted, (6, 6), (6, 16), (16, 16)),
    "add the same": Row(add(5), add(1), add(1), counted, (6, 6), (6, 7), (7, 7)),
    # Ours took no effect yet: a literal is read first and made a counter by a second request.
    "add to a text": Row(put("5"), add(1), add(10), counted, (6, 6), (16, 16), (16, 16), reads=1),
    "add to a text, second": Row(
        put("5"), add(1), add(10), counted, (6, 6), (6, 16), (16, 16), nth=1, reads=1
    ),
    "add and set": Row(add(5), add(1), put("100"), counted, (6, 6), (6, 100), (101, 101)),
    "add and delete": Row(add(5), add(1), delete, counted, (6, 6), (6, 0), (1, 1)),
    "add and fold": Row(many_numbers, add(1), add(10), counted, (561, 561), (561, 571), (571, 571)),
    # It is the folding that is hit, after the addition.
    "fold": Row(many_numbers, add(1), add(10), counted, (561, 561), (561, 571), (561, 571), nth=1),
    "compare_set swaps": Row(
        put("old"),
        swap("old", "mine"),
        put("theirs"),
        value,
        (MINE, MINE),
        (MINE, THEIRS),
        (THEIRS, THEIRS),
    ),
    # Sent again it swaps: nobody knows of the first time.
    "compare_set does not swap": Row(
        put("old"),
        swap("other", "mine"),
        put("other"),
        value,
        (b"old", b"old"),
        (MINE, MINE),
        (MINE, MINE),
        reads=1,
    ),
    "compare_set creates": Row(
        nothing,
        swap("", "mine"),
        put("theirs"),
        value,
        (MINE, MINE),
        (MINE, THEIRS),
        (THEIRS, THEIRS),
    ),
    "compare_set finds nothing": Row(
        nothing,
        swap("other", "mine"),
        put("other"),
        value,
        (b"other", None),
        (MINE, MINE),
        (MINE, MINE),
        reads=1,
    ),
    "compare_set of a counter": Row(
        add(5),
        swap("5", "mine"),
        put("theirs"),
        value,
        (MINE, MINE),
        (MINE, THEIRS),
        (THEIRS, THEIRS),
        nth=1,
        reads=1,
    ),
    "append to nothing": Row(
        nothing,
        append("mine"),
        append("+"),
        value,
        (None, MINE),
        (None, b"mine+"),
        (None, b"+mine"),
    ),
    "append": Row(
        put("old"),
        append("mine"),
        append("+"),
        value,
        (None, b"oldmine"),
        (None, b"oldmine+"),
        (None, b"old+mine"),
        nth=1,
        reads=1,
    ),
    # The first request only reads what is there.
    "append, first": Row(
        put("old"),
        append("mine"),
        append("+"),
        value,
        (None, b"oldmine"),
        (None, b"old+mine"),
        (None, b"old+mine"),
        reads=1,
    ),
    "append to a counter": Row(
        add(5),
        append("0"),
        append("1"),
        value,
        (None, b"50"),
        (None, b"501"),
        (None, b"510"),
        nth=1,
        reads=1,
    ),
    "delete_key": Row(
        put("old"), delete, put("theirs"), value, (True, None), (True, THEIRS), (True, None)
    ),
    "delete_key of nothing": Row(
        nothing, delete, put("theirs"), value, (False, None), (True, None), (True, None), reads=1
    ),
    "delete_key of a counter": Row(
        add(5), delete, add(2), value, (True, None), (True, b"2"), (True, None)
    ),
    "queue_push": Row(
        nothing,
        push("mine"),
        push_and_pop("theirs"),
        queued,
        (None, [MINE]),
        (None, [THEIRS]),
        (None, [MINE]),
    ),
    "queue_pop": Row(
        push("a", "b"),
        pop,
        push_and_pop("c"),
        queued,
        (b"a", [b"b"]),
        (b"a", [b"c"]),
        (b"b", [b"c"]),
    ),
    # Neither by its value nor by how many there are can this be told.
    "queue_pop of equals": Row(
        push("a"), pop, push("a"), queued, (b"a", []), (b"a", [b"a"]), (b"a", [b"a"])
    ),
}


def writes(client: Client, prefix: str) -> int:
    """Return how often stores wrote something: each time makes a version of a receipt."""
    receipts = client._native.txn([], [get_below(f"{prefix}/.op/".encode())], [])[2]
    return sum(version for _, _, _, _, version, _ in receipts[0][0])


class TestStore:
    @pytest.mark.parametrize("meddled", [False, True], ids=["alone", "meddled"])
    @pytest.mark.parametrize("lost", ["answer", "request"])
    @pytest.mark.parametrize("name", ROWS)
    def test_a_write(
        self,
        name: str,
        lost: str,
        meddled: bool,
        client: Client,
        proxied: Client,
        proxy: Proxy,
        prefix: str,
    ) -> None:
        row = ROWS[name]
        with opened(client, prefix) as other, opened(proxied, prefix) as store:
            row.given(other)
            if meddled:
                # Else it is the first one with its receipt, which is not there yet.
                store.set("another key", "")
            done = writes(client, prefix) + max(0, row.nth + (lost == "answer") - row.reads)

            def meanwhile() -> None:
                eventually(lambda: writes(client, prefix) == done)
                if meddled:
                    row.meddle(other)

            proxy.break_at(A_WRITE, forward=lost == "answer", then=meanwhile, skip=row.nth)
            returned = row.write(store)
            assert proxy.broken == 1
            expected = row.alone if not meddled else row.after if lost == "answer" else row.before
            assert (returned, row.look(other)) == expected

    @pytest.mark.parametrize("name", ROWS)
    def test_the_same_without_a_loss(self, name: str, client: Client, prefix: str) -> None:
        row = ROWS[name]
        with opened(client, prefix) as store:
            row.given(store)
            assert (row.write(store), row.look(store)) == row.alone

    @pytest.mark.parametrize("name", ["add to a counter", "compare_set swaps", "queue_pop"])
    def test_what_etcd_has_forgotten_is_not_guessed(
        self, name: str, client: Client, proxied: Client, proxy: Proxy, prefix: str
    ) -> None:
        row = ROWS[name]
        with opened(client, prefix) as other, opened(proxied, prefix) as store:
            row.given(other)
            done = writes(client, prefix) + 1

            def meanwhile() -> None:
                eventually(lambda: writes(client, prefix) == done)
                row.meddle(other)
                compact(client)

            proxy.break_at(A_WRITE, forward=True, then=meanwhile)
            if name.startswith("add"):
                with pytest.raises(StoreOutcomeUnknownError):
                    row.write(store)
            else:
                # Of these it is known without the history.
                assert row.write(store) == row.after[0]
            assert row.look(other) == row.after[1]

    def test_every_answer_of_many_is_lost_once(
        self, client: Client, proxied: Client, proxy: Proxy, prefix: str
    ) -> None:
        with opened(client, prefix) as other, opened(proxied, prefix) as store:
            for number in range(1, 21):
                proxy.break_at(A_WRITE, forward=True)
                assert store.add("k", 1) == 2 * number - 1
                assert other.add("k", 1) == 2 * number
            assert proxy.broken == 20


class TestReceipts:
    def test_who_writes_nothing_makes_no_revision(self, client: Client, prefix: str) -> None:
        with opened(client, prefix) as store:
            store.set("k", "old")
            store.add("n", 5)
            before = revision(client)
            assert store.compare_set("k", "other", "mine") == b"old"
            assert store.compare_set("no such key", "other", "mine") == b"other"
            assert store.add("n", 0) == 5
            assert store.delete_key("no such key") is False
            with pytest.raises(QueueEmptyError):
                store.queue_pop("q", block=False)
            assert revision(client) == before

    def test_poppers_that_lose_make_no_revision(self, client: Client, prefix: str) -> None:
        with opened(client, prefix) as store:
            store.set("the first write", "takes a receipt")
            before = revision(client)
            with ThreadPoolExecutor(8) as pool:
                popped = [pool.submit(store.queue_pop, "q") for _ in range(8)]
                for number in range(8):
                    store.queue_push("q", str(number))
                assert {one.result() for one in popped} == {b"%d" % n for n in range(8)}
            assert revision(client) == before + 16


def revision(client: Client) -> int:
    return client._native.txn([], [("get", b"/no such key", None, 1, True, 0)], [])[1]


class Case(NamedTuple):
    """An operation of the python-etcd shaped client; `left` is what it leaves behind."""

    given: Callable[[Client, str], object]
    call: Callable[[Client, str], object]
    left: list[tuple[str, bytes, int]]
    nth: int = 0


def no_keys(_client: Client, _key: str) -> None:
    pass


def a_key(client: Client, key: str) -> None:
    client.write(key, "old")


def two_keys(client: Client, key: str) -> None:
    client.write(f"{key}/a", "1")
    client.write(f"{key}/b", "2")


# Key, value and version of what is there after the operation took effect once.
CASES = {
    "write": Case(no_keys, lambda c, k: c.write(k, "new"), [("", b"new", 1)]),
    "write over": Case(a_key, lambda c, k: c.write(k, "new"), [("", b"new", 2)]),
    "set": Case(a_key, lambda c, k: c.set(k, "new"), [("", b"new", 2)]),
    "create": Case(no_keys, lambda c, k: c.write(k, "new", prevExist=False), [("", b"new", 1)]),
    "with a ttl": Case(no_keys, lambda c, k: c.write(k, "new", ttl=60), [("", b"new", 1)]),
    "test_and_set": Case(a_key, lambda c, k: c.test_and_set(k, "new", "old"), [("", b"new", 2)]),
    "refresh": Case(a_key, lambda c, k: c.refresh(k, 60), [("", b"old", 2)], nth=1),
    "directory": Case(no_keys, lambda c, k: c.write(k, None, dir=True), [("/", b"", 1)]),
    "delete": Case(a_key, lambda c, k: c.delete(k), []),
    "pop": Case(a_key, lambda c, k: c.pop(k), []),
    "delete all": Case(two_keys, lambda c, k: c.delete(k, recursive=True), []),
    "delete if": Case(a_key, lambda c, k: c.delete(k, prevValue="old"), []),
}


class TestClient:
    """It says that it does not know, as python-etcd does, and has done it once or not at all."""

    @staticmethod
    def _keys(client: Client, key: str) -> list[tuple[str, bytes, int]]:
        path = key.encode()
        found = client._native.txn([], [("get", path, path + b"0", 0, False, 0)], [])[2][0][0]
        return [
            (name.decode()[len(key) :], value, version) for name, value, _, _, version, _ in found
        ]

    @pytest.mark.parametrize("lost", ["answer", "request"])
    @pytest.mark.parametrize("name", CASES)
    def test_an_operation(
        self,
        name: str,
        lost: str,
        client: Client,
        proxied: Client,
        proxy: Proxy,
        prefix: str,
    ) -> None:
        case = CASES[name]
        case.given(client, prefix)
        before = self._keys(client, prefix)
        expected = case.left if lost == "answer" else before

        def applied() -> None:
            eventually(lambda: self._keys(client, prefix) == expected)

        proxy.break_at(prefix.encode(), forward=lost == "answer", then=applied, skip=case.nth)
        with pytest.raises(EtcdAmbiguous, match=str(proxy.port)):
            case.call(proxied, prefix)
        assert proxy.broken == 1
        assert self._keys(client, prefix) == expected
        # Neither is it sent again later.
        assert "no such key" not in proxied
        assert self._keys(client, prefix) == expected

    def test_the_lease_of_a_key_that_may_be_there_stays(
        self, client: Client, proxied: Client, proxy: Proxy, prefix: str
    ) -> None:
        proxy.break_at(
            prefix.encode(), forward=True, then=lambda: eventually(lambda: prefix in client)
        )
        with pytest.raises(EtcdAmbiguous):
            proxied.write(prefix, "x", ttl=60)
        assert (client.read(prefix).ttl or 0) > 50

    def test_a_read_is_sent_again(
        self, client: Client, proxied: Client, proxy: Proxy, prefix: str
    ) -> None:
        client.write(prefix, "x")
        proxy.break_at(prefix.encode(), forward=True)
        assert proxied.read(prefix).value == "x"
        assert proxy.broken == 1

    def test_a_read_that_is_not_answered_changed_nothing(
        self, proxied: Client, proxy: Proxy, prefix: str
    ) -> None:
        assert prefix not in proxied
        proxied.read_timeout = 0.5
        proxy.freeze()
        with pytest.raises(EtcdConnectionFailed, match=str(proxy.port)) as caught:
            proxied.read(prefix)
        assert not isinstance(caught.value, EtcdAmbiguous)


class TestLeases:
    LEASE = 0x7A7B7C7D7E

    @staticmethod
    def _varint(number: int) -> bytes:
        encoded = b""
        while number > 0x7F:
            encoded += bytes([number & 0x7F | 0x80])
            number >>= 7
        return encoded + bytes([number])

    @pytest.fixture
    def needle(self, client: Client) -> Iterator[bytes]:
        yield self._varint(self.LEASE)
        client._native.lease_revoke(self.LEASE)

    @pytest.mark.parametrize("forward", [True, False])
    def test_a_grant(
        self, forward: bool, client: Client, proxied: Client, proxy: Proxy, needle: bytes
    ) -> None:
        def granted() -> bool:
            return client._native.lease_time_to_live(self.LEASE)[1] == 60

        def then() -> None:
            if forward:
                eventually(granted)

        proxy.break_at(needle, forward=forward, then=then)
        assert proxied._native.lease_grant(60, self.LEASE) == self.LEASE
        assert proxy.broken == 1
        assert granted()

    @pytest.mark.parametrize("forward", [True, False])
    def test_a_revocation(
        self, forward: bool, client: Client, proxied: Client, proxy: Proxy, needle: bytes
    ) -> None:
        client._native.lease_grant(60, self.LEASE)
        proxy.break_at(needle, forward=forward)
        proxied._native.lease_revoke(self.LEASE)
        assert proxy.broken == 1
        assert client._native.lease_time_to_live(self.LEASE)[0] == -1

    @pytest.mark.parametrize("forward", [True, False])
    def test_a_renewal(
        self, forward: bool, client: Client, proxied: Client, proxy: Proxy, needle: bytes
    ) -> None:
        client._native.lease_grant(60, self.LEASE)
        proxy.break_at(needle, forward=forward)
        assert proxied._native.lease_keep_alive_once(self.LEASE) is True
        assert proxy.broken == 1


def test_a_push_that_was_overtaken(
    client: Client, proxied: Client, proxy: Proxy, prefix: str
) -> None:
    """What another one has pushed by then comes first: somebody may have seen it alone."""
    with opened(proxied, prefix) as store, opened(client, prefix) as other:
        # Both know etcd already, and the first has read where the queue ends when it is overtaken.
        other.queue_push("queue", "before")

        def overtake() -> None:
            other.set("anything", "")
            other.queue_push("queue", "first")

        proxy.break_at(A_WRITE, forward=False, then=overtake)
        store.queue_push("queue", "overtaken")
        assert proxy.broken == 1
        popped = [other.queue_pop("queue", block=False) for _ in range(3)]
        assert popped == [b"before", b"first", b"overtaken"]
