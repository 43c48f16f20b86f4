"""Whatever another program has written under our keys: a clear error that names the key, or nothing."""

from __future__ import annotations

import ast
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousTimeoutError,
)

import torchetcd
from support.stores import seconds
from support.waiting import eventually
from torchetcd.etcd import Client, EtcdException
from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler
from torchetcd.etcd_rendezvous_backend import EtcdRendezvousBackend
from torchetcd.etcd_server import EtcdServer
from torchetcd.etcd_store import EtcdStore, StoreError

MIB = 1 << 20
GARBAGE = {
    "empty": b"",
    "bytes": bytes(range(256)),
    "no UTF-8": b'{"v":1,"by":"\xff\xfe"}',
    "no base64": b"a$b",
    "an object": b"{}",
    "a list": b"[1, 2]",
    "null": b"null",
    "nested": b"[" * 100_000,
    "nested objects": b'{"v":' * 50_000,
    "a long number": b"9" * 10_000,
    "1 MiB": b"x" * MIB,
    "1 MiB of text": b'"' + b"\n\x1b" * (MIB // 2) + b'"',
}
garbage = pytest.mark.parametrize("value", GARBAGE.values(), ids=GARBAGE.keys())
# No error is so long that it could be the value itself.
LONGEST_ERROR = 2000

Make = Callable[..., EtcdRendezvousHandler]


@pytest.fixture(autouse=True)
def _no_panic(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """A panic in the native threads ends a task and shows nowhere but here."""
    yield
    assert "panicked" not in capfd.readouterr().err


@pytest.fixture
def make(etcd_server: EtcdServer, prefix: str) -> Iterator[Make]:
    """Make handlers of one run."""
    made = []

    def create(least: int = 1, most: int = 1, **config: Any) -> EtcdRendezvousHandler:
        given = {"local_addr": "127.0.0.1", "last_call_timeout": 0, "join_timeout": 60} | config
        endpoint, run_id = etcd_server.get_endpoint(), prefix.strip("/")
        params = RendezvousParameters("etcd-v3", endpoint, run_id, least, most, **given)
        made.append(create_rdzv_handler(params))
        return made[-1]

    yield create
    for handler in made:
        handler._rdzv_impl.leave()


@pytest.fixture
def run(client: Client, prefix: str) -> Run:
    return Run(client, f"/torchelastic/p2p/run_{prefix.strip('/')}/rdzv")


class Run:
    """What lies in etcd of the run, as another program sees and changes it."""

    def __init__(self, client: Client, path: str) -> None:
        self.client, self.path = client, path
        self.control = f"{path}/head/control"
        self.coordinator = f"{path}/head/coordinator"
        self.loss = f"{path}/head/loss"

    def put(self, *values: tuple[str, bytes | dict[str, Any]], lease: int = 0) -> None:
        """Write keys, all at once."""
        data = [(k, v if isinstance(v, bytes) else json.dumps(v).encode()) for k, v in values]
        ops = [("put", key.encode(errors="surrogateescape"), v, lease) for key, v in data]
        self.client._native.txn([], ops, [])

    def fill(self, base: str, count: int, value: bytes = b"x") -> None:
        """Write many keys."""
        for start in range(0, count, 100):
            self.put(*[(f"{base}{n}", value) for n in range(start, min(start + 100, count))])

    def lease(self) -> int:
        return self.client._native.lease_grant(600)

    def joined(self, round_: int = 1) -> list[int]:
        """The leases of those who have joined."""
        below = self.client.read(f"{self.path}/round/{round_}/join", recursive=True)
        return [leaf.lease for leaf in below.leaves]

    def await_joined(self, count: int, round_: int = 1) -> list[int]:
        eventually(lambda: f"{self.path}/round/{round_}/join" in self.client, 30)
        eventually(lambda: len(self.joined(round_)) >= count, 30)
        return self.joined(round_)


def final(attempt: str, **changes: Any) -> dict[str, Any]:
    """The record of a complete round."""
    record = {"v": 1, "round": 1, "state": "final", "world": 1, "attempt": attempt, "since": 1}
    return record | {"master_addr": "127.0.0.1", "master_port": 29500} | changes


def clear(error: pytest.ExceptionInfo[BaseException], *names: str) -> None:
    """Assert that an error names what it is about, in one line that can be read."""
    text = str(error.value)
    assert all(name in text for name in names), text[:LONGEST_ERROR]
    assert len(text) < LONGEST_ERROR
    assert text.isprintable(), ascii(text)


class Nodes:
    """Barriers in threads."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(8)

    def start(self, handler: EtcdRendezvousHandler) -> Future[RendezvousInfo]:
        return self._pool.submit(handler.next_rendezvous)

    def join(self, *handlers: EtcdRendezvousHandler) -> list[RendezvousInfo]:
        infos = [future.result(60) for future in [self.start(handler) for handler in handlers]]
        assert sorted(info.rank for info in infos) == list(range(len(infos)))
        assert {info.world_size for info in infos} == {len(infos)}
        return infos

    def shutdown(self) -> None:
        self._pool.shutdown(wait=True)


@pytest.fixture
def nodes(make: Make) -> Iterator[Nodes]:
    """Depends on `make`, whose handlers are still there when the threads end."""
    made = Nodes()
    yield made
    made.shutdown()


CONTROLS: dict[str, dict[str, Any]] = {
    "a newer version": {"v": 2, "round": 1, "state": "paused", "whatever": []},
    "a far newer version": {"v": 1 << 63},
    "a negative round": {"v": 1, "round": -1, "state": "open", "previous": None, "by": ""},
    "a round of 2^64": {"v": 1, "round": 1 << 64, "state": "open", "previous": None, "by": ""},
    "the last round": {
        "v": 1,
        "round": (1 << 64) - 1,
        "state": "open",
        "previous": None,
        "by": "",
    },
    "a round after a later one": {
        "v": 1,
        "round": 5,
        "state": "open",
        "previous": {"round": 5, "attempt": "1.1"},
        "by": "",
    },
    "a fraction": {"v": 1, "round": 1.5, "state": "open", "previous": None, "by": ""},
    "an unknown state": {"v": 1, "round": 1, "state": "x" * 5000},
    "nobody in the world": final("a", world=0),
    "a huge world": final("a", world=1 << 32),
    "a port that is none": final("a", master_port=70_000),
    "a huge address": final("a", master_addr="a" * 5000),
    "a huge attempt": final("a" * 5000),
    "a revision before all": final("a", since=-1),
    "a final round that is the last": final("a", round=(1 << 64) - 1),
}


class TestControl:
    @garbage
    def test_before(self, make: Make, run: Run, value: bytes) -> None:
        run.put((run.control, value))
        with pytest.raises(RendezvousStateError) as raised:
            make()
        clear(raised, run.control)

    @pytest.mark.parametrize("record", CONTROLS.values(), ids=CONTROLS.keys())
    def test_records_that_cannot_be(self, make: Make, run: Run, record: dict[str, Any]) -> None:
        run.put((run.control, record))
        with pytest.raises(RendezvousStateError) as raised:
            make()
        clear(raised, run.control)

    def test_a_newer_version_is_named(self, make: Make, run: Run) -> None:
        run.put((run.control, CONTROLS["a newer version"]))
        with pytest.raises(RendezvousStateError, match="speaks version 2, this agent 1: update it"):
            make()

    @garbage
    def test_during(self, make: Make, run: Run, nodes: Nodes, value: bytes) -> None:
        waiting = nodes.start(make(2, 2))
        run.await_joined(1)
        run.put((run.control, value))
        with pytest.raises(RendezvousStateError) as raised:
            waiting.result(30)
        clear(raised, run.control)

    def test_after(self, make: Make, run: Run, nodes: Nodes) -> None:
        one, other = make(2, 2), make(2, 2)
        nodes.join(one, other)
        record = run.client.read(run.control).value
        for value in GARBAGE.values():
            run.put((run.control, value))
            with pytest.raises(RendezvousStateError) as raised:
                one.set_closed()
            clear(raised, run.control)
        # The world goes on, and is whole again when the record is.
        assert not one.is_closed()
        assert one.num_nodes_waiting() == other.num_nodes_waiting() == 0
        run.put((run.control, record.encode()))

        def closes() -> bool:
            # The watch tells of the record that is whole again, a moment later.
            with contextlib.suppress(RendezvousStateError):
                one.set_closed()
                return True
            return False

        eventually(closes)
        assert one.is_closed()

    def test_texts_of_others_are_cut(self, make: Make, run: Run) -> None:
        texts = {"by": "x\n" * MIB, "reason": "\x1b[2J" * 100_000}
        texts = {name: text[:300_000] for name, text in texts.items()}
        run.put((run.control, {"v": 1, "round": 1, "state": "closed", "at": 0} | texts))
        with pytest.raises(RendezvousClosedError) as raised:
            make().next_rendezvous()
        clear(raised, "closed")


class TestCoordinator:
    @garbage
    def test_it_is_replaced(self, make: Make, run: Run, nodes: Nodes, value: bytes) -> None:
        first = nodes.start(make(2, 2))
        run.await_joined(1)
        run.put((run.coordinator, value))
        infos = [first.result, nodes.start(make(2, 2)).result]
        assert sorted(result(60).rank for result in infos) == [0, 1]

    def test_a_record_without_a_lease(self, make: Make, run: Run, nodes: Nodes) -> None:
        first = nodes.start(make(2, 2))
        run.await_joined(1)
        run.put((run.coordinator, {"host": "h", "pid": 1, "joined": 1, "last_call": False}))
        infos = [first.result, nodes.start(make(2, 2)).result]
        assert sorted(result(60).rank for result in infos) == [0, 1]

    def test_one_who_does_nothing_is_named(self, make: Make, run: Run, nodes: Nodes) -> None:
        first = nodes.start(make(1, 2, join_timeout=3, last_call_timeout=2))
        run.await_joined(1)
        record = {"host": "idle", "pid": 7, "joined": 1, "last_call": False}
        run.put((run.coordinator, record), lease=run.lease())
        with pytest.raises(RendezvousTimeoutError) as raised:
            first.result(30)
        clear(raised, "Its coordinator, idle (pid 7), did not complete it.")


class TestLoss:
    @garbage
    def test_it_is_replaced(self, make: Make, run: Run, nodes: Nodes, value: bytes) -> None:
        run.put((run.loss, value))
        one, other = make(2, 2), make(2, 2)
        nodes.join(one, other)
        run.put((run.loss, value))
        assert one.num_nodes_waiting() == 0
        other._rdzv_impl.leave()
        eventually(lambda: one.num_nodes_waiting() == 1, 30)
        assert run.client.read(run.loss).value.startswith("{")

    def test_a_text_that_is_long(self, make: Make, run: Run, nodes: Nodes) -> None:
        handler = make()
        nodes.join(handler)
        attempt = handler._rdzv_impl._node.attempt(1)
        run.put((run.loss, {"round": 1, "attempt": attempt, "member": "\n" * 300_000}))
        eventually(lambda: handler.num_nodes_waiting() == 1, 30)
        broken = handler._rdzv_impl._node.broken()
        assert broken is not None
        cause, reason = broken
        assert cause == "member_lost"
        assert len(reason) < LONGEST_ERROR
        assert reason.isprintable()


class TestJoin:
    @garbage
    @pytest.mark.parametrize("when", ["before", "during"])
    def test_it_counts_for_nothing(
        self, make: Make, run: Run, nodes: Nodes, value: bytes, when: str
    ) -> None:
        join = f"{run.path}/round/1/join"
        lease = run.lease()
        foreign = [
            "",
            "x",
            "0" * 16,
            "f" * 16,
            "-000000000000001",
            "\udcff" * 16,
            "a/b/c",
            "1" * 16,
        ]
        first = None
        if when == "during":
            first = nodes.start(make(2, 2))
            run.await_joined(1)
        for name in foreign:
            run.put((f"{join}/{name}", value))
        run.put((f"{join}/{lease:016x}", value), lease=lease)
        handlers = [make(2, 2)] if first else [make(2, 2), make(2, 2)]
        started = [nodes.start(handler) for handler in handlers] + ([first] if first else [])
        infos = [future.result(60) for future in started]
        assert sorted(info.rank for info in infos) == [0, 1]
        assert {info.world_size for info in infos} == {2}

    def test_who_is_at_fault_is_said(self, make: Make, run: Run) -> None:
        """A record as a node writes it, but not under that node's lease."""
        join = f"{run.path}/round/1/join/1111111111111111"
        record = {"v": 1, "host": "h", "pid": 1, "master_addr": "a", "master_port": 1}
        run.put((join, record), (f"{join[:-1]}2", record))
        with pytest.raises(RendezvousTimeoutError) as raised:
            make(2, 2, join_timeout=2).next_rendezvous()
        clear(raised, "1 of at least 2 nodes joined, 1 missing", f"'{join}' and 1 more")

    def test_a_newer_version_counts_for_nothing(self, make: Make, run: Run) -> None:
        lease = run.lease()
        join = f"{run.path}/round/1/join/{lease:016x}"
        run.put((join, {"v": 2, "host": "h", "pid": 1, "master_addr": "a", "master_port": 1}))
        with pytest.raises(RendezvousTimeoutError) as raised:
            make(2, 2, join_timeout=2).next_rendezvous()
        clear(raised, join)

    def test_thousands(self, make: Make, run: Run, nodes: Nodes) -> None:
        run.fill(f"{run.path}/round/1/join/{'a' * 12}", 5000)
        nodes.join(make(2, 2), make(2, 2))

    def test_large_ones(self, make: Make, run: Run, nodes: Nodes) -> None:
        for name in "abcdefgh":
            run.put((f"{run.path}/round/1/join/{name}", b"x" * MIB))
        nodes.join(make(2, 2), make(2, 2))

    @pytest.mark.parametrize(("text", "world"), [("host", 2), ("master_addr", 1)])
    def test_a_node_with_a_long_name(self, make: Make, run: Run, text: str, world: int) -> None:
        """Its record would make those of the others too large for etcd."""
        lease = run.lease()
        record = {"v": 1, "host": "h", "pid": 1, "master_addr": "a", "master_port": 1}
        join = f"{run.path}/round/1/join/{lease:016x}"
        run.put((join, record | {text: "x" * MIB}), lease=lease)
        info = make(1, 2, last_call_timeout=1).next_rendezvous()
        assert info.world_size == world
        assert len(run.client.read(run.control).value) < LONGEST_ERROR

    def test_a_key_that_is_taken_away(self, make: Make, run: Run, nodes: Nodes) -> None:
        """Another program writes to the key of one who has joined, and the coordinator goes."""
        first = make(3, 3)
        left = nodes.start(first)
        [coordinator] = run.await_joined(1)
        stays = nodes.start(make(2, 2))
        leases = run.await_joined(2)
        other = next(lease for lease in leases if lease != coordinator)
        run.put((f"{run.path}/round/1/join/{other:016x}", b"garbage"))
        first._rdzv_impl.leave()
        with pytest.raises(RuntimeError):
            left.result(30)
        # It cannot take the coordinator's place with a key that is not its own, and joins again.
        eventually(lambda: run.joined() == [other], 30)
        nodes.start(make(2, 2))
        assert stays.result(60).world_size == 2


class TestMember:
    @pytest.fixture
    def lease(self, make: Make, run: Run, nodes: Nodes) -> int:
        self.waiting = nodes.start(make(2, 2))
        [lease] = run.await_joined(1)
        return lease

    def _complete(self, run: Run, lease: int, value: Any, **changes: Any) -> str:
        """Complete the round as a coordinator that went mad."""
        key = f"{run.path}/round/1/member/mad/{lease:016x}"
        run.put((key, value), (run.control, final("mad", **changes)))
        return key

    @garbage
    def test_garbage(self, run: Run, lease: int, value: bytes) -> None:
        key = self._complete(run, lease, value)
        with pytest.raises(RendezvousStateError) as raised:
            self.waiting.result(30)
        clear(raised, key)

    @pytest.mark.parametrize("rank", [-1, 1, 1 << 31, 1 << 32, 1 << 64, "0", None])
    def test_ranks_that_cannot_be(self, run: Run, lease: int, rank: Any) -> None:
        key = self._complete(run, lease, {"rank": rank, "next": lease, "host": "h", "pid": 1})
        with pytest.raises(RendezvousStateError) as raised:
            self.waiting.result(30)
        clear(raised, key)

    @pytest.mark.parametrize("since", [0, (1 << 63) - 1])
    @pytest.mark.parametrize("next_", [0, -1, -(1 << 63), (1 << 63) - 1])
    def test_numbers_at_their_ends(self, run: Run, lease: int, since: int, next_: int) -> None:
        member = {"rank": 0, "next": next_, "host": "h", "pid": (1 << 32) - 1}
        self._complete(run, lease, member, since=since)
        assert self.waiting.result(30).rank == 0

    def test_a_survivor_of_the_last_rank(self, make: Make, run: Run, nodes: Nodes) -> None:
        handler = make(1, 3, last_call_timeout=1)
        nodes.join(handler)
        attempt = json.loads(run.client.read(run.control).value)["attempt"]
        record = {"v": 1, "host": "h", "pid": 1, "master_addr": "a", "master_port": 1}
        for rank in ((1 << 32) - 1, (1 << 32) - 1):
            lease = run.lease()
            member = f"{run.path}/round/1/member/{attempt}/{lease:016x}"
            run.put(
                (member, {"rank": rank, "next": 0, "host": "h", "pid": 1}),
                (f"{run.path}/round/2/join/{lease:016x}", record),
                lease=lease,
            )
        info = handler.next_rendezvous()
        assert (info.rank, info.world_size) == (0, 3)


class TestWaiting:
    def test_it_counts_for_nothing(self, make: Make, run: Run, nodes: Nodes) -> None:
        # The one that watches those who wait reads all that is there, which takes its time.
        handler = make(1, 3, last_call_timeout=2)
        nodes.join(handler)
        waiting = f"{run.path}/round/1/waiting"
        for value in GARBAGE.values():
            for name in ["", "x", "0" * 16, "f" * 16, "1" * 16, "\udcff" * 16, "a/b"]:
                run.put((f"{waiting}/{name}", value))
        run.fill(f"{waiting}/{'a' * 12}", 3000)
        run.put((f"{waiting}/{'2' * 16}", b"x"), lease=run.lease())
        other = nodes.start(make(1, 3))
        eventually(lambda: handler.num_nodes_waiting() > 0, 30)
        # Events come in order: all of the others were seen before the one of the node.
        assert handler.num_nodes_waiting() == 1
        infos = [nodes.start(handler).result(60), other.result(60)]
        assert sorted(info.rank for info in infos) == [0, 1]


class TestLastCall:
    @garbage
    def test_it_begins_anew(self, make: Make, run: Run, nodes: Nodes, value: bytes) -> None:
        handler = make(1, 2, last_call_timeout=1)
        nodes.join(handler)
        run.put((f"{run.path}/round/2/last_call", value))
        assert handler.next_rendezvous().world_size == 1

    @pytest.mark.parametrize("lease", [0, -1, -(1 << 63), (1 << 63) - 1, 1 << 63, None])
    def test_any_lease(self, make: Make, run: Run, nodes: Nodes, lease: int | None) -> None:
        """None is one that lives for ten minutes, which no last call does."""
        handler = make(1, 2, last_call_timeout=1, join_timeout=30)
        nodes.join(handler)
        lease = run.lease() if lease is None else lease
        run.put((f"{run.path}/round/2/last_call", {"lease": lease}))
        assert handler.next_rendezvous().world_size == 1


# The rest is JSON, and what it means is up to who stored it.
NO_JSON = {
    name: value for name, value in GARBAGE.items() if name not in ("an object", "a list", "null")
}


class TestExtraData:
    @pytest.mark.parametrize("value", NO_JSON.values(), ids=NO_JSON.keys())
    def test_no_json(self, make: Make, nodes: Nodes, value: bytes) -> None:
        handler = make()
        nodes.join(handler)
        rdzv = handler._rdzv_impl
        with rdzv._extra_data(1) as store:
            store.set("key", value[:MIB])
        with pytest.raises(RendezvousStateError) as raised:
            rdzv.load_extra_data(1, "key", 10)
        clear(raised, "'key'", rdzv._round_path(1, "extra_data"))

    def test_no_base64(self, make: Make, run: Run, nodes: Nodes) -> None:
        handler = make()
        nodes.join(handler)
        path = handler._rdzv_impl._round_path(1, "extra_data")
        # base64 of "key"
        run.put((f"{path}/a2V5", b"\xff"))
        with pytest.raises(StoreError) as raised:
            handler._rdzv_impl.load_extra_data(1, "key", 10)
        clear(raised, '"key"')


@pytest.fixture
def store(client: Client, prefix: str) -> Iterator[EtcdStore]:
    with EtcdStore(client, prefix, seconds(20)) as made:
        yield made


# What is no value of a store: neither base64 nor a counter.
FOREIGN = (
    {
        name: value
        for name, value in GARBAGE.items()
        if name not in ("empty", "null", "a long number", "1 MiB")
    }
    | {"1 MiB of base64 and more": b"x" * MIB + b"$"}
    | {"no counter": b"#x", "a counter of 2^64": b"#18446744073709551616", "a lone sign": b"#"}
)
foreign = pytest.mark.parametrize("value", FOREIGN.values(), ids=FOREIGN.keys())
KEY = "a2V5"  # base64 of "key"


class TestStore:
    @foreign
    def test_values(self, store: EtcdStore, run: Run, prefix: str, value: bytes) -> None:
        run.put((f"{prefix}/{KEY}", value))
        calls: list[Callable[[], object]] = [
            lambda: store.get("key"),
            lambda: store.multi_get(["other", "key"]),
            lambda: store.add("key", 1),
            lambda: store.append("key", "x"),
            lambda: store.compare_set("key", "old", "new"),
            lambda: store.compare_set("key", "", "new"),
        ]
        store.set("other", "there")
        for call in calls:
            with pytest.raises(StoreError) as raised:
                call()
            clear(raised, '"key"')
        # It can be looked for, replaced and deleted.
        store.wait(["key"], seconds(20))
        assert store.check(["key"])
        store.set("key", "new")
        assert store.get("key") == b"new"
        run.put((f"{prefix}/{KEY}", value))
        assert store.delete_key("key")

    @foreign
    def test_a_value_that_is_waited_for(
        self, store: EtcdStore, run: Run, prefix: str, value: bytes
    ) -> None:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(store.get, "key")
            threading.Event().wait(0.2)  # so that it mostly comes as an event
            run.put((f"{prefix}/{KEY}", value))
            with pytest.raises(StoreError) as raised:
                waiting.result(30)
        clear(raised, '"key"')

    def test_companions(self, store: EtcdStore, run: Run, prefix: str) -> None:
        assert store.add("key", 5) == 5
        names = [
            "",
            "x",
            "1.5",
            "+5",
            "05",
            "\u0661",
            "9" * 30,
            "-",
            "\udcff",
            "a" * 10_000,
            "/",
            "5/x",
        ]
        run.put(*[(f"{prefix}/.add/{KEY}.{name}", GARBAGE["bytes"]) for name in names])
        run.put((f"{prefix}/.add/{KEY}.5", b"\xff" * MIB))  # its version is what counts
        assert store.get("key") == b"10"
        assert store.add("key", 1) == 11

    def test_thousands_of_companions(self, store: EtcdStore, run: Run, prefix: str) -> None:
        store.add("key", 5)
        run.fill(f"{prefix}/.add/{KEY}.x", 3000)
        assert store.add("key", 1) == 6
        assert store.add("key", 1) == 7

    @pytest.mark.parametrize("n", [1 << 62, -(1 << 63)])
    def test_companions_at_the_ends(self, store: EtcdStore, run: Run, prefix: str, n: int) -> None:
        store.add("key", 5)
        for _ in range(6):
            run.put((f"{prefix}/.add/{KEY}.{n}", b""))
        assert store.add("key", 0) == (5 + 6 * n + (1 << 63)) % (1 << 64) - (1 << 63)

    @foreign
    def test_queue_entries(self, store: EtcdStore, run: Run, prefix: str, value: bytes) -> None:
        run.put((f"{prefix}/.queue/{KEY}.\x01", value))
        store.queue_push("key", "good")
        assert store.queue_len("key") == 2
        with pytest.raises(StoreError) as raised:
            store.queue_pop("key")
        clear(raised, '"key"')
        # It was taken: it stops nobody else.
        assert store.queue_pop("key") == b"good"

    def test_a_counter_in_a_queue(self, store: EtcdStore, run: Run, prefix: str) -> None:
        run.put((f"{prefix}/.queue/{KEY}.0", b"#5"))
        with pytest.raises(StoreError, match='"key"'):
            store.queue_pop("key")

    def test_receipts(self, store: EtcdStore, run: Run, prefix: str) -> None:
        for name in ["", "x", "\udcff", "/" * 100]:
            run.put((f"{prefix}/.op/{name}", GARBAGE["bytes"]))
        store.set("key", "value")
        assert store.add("counter", 1) == 1

    def test_a_receipt_of_the_store(self, store: EtcdStore, run: Run, prefix: str) -> None:
        """Written by others it says nothing any more: the store goes on from there, as nothing was lost."""
        store.set("key", "value")
        [receipt] = [leaf.key for leaf in run.client.read(f"{prefix}/.op", recursive=True).leaves]
        for value in (b"x", b"5"):
            run.put((str(receipt), value))
        store.set("key", "last")
        assert store.get("key") == b"last"
        assert len(list(run.client.read(f"{prefix}/.op", recursive=True).leaves)) == 1

    def test_names(self, store: EtcdStore, run: Run, prefix: str) -> None:
        names = ["no base64!", "abc", "\udcff\udcfe", "a/b/c=", "x" * 10_001]
        run.put(*[(f"{prefix}/{name}", GARBAGE["bytes"]) for name in names])
        store.set("key", "value")
        assert store.list_keys() == ["key"]
        assert store.num_keys() == 1 + len(names)
        assert store.get("key") == b"value"

    def test_thousands_of_names(self, store: EtcdStore, run: Run, prefix: str) -> None:
        run.fill(f"{prefix}/$", 6000)
        store.set("key", "value")
        assert store.list_keys() == ["key"]
        store.wait(["key"], seconds(20))


class TestBackend:
    @garbage
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_state(self, client: Client, run: Run, prefix: str, value: bytes, when: str) -> None:
        backend = EtcdRendezvousBackend(client, "run", prefix)
        if when == "after":
            backend.set_state(b"state")
        run.put((f"{prefix}/run", value))
        if value in (GARBAGE["empty"], GARBAGE["null"], GARBAGE["a long number"], GARBAGE["1 MiB"]):
            # That is base64: to say whether it is a state is up to torch.
            found = backend.get_state()
            assert found is not None
            assert isinstance(found[0], bytes)
            return
        for call in (backend.get_state, lambda: backend.set_state(b"x")):
            with pytest.raises(RendezvousStateError) as raised:
                call()
            clear(raised, f"{prefix}/run")

    def test_a_directory(self, client: Client, run: Run, prefix: str) -> None:
        backend = EtcdRendezvousBackend(client, "run", prefix)
        run.put((f"{prefix}/run/", b""))
        with pytest.raises(RendezvousStateError) as raised:
            backend.get_state()
        clear(raised, f"{prefix}/run")


class TestClient:
    """The python-etcd shaped client: its directories are what others may have made."""

    def test_markers(self, client: Client, run: Run, prefix: str) -> None:
        run.put((f"{prefix}/", GARBAGE["bytes"]), (f"{prefix}/a/", b""), (f"{prefix}/a//", b"x"))
        run.put((f"{prefix}/b", b"x"), (f"{prefix}/b/", b""), (f"{prefix}/b/\udcff/", b"\xff"))
        found = client.read(prefix, recursive=True)
        keys = [leaf.key for leaf in found.leaves]
        assert f"{prefix}/b/\udcff/" in keys
        assert client.read(f"{prefix}/b").value == "x"
        for path in ("", "/a", "/a/", "/b", "/b/\udcff"):
            client.read(f"{prefix}{path}", recursive=True)
            assert f"{prefix}{path}" in client
        client.delete(prefix, recursive=True)
        assert prefix not in client

    @pytest.mark.parametrize("levels", [99, 100, 101, 5000, 400_000])
    def test_deep_directories(self, client: Client, run: Run, prefix: str, levels: int) -> None:
        deep = f"{prefix}{'/d' * levels}"
        run.put((deep, b"x"), (f"{prefix}/flat", b"y"))
        found = client.read(prefix, recursive=True)
        assert {leaf.key: leaf.value for leaf in found.leaves} == {deep: "x", f"{prefix}/flat": "y"}
        assert repr(found)
        assert found == client.read(prefix, recursive=True)

    def test_many(self, client: Client, run: Run, prefix: str) -> None:
        run.fill(f"{prefix}/x/", 5000)
        assert len(list(client.read(prefix, recursive=True).leaves)) == 5000

    @pytest.mark.needs_etcd
    def test_an_answer_that_is_too_large(self) -> None:
        """It is refused before it is in memory."""
        with EtcdServer() as server, server.get_client() as client:
            run = Run(client, "")
            for number in range(190):
                run.put((f"/large/{number}", b"x" * (MIB * 14 // 10)))
            with pytest.raises(EtcdException) as raised:
                client.read("/large", recursive=True)
            clear(raised, "too large", server.get_endpoint())
            assert len(client.read("/large/1").value) == MIB * 14 // 10


def _names(tree: ast.AST) -> Iterator[str]:
    """All modules that are imported, and all dotted names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


UNSAFE = (
    "pickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "torch.load",
    "eval",
    "exec",
)


def _unsafe(source: str) -> list[str]:
    names = list(_names(ast.parse(source)))
    return [name for name in names if name in UNSAFE or name.split(".")[0] in UNSAFE]


def test_nothing_is_unpickled() -> None:
    sources = list(Path(torchetcd.__file__).parent.rglob("*.py"))
    assert len(sources) > 10
    for path in sources:
        assert not _unsafe(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import marshal",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "import shelve as s",
        "eval('1')",
    ],
)
def test_what_unpickles_would_be_found(source: str) -> None:
    assert _unsafe(source)
