"""Sixteen threads on one store, one client and one handler."""

from __future__ import annotations

import contextlib
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousParameters

from support.processes.programs import PRELUDE, check_errors
from support.processes.zygote import Program, Zygote
from support.stores import opened, seconds
from support.waiting import eventually
from torchetcd.etcd import Client, EtcdCompareFailed, EtcdConnectionFailed
from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler
from torchetcd.etcd_store import EtcdStore, StoreTimeoutError

THREADS = 16
TIMES = 25


def together(work: Callable[[int], object], threads: int = THREADS) -> list[object]:
    """Run `work(number)` in so many threads that begin at once; raise what one of them raises."""
    start = threading.Barrier(threads)

    def run(number: int) -> object:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads), timeout=100))


@pytest.mark.parametrize("kind", ["direct", "prefixed"])
def test_everything_on_one_store(kind: str, client: Client, prefix: str) -> None:
    with opened(client, prefix, kind, timeout=60) as store:
        direct = kind == "direct"

        def work(number: int) -> list[bytes]:
            popped = []
            for turn in range(TIMES):
                key = f"{turn}/{number}"
                store.set(key, key)
                # Waits for what its neighbour is about to write, in the same turn.
                neighbour = f"{turn}/{(number + 1) % THREADS}"
                assert store.get(neighbour) == neighbour.encode()
                store.wait([f"{turn}/{other}" for other in range(THREADS)])
                store.add("sum", number)
                store.append("text", chr(ord("a") + number))
                while True:
                    swapped = store.compare_set(
                        "swaps", value := store.get("swaps"), f"{int(value) + 1}"
                    )
                    if swapped == f"{int(value) + 1}".encode():
                        break
                store.set_timeout(seconds(60 + number))
                with pytest.raises(StoreTimeoutError):
                    store.wait(["never"], seconds(0.001))
                assert store.check([key])
                assert store.delete_key(f"once {turn}") in (True, False)
                if direct:
                    store.queue_push("queue", key)
                    popped.append(store.queue_pop("queue"))
            return popped

        store.set("swaps", "0")
        popped = together(work)
        assert store.add("sum", 0) == TIMES * sum(range(THREADS))
        text = store.get("text")
        assert [text.count(ord("a") + number) for number in range(THREADS)] == [TIMES] * THREADS
        keys = {f"{turn}/{number}".encode() for turn in range(TIMES) for number in range(THREADS)}
        if direct:
            taken = [entry for entries in popped for entry in entries]  # type: ignore[attr-defined]
            assert len(taken) == len(keys)
            assert set(taken) == keys


def test_compare_set_to_the_same_value_is_a_swap_of_one(client: Client, prefix: str) -> None:
    with opened(client, prefix) as store:

        def work(number: int) -> bool:
            return bool(store.compare_set("leader", "", str(number)) == str(number).encode())

        assert together(work).count(True) == 1


def test_a_store_is_closed_while_it_is_used(client: Client, prefix: str) -> None:
    """What is under way goes on to its end; what begins after it says that the store is closed."""
    store = EtcdStore(client, prefix, seconds(60))
    done = threading.Semaphore(0)

    def work(number: int) -> int:
        calls = 0

        def use() -> None:
            nonlocal calls
            while True:
                store.add("n", 1)
                calls += 1
                if number % 2:
                    store.set(f"{number}", "v")
                    store.get(f"{number}")
                done.release()

        with pytest.raises(RuntimeError, match=r"^The store is closed\.$"):
            use()
        return calls

    def close(_: int) -> None:
        for _ in range(THREADS * 3):
            done.acquire(timeout=60)
        store.close()

    blocked = threading.Thread(target=lambda: got.append(store.get("late")))
    got: list[bytes] = []
    blocked.start()
    calls = together(lambda number: work(number) if number else close(number))
    with opened(client, prefix) as other:
        assert other.add("n", 0) == sum(call for call in calls if isinstance(call, int))
        other.set("late", "v")
        blocked.join(60)
    assert got == [b"v"]


def test_a_client_is_closed_while_it_is_used(client: Client, prefix: str) -> None:
    """That ends what is under way, too."""
    mine = Client(port=client.port, read_timeout=60)
    store = EtcdStore(mine, prefix, seconds(60))
    begun = threading.Semaphore(0)
    works: list[Callable[[], object]] = [
        lambda: store.get("never"),
        lambda: store.wait(["never"]),
        lambda: store.queue_pop("never"),
        lambda: mine.watch(prefix, timeout=0),
        lambda: store.set("k", "v"),
        lambda: store.add("n", 1),
        lambda: mine.read("/"),
    ]

    def use(number: int) -> None:
        while True:
            begun.release()
            works[number % len(works)]()

    def work(number: int) -> None:
        with pytest.raises(RuntimeError, match="closed"):
            use(number)

    def close(_: int) -> None:
        for _ in range(THREADS * 3):
            begun.acquire(timeout=60)
        mine.close()

    together(lambda number: work(number) if number else close(number))
    store.close()


