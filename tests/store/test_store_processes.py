"""Stores of several processes: contention, forks, and answers that get lost."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import pytest

from support.network.proxy import Proxy
from support.processes.zygote import Program, Zygote
from support.stores import in_processes, opened, seconds
from torchetcd.etcd import Client
from torchetcd.etcd_store import EtcdStore

PROCESSES = 4
TIMES = 40


def _store(port: int, prefix: str) -> EtcdStore:
    return EtcdStore(Client(port=port), prefix, seconds(60))


def _add(rank: int, port: int, prefix: str, numbers: list[int]) -> list[int]:
    store = _store(port, prefix)
    store.barrier("start", PROCESSES)
    return [store.add("n", numbers[(rank + i) % len(numbers)]) for i in range(TIMES)]


@pytest.mark.parametrize("literal", [False, True])
def test_every_addition_counts_once(client: Client, prefix: str, literal: bool) -> None:
    start = 0
    with opened(client, prefix) as store:
        if literal:
            store.set("n", "1000")
            start = 1000
        seen = in_processes(PROCESSES, _add, client.port, prefix, [1])
        total = PROCESSES * TIMES
        assert sorted(chain.from_iterable(seen)) == list(range(start + 1, start + total + 1))
        assert all(own == sorted(own) for own in seen)
        assert store.add("n", 0) == start + total


def test_different_numbers(client: Client, prefix: str) -> None:
    numbers = [1, -1, 5, 2**40, -3, 0, 7, 11]
    in_processes(PROCESSES, _add, client.port, prefix, numbers)
    expected = sum(
        numbers[(rank + i) % len(numbers)] for rank in range(PROCESSES) for i in range(TIMES)
    )
    with opened(client, prefix) as store:
        assert store.add("n", 0) == expected
        assert store.get("n") == str(expected).encode()


def _many_numbers(rank: int, port: int, prefix: str) -> int:
    store = _store(port, prefix)
    store.barrier("start", PROCESSES)
    numbers = range(rank * 1000, rank * 1000 + 60)
    for n in numbers:
        store.add("n", n)
    return sum(numbers)


def test_folding_loses_nothing(client: Client, prefix: str) -> None:
    sums = in_processes(PROCESSES, _many_numbers, client.port, prefix)
    with opened(client, prefix) as store:
        assert store.add("n", 0) == sum(sums)


def _set_and_add(rank: int, port: int, prefix: str) -> None:
    # A set between additions makes the counter a literal again and again.
    store = _store(port, prefix)
    store.barrier("start", PROCESSES)
    for i in range(TIMES):
        if rank == 0:
            store.compare_set("n", store.get("n"), store.get("n"))
        elif rank == 1 and i % 5 == 0:
            store.append("n", "")
        else:
            store.add("n", 1)


def test_rewrites_between_additions(client: Client, prefix: str) -> None:
    with opened(client, prefix) as store:
        store.add("n", 0)
        in_processes(PROCESSES, _set_and_add, client.port, prefix)
        # What rewrites the value writes what it has at that moment.
        added = TIMES * (PROCESSES - 2) + TIMES - TIMES // 5
        assert store.add("n", 0) == added


def _swap(rank: int, port: int, prefix: str) -> int:
    store = _store(port, prefix)
    store.barrier("start", PROCESSES)
    tries = 0
    for _ in range(TIMES // 4):
        current = store.compare_set("k", "", "0")
        while True:
            tries += 1
            wanted = f"{int(current.split(b',')[0]) + 1},{rank}.{tries}".encode()
            found = store.compare_set("k", current, wanted)
            if found == wanted:
                break
            current = found
    return tries


def test_compare_set_swaps_for_one_only(client: Client, prefix: str) -> None:
    in_processes(PROCESSES, _swap, client.port, prefix)
    with opened(client, prefix) as store:
        assert store.get("k").startswith(f"{PROCESSES * (TIMES // 4)},".encode())


def _append(rank: int, port: int, prefix: str) -> None:
    store = _store(port, prefix)
    store.barrier("start", PROCESSES)
    for _ in range(TIMES // 4):
        store.append("k", str(rank))


def test_appends_lose_nothing(client: Client, prefix: str) -> None:
    in_processes(PROCESSES, _append, client.port, prefix)
    with opened(client, prefix) as store:
        value = store.get("k")
        assert [value.count(str(rank).encode()) for rank in range(PROCESSES)] == [TIMES // 4] * 4


def _queue(rank: int, port: int, prefix: str) -> list[bytes]:
    store = _store(port, prefix)
    store.barrier("start", PROCESSES)
    if rank % 2:
        for i in range(TIMES):
            store.queue_push("q", f"{rank}:{i}")
        return []
    return [store.queue_pop("q") for _ in range(TIMES)]


@pytest.mark.parametrize("lossy", [False, True])
def test_each_entry_of_a_queue_is_popped_once(client: Client, prefix: str, lossy: bool) -> None:
    with Proxy(client.port, every=7) as proxy:
        port = proxy.port if lossy else client.port
        popped = list(chain.from_iterable(in_processes(PROCESSES, _queue, port, prefix)))
    assert sorted(popped) == sorted(f"{rank}:{i}".encode() for rank in (1, 3) for i in range(TIMES))
    for rank in (1, 3):
        assert len({entry for entry in popped if entry.startswith(b"%d:" % rank)}) == TIMES


def _wait(rank: int, port: int, prefix: str) -> list[bytes]:
    store = _store(port, prefix)
    gathered = []
    for turn in range(5):
        store.set(f"{turn}/{rank}", str(rank))
        gathered += store.multi_get([f"{turn}/{peer}" for peer in range(PROCESSES)])
    return gathered


def test_gathering(client: Client, prefix: str) -> None:
    everything = [str(rank).encode() for rank in range(PROCESSES)] * 5
    assert in_processes(PROCESSES, _wait, client.port, prefix) == [everything] * PROCESSES


def test_additions_whose_answers_are_lost(client: Client, prefix: str) -> None:
    with Proxy(client.port, every=10) as proxy:
        seen = in_processes(PROCESSES, _add, proxy.port, prefix, [1])
        assert proxy.lost >= PROCESSES * TIMES // 10
    assert sorted(chain.from_iterable(seen)) == list(range(1, PROCESSES * TIMES + 1))


@pytest.mark.parametrize("made_where", ["parent", "used in parent"])
def test_a_forked_child_uses_the_parent_s_store(
    zygote: Zygote, client: Client, prefix: str, made_where: str
) -> None:
    script = """
        import os, sys
        from torchetcd.etcd import Client
        from torchetcd.etcd_store import EtcdStore

        store = EtcdStore(Client(port=int(sys.argv[1])), sys.argv[2])
        if sys.argv[3] == "used in parent":
            store.add("n", 1)
        children = []
        for child in range(3):
            pid = os.fork()
            if pid == 0:
                try:
                    for _ in range(20):
                        store.add("n", 1)
                    store.set(f"child{child}", store.get("go"))
                    os._exit(0)
                except BaseException as exc:
                    print(exc, file=sys.stderr)
                    os._exit(1)
            children.append(pid)
        for _ in range(20):
            store.add("n", 1)
        store.set("go", "v")
        assert store.multi_get(["child0", "child1", "child2"]) == [b"v"] * 3
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
        # The parent's own lease and receipts live on.
        print(store.add("n", 0), flush=True)
        # One name for each process: siblings that shared receipts would lose writes.
        receipts = store.client.read(f"{sys.argv[2]}/.op").children
        names = {receipt.key.split("/")[-1].split(".")[0] for receipt in receipts}
        assert len(names) == 4, names
    """
    program = Program(zygote, script, client.port, prefix, made_where)
    assert int(program.line()) == 80 + (made_where == "used in parent")
    assert program.end() == (0, "")


@pytest.mark.parametrize("end", ["store.close()", "pass", "del store; import gc; gc.collect()"])
def test_the_interpreter_ends(zygote: Zygote, client: Client, prefix: str, end: str) -> None:
    script = f"""
        import contextlib, sys, threading, time
        import torch.distributed as dist
        from torchetcd.etcd import Client
        from torchetcd.etcd_store import EtcdStore

        store = EtcdStore(Client(port=int(sys.argv[1])), sys.argv[2])
        below = dist.PrefixStore("p", store)
        below.set("k", "v")

        def wait():
            with contextlib.suppress(RuntimeError):
                below.get("never")

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        while sys._current_frames()[waiting.ident].f_code is not EtcdStore.get.__code__:
            time.sleep(0.001)
        {end}
    """
    assert Program(zygote, script, client.port, prefix).end(60) == (0, "")


def _die(rank: int, port: int, prefix: str, act: Callable[[], None] | None = None) -> None:
    raise RuntimeError("on purpose")


def test_a_failing_process_fails_the_test(client: Client, prefix: str) -> None:
    with pytest.raises(AssertionError, match="on purpose"):
        in_processes(1, _die, client.port, prefix)
