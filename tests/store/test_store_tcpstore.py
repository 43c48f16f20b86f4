"""The same script on torch's TCPStore and on EtcdStore must have the same results."""

from __future__ import annotations

import gc
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch.distributed as dist

from support.network.proxy import Proxy
from support.stores import opened, seconds
from torchetcd import _native
from torchetcd.etcd import Client

pytestmark = pytest.mark.skipif(
    not hasattr(dist.TCPStore, "list_keys"),
    reason="the TCPStore of this torch has fewer methods than the script",
)

KEYS = ["", "a", "b", "c/d", "ключ", "n1", "n2"]
QUEUES = ["q1", "q2", "a"]
VALUES = ["", "0", "5", "-3", " 7x", "text", str(2**63 - 1), "\0"]
STEPS = 400


@pytest.fixture
def tcp_store() -> Iterator[dist.Store]:
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    yield store
    del store
    gc.collect()


def script(rng: random.Random, queues: bool) -> Iterator[tuple[Any, ...]]:
    """Make operations: a method and its arguments."""

    def key() -> str:
        return rng.choice(KEYS)

    def some() -> list[str]:
        names = KEYS + (["q1", "q2"] if queues else [])
        return [rng.choice(names) for _ in range(rng.randrange(4))]

    def value() -> str:
        return rng.choice(VALUES)

    kinds: dict[str, Callable[[], tuple[Any, ...]]] = {
        "set": lambda: (key(), value()),
        "get": lambda: (key(),),
        "add": lambda: (key(), rng.choice([1, 1, 0, -1, 7, 2**62, -(2**63)])),
        "compare_set": lambda: (key(), value(), value()),
        "append": lambda: (key(), value()),
        "delete_key": lambda: (key(),),
        "num_keys": lambda: (),
        "check": lambda: (some(),),
        "wait": lambda: (some(), seconds(0)),
        "multi_get": lambda: ([key() for _ in range(rng.randrange(4))],),
        "multi_set": lambda: pairs([(key(), value()) for _ in range(rng.randrange(4))]),
    }
    if queues:
        kinds |= {
            "list_keys": lambda: (),
            "queue_push": lambda: (rng.choice(QUEUES), value()),
            "queue_pop": lambda: (rng.choice(QUEUES), False),
            "queue_len": lambda: (rng.choice(QUEUES),),
        }

    def pairs(items: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
        return [name for name, _ in items], [text for _, text in items]

    while True:
        method = rng.choice(list(kinds))
        yield method, *kinds[method]()


def run(store: dist.Store, method: str, args: tuple[Any, ...]) -> object:
    try:
        result = getattr(store, method)(*args)
    except dist.DistStoreError as exc:
        empty = type(exc).__name__.endswith("QueueEmptyError")
        return "the queue is empty" if empty else "timed out"
    return sorted(result) if method == "list_keys" else result


@pytest.mark.parametrize("seed", range(4))
def test_the_same_script_at_a_gateway(
    client: Client, prefix: str, tcp_store: dist.Store, seed: int
) -> None:
    gateway = _native.Gateway([0], None)
    gateway.serve(_native.Store(client._native, prefix.encode()))
    ours = dist.TCPStore(*gateway.address, None, False, wait_for_workers=False)
    operations = script(random.Random(seed), queues=True)
    for step in range(STEPS // 2):
        method, *args = next(operations)
        if method == "add":
            # Both break the connection.
            there = args[0] in tcp_store.list_keys()
            if there and not is_number(tcp_store.get(args[0])):
                continue
        context = f"seed {seed}, step {step}: {method}{tuple(args)}"
        theirs = run_tcp(tcp_store, method, tuple(args))
        assert run_tcp(ours, method, tuple(args)) == theirs, context
    gateway.close()


def run_tcp(store: dist.Store, method: str, args: tuple[Any, ...]) -> object:
    # TCPStore with a timeout of 0 fails also when the answer is not there at once.
    waits_for = {"get": lambda: [args[0]], "multi_get": lambda: args[0], "wait": lambda: args[0]}
    if method in waits_for and not store.check(waits_for[method]()):
        return "timed out"
    return run(store, method, args[:1] if method == "wait" else args)


def is_number(value: bytes) -> bool:
    found = re.match(rb"\s*([+-]?\d+)", value)
    return found is not None and -(2**63) <= int(found[1]) < 2**63


def compare(ours: dist.Store, theirs: dist.Store, seed: int, steps: int) -> None:
    """Run one script on both."""
    rng = random.Random(seed)
    direct = not isinstance(ours, dist.PrefixStore)
    operations = script(rng, queues=direct)
    for step in range(steps):
        method, *args = next(operations)
        if method in ("get", "multi_get") and direct:
            # TCPStore answers b"" where there is no key but a queue of this name.
            names = args[0] if method == "multi_get" else [args[0]]
            if not set(names) <= set(theirs.list_keys()):
                continue
        if method == "add":
            # TCPStore breaks the connection, without taking effect.
            there = args[0] in ours.list_keys() if direct else ours.check([args[0]])
            if there and not is_number(ours.get(args[0])):
                with pytest.raises(ValueError, match="needs an integer"):
                    ours.add(*args)
                continue
        context = f"seed {seed}, step {step}: {method}{tuple(args)}"
        assert run(ours, method, tuple(args)) == run_tcp(theirs, method, tuple(args)), context


@pytest.mark.parametrize("kind", ["direct", "prefixed"])
@pytest.mark.parametrize("seed", range(8))
def test_the_same_script(
    client: Client, prefix: str, tcp_store: dist.Store, kind: str, seed: int
) -> None:
    theirs = tcp_store if kind == "direct" else dist.PrefixStore("below", tcp_store)
    with opened(client, prefix, kind, timeout=0) as ours:
        compare(ours, theirs, seed, steps=400)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_script_while_answers_are_lost(
    client: Client, prefix: str, tcp_store: dist.Store, seed: int
) -> None:
    with (
        Proxy(client.port, every=2) as proxy,
        Client(port=proxy.port) as far,
        opened(far, prefix, timeout=0) as ours,
    ):
        compare(ours, tcp_store, 1000 + seed, steps=150)
        assert proxy.lost > 20