def test_one_client(client: Client, prefix: str) -> None:
    client.write(f"{prefix}/n", "0")

    def work(number: int) -> None:
        for turn in range(TIMES // 5):
            while True:
                value = client.read(f"{prefix}/n").value
                with contextlib.suppress(EtcdCompareFailed):
                    client.test_and_set(f"{prefix}/n", str(int(value) + 1), value)
                    break
            key = f"{prefix}/of {number}"
            written = client.write(key, str(turn), ttl=60)
            assert client.watch(key, index=written.modifiedIndex, timeout=60).value == str(turn)
            with contextlib.suppress(EtcdConnectionFailed):
                client.watch(f"{prefix}/never", timeout=0.001)
            client.delete(key)

    together(work)
    assert client.read(f"{prefix}/n").value == str(THREADS * (TIMES // 5))
    assert [leaf.key for leaf in client.read(prefix, recursive=True).leaves] == [f"{prefix}/n"]


@pytest.fixture
def handler(client: Client, prefix: str) -> Iterator[EtcdRendezvousHandler]:
    made = _handler(client, prefix)
    yield made
    made.shutdown()


def _handler(client: Client, prefix: str, nodes: int = 2) -> EtcdRendezvousHandler:
    return create_rdzv_handler(
        RendezvousParameters(
            *("etcd-v3", f"127.0.0.1:{client.port}", uuid.uuid5(uuid.NAMESPACE_URL, prefix).hex),
            *(nodes, nodes),
            local_addr="127.0.0.1",
            etcd_prefix=prefix,
            join_timeout=60,
        )
    )


class TestHandler:
    def test_questions_while_it_joins(
        self, handler: EtcdRendezvousHandler, client: Client, prefix: str
    ) -> None:
        """Whoever asks meanwhile, round after round, gets an answer and disturbs nothing."""
        peer = _handler(client, prefix)
        over = threading.Event()

        def work(number: int) -> object:
            if number < 2:
                node = (handler, peer)[number]
                try:
                    return [node.next_rendezvous().rank for _ in range(10)]
                finally:
                    over.set()
            asked = 0
            while not over.is_set() or not asked:
                assert handler.is_closed() is False
                assert handler.num_nodes_waiting() in (0, 1)
                assert handler._rdzv_impl._node.progress()[0] >= 0
                asked += 1
            return asked

        first, second, *_ = together(work)
        assert isinstance(first, list)
        assert isinstance(second, list)
        assert [sorted(ranks) for ranks in zip(first, second, strict=True)] == [[0, 1]] * 10

    def test_one_thread_at_a_time_is_in_the_barrier(
        self, handler: EtcdRendezvousHandler, client: Client, prefix: str
    ) -> None:
        def join() -> object:
            try:
                return handler.next_rendezvous().rank
            except RuntimeError as exc:
                return str(exc)

        with ThreadPoolExecutor(THREADS) as pool:
            joining = [pool.submit(join) for _ in range(THREADS)]
            eventually(lambda: sum(one.done() for one in joining) == THREADS - 1)
            refused = {one.result() for one in joining if one.done()}
            assert refused == {
                "Another thread is in rendezvous_barrier() or next_rendezvous() of run "
                f"'{handler.get_run_id()}': a node takes part once, in one thread."
            }
            peer = _handler(client, prefix)
            rank = peer.next_rendezvous().rank
            assert [one.result(60) for one in joining if one.result(60) not in refused] == [
                1 - rank
            ]
        # And again when that is over.
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(node.next_rendezvous) for node in (handler, peer)]
            assert {one.result(60).rank for one in both} == {0, 1}

    def test_it_is_closed_while_it_joins(self, handler: EtcdRendezvousHandler) -> None:
        def work(number: int) -> None:
            if number:
                # Once one of them has closed it the node is out of the barrier again.
                eventually(
                    lambda: handler._rdzv_impl._node.progress()[1] == 1 or handler.is_closed()
                )
                handler.set_closed()
                assert handler.is_closed()
                return
            with pytest.raises(RendezvousClosedError):
                handler.next_rendezvous()

        together(work)

    def test_many_shut_it_down(self, client: Client, prefix: str) -> None:
        handler = _handler(client, prefix, nodes=1)
        handler.next_rendezvous()
        assert together(lambda _: handler.shutdown()) == [True] * THREADS


def test_an_interrupt_of_the_main_thread(client: Client, prefix: str) -> None:
    """It ends the main thread's call only: all others finish, and the sum is exact."""
    source = f"""{PRELUDE}
store = new_store()
def work():
    for _ in range(40):
        store.add("n", 1)
        store.get("n")
    done.release()
done = threading.Semaphore(0)
for _ in range(15):
    threading.Thread(target=work).start()
calls = 0
try:
    while True:
        calls += 1
        store.add("main", 1)
        if calls == 3:
            say("ready")
except KeyboardInterrupt:
    pass
for _ in range(15):
    assert done.acquire(timeout=60)
assert store.add("n", 0) == 600
# The call that was interrupted has happened or not.
assert calls - 1 <= store.add("main", 0) <= calls, calls
"""
    with Zygote() as zygote:
        for _ in range(5):
            program = Program(zygote, source, client.port, uuid.uuid4().hex, 60)
            assert program.line() == "ready"
            program.signal(signal.SIGINT)
            code, errors = program.end(60)
            assert code == 0, errors
            check_errors(errors)
