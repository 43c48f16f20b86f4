"""What torch's C++ does with a store written in Python, row by row (docs/architecture.md)."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import types
import weakref
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch.distributed as dist
from torch.distributed.elastic.utils import store as store_util

from support.stores import in_background, opened, seconds
from torchetcd.etcd import Client
from torchetcd.etcd_store import EtcdStore, StoreTimeoutError

#: What C++ looks up, each of which must be a Python function in the class's own body.
OVERRIDES = [
    *("set", "get", "add", "check", "wait", "compare_set", "deleteKey", "getNumKeys", "append"),
    *("multi_get", "multi_set", "has_extended_api", "clone", "delete_key", "num_keys"),
    *("queue_push", "queue_pop", "queue_len", "list_keys"),
]


@pytest.fixture(params=["direct", "prefixed"])
def store(request: pytest.FixtureRequest, client: Client, prefix: str) -> Iterator[dist.Store]:
    with opened(client, prefix, request.param) as made:
        yield made


def is_direct(store: dist.Store) -> bool:
    return isinstance(store, EtcdStore)


@pytest.mark.parametrize("name", OVERRIDES)
def test_overrides_are_functions_of_the_class(name: str) -> None:
    assert isinstance(EtcdStore.__dict__[name], types.FunctionType)


def test_set(store: dist.Store) -> None:
    assert store.set("k", "text") is None
    assert store.get("k") == b"text"
    store.set("k", b"\xff\0")
    assert store.get("k") == b"\xff\0"
    with pytest.raises(TypeError):
        store.set("k", 5)


def test_set_of_a_bytearray(client: Client, prefix: str) -> None:
    with opened(client, prefix) as store:
        store.set("k", bytearray(b"\xff\0"))
        assert store.get("k") == b"\xff\0"


def test_get_returns_exactly_bytes(store: dist.Store) -> None:
    store.set("k", "")
    assert type(store.get("k")) is bytes
    assert type(store.multi_get(["k"])[0]) is bytes
    assert type(store.compare_set("k", "", "v")) is bytes


def test_add(store: dist.Store) -> None:
    assert store.add("k", 1) == 1
    assert store.add("k", 2**40) == 2**40 + 1


def test_check(store: dist.Store) -> None:
    store.set("k", "v")
    assert store.check(["k"]) is True
    assert store.check(["k", "k"]) is True
    assert store.check(["k", "l"]) is False
    assert store.check([]) is True


def test_wait(store: dist.Store) -> None:
    store.set("k", "v")
    assert store.wait(["k"]) is None
    assert store.wait(["k", "k"]) is None
    assert store.wait(["k"], seconds(5)) is None
    assert store.wait([]) is None
    assert store.wait([], seconds(0)) is None


def test_wait_for_a_key_named_twice(store: dist.Store) -> None:
    thread = in_background(lambda: store.set("k", "v"), after=0.2)
    store.wait(["k", "k"], seconds(10))
    thread.join()


@pytest.mark.parametrize("timeout", [timedelta(0), timedelta(microseconds=250)])
def test_wait_without_time_fails_at_once(store: dist.Store, timeout: timedelta) -> None:
    with pytest.raises(StoreTimeoutError):
        store.wait(["k"], timeout)


def test_compare_set(store: dist.Store) -> None:
    assert store.compare_set("k", "a", "b") == b"a"
    assert store.compare_set("k", "", "b") == b"b"
    assert store.compare_set("k", b"b", b"\xff") == b"\xff"
    assert store.compare_set("k", "x", "y") == b"\xff"


def test_delete_key(store: dist.Store) -> None:
    store.set("k", "v")
    assert store.delete_key("k") is True
    assert store.delete_key("k") is False
    if is_direct(store):
        store.set("k", "v")
        assert store.deleteKey("k") is True


def test_num_keys(store: dist.Store) -> None:
    store.multi_set(["a", "b"], ["1", "2"])
    store.add("c", 1)
    assert store.num_keys() == 3
    if is_direct(store):
        assert store.getNumKeys() == 3


def test_append_of_the_value_itself(store: dist.Store) -> None:
    store.set("k", "x")
    store.append("k", "x")
    store.append("k", "xx")
    assert store.get("k") == b"xxxx"


def test_multi_get_and_multi_set(store: dist.Store) -> None:
    assert store.multi_set(["a", "b"], [b"\xff", b""]) is None
    assert store.multi_get(["b", "a", "b"]) == [b"", b"\xff", b""]


def test_has_extended_api(store: dist.Store) -> None:
    assert store.has_extended_api() is True


def test_clone(store: dist.Store) -> None:
    if not hasattr(store, "clone"):
        pytest.skip("this torch has no clone of a PrefixStore")
    store.set("k", "v")
    clone = store.clone()
    assert clone.get("k") == b"v"
    assert type(clone) is type(store)
    clone.set("l", "w")
    assert store.get("l") == b"w"
    if is_direct(store):
        clone.close()
        assert store.get("l") == b"w"


def test_a_clone_that_only_c_holds_stays(client: Client, prefix: str) -> None:
    with opened(client, prefix) as store:
        below = dist.PrefixStore("p", store.clone())
        gc.collect()
        below.set("k", "v")
        assert below.get("k") == b"v"


def test_a_clone_has_the_timeout(client: Client, prefix: str) -> None:
    with opened(client, prefix, timeout=7) as store, store.clone() as clone:
        assert clone.timeout == seconds(7)
        clone.set_timeout(seconds(8))
        assert store.timeout == seconds(7)


def test_barrier(store: dist.Store) -> None:
    if not hasattr(store, "barrier"):
        pytest.skip("this torch has no Store.barrier")
    thread = in_background(lambda: store.barrier("b", 2, seconds(10)))
    store.barrier("b", 2, seconds(10))
    thread.join()
    with pytest.raises(dist.DistStoreError):
        store.barrier("c", 2, seconds(0.2))


def test_queues_and_list_keys_are_called_directly(client: Client, prefix: str) -> None:
    with opened(client, prefix) as store:
        store.queue_push("q", "v")
        assert store.queue_len("q") == 1
        assert store.queue_pop("q") == b"v"
        with pytest.raises(dist.DistStoreError) as caught:
            store.queue_pop("q", False)
        if hasattr(dist, "QueueEmptyError"):
            assert type(caught.value) is dist.QueueEmptyError
        store.set("k", "v")
        assert store.list_keys() == ["k"]


def test_timeout_is_kept_by_c(client: Client, prefix: str) -> None:
    with EtcdStore(client, prefix) as store:
        assert store.timeout == seconds(300)
        store.set_timeout(seconds(0.25))
        assert store.timeout == seconds(0.25)
        with pytest.raises(StoreTimeoutError, match="250ms"):
            store.get("k")
    with EtcdStore(client, prefix, seconds(5)) as store:
        assert store.timeout == seconds(5)


def test_timeouts_are_those_of_torch_and_of_its_etcd_store(store: dist.Store) -> None:
    for wait in (lambda: store.get("k"), lambda: store.wait(["k"]), lambda: store.multi_get(["k"])):
        store.set_timeout(seconds(0.05))
        with pytest.raises(LookupError):
            wait()
        with pytest.raises(dist.DistStoreError):
            wait()


def test_a_store_that_only_c_holds_stays(client: Client, prefix: str) -> None:
    below = dist.PrefixStore("p", EtcdStore(client, prefix, seconds(5)))
    gc.collect()
    below.set("k", "v")
    assert dist.PrefixStore("q", below).check(["k"]) is False
    assert below.get("k") == b"v"
    below.underlying_store.close()


def test_a_closed_store_goes(client: Client, prefix: str) -> None:
    store = EtcdStore(client, prefix)
    store.set("k", "v")
    gone = weakref.ref(store)
    del store
    gc.collect()
    assert gone() is not None
    gone().close()
    gc.collect()
    assert gone() is None


def test_threads_run_while_a_store_waits(store: dist.Store) -> None:
    thread = in_background(lambda: store.get("k"), after=0)
    # The lock of the interpreter is free, or this would wait for ever.
    store.set("k", "v")
    thread.join(10)
    assert not thread.is_alive()


def test_awkward_keys(store: dist.Store) -> None:
    for key in ("nul\0key", "", "ключ"):
        store.set(key, b"\xfe" + key.encode())
        assert store.get(key) == b"\xfe" + key.encode()


def test_no_pickle_no_copy(client: Client, prefix: str) -> None:
    with EtcdStore(client, prefix) as store:
        with pytest.raises(TypeError):
            pickle.dumps(store)
        with pytest.raises(TypeError):
            copy.copy(store)


@pytest.mark.parametrize("kind", ["direct", "prefixed"])
def test_a_relative_prefix_works(client: Client, prefix: str, kind: str) -> None:
    with opened(client, prefix.lstrip("/"), kind) as store:
        thread = in_background(lambda: store.set("k", "v"), after=0.2)
        assert store.get("k") == b"v"
        thread.join()


def test_client_and_prefix_are_attributes(client: Client) -> None:
    with EtcdStore(client, "test") as store:
        assert store.client is client
        assert store.client.read_timeout == client.read_timeout
        assert store.prefix == "test/"


def test_what_the_agent_calls(store: dist.Store) -> None:
    world = 3
    gathered: dict[int, list[bytes]] = {}

    def member(rank: int) -> None:
        data = f"data{rank}".encode()
        gathered[rank] = store_util.synchronize(store, data, rank, world, "agents/")
        store_util.barrier(store, world, "exit/", barrier_timeout=20)

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert gathered == {rank: [b"data0", b"data1", b"data2"] for rank in range(world)}


def test_a_timeout_of_the_agent_s_barrier(store: dist.Store) -> None:
    with pytest.raises(dist.DistStoreError):
        store_util.barrier(store, 2, "alone/", barrier_timeout=0.2, rank=0, trace_timeout=0.1)


def test_torch_s_own_test_of_python_stores(client: Client, prefix: str) -> None:
    if not hasattr(dist, "_test_python_store"):
        pytest.skip("this torch has no _test_python_store")
    with EtcdStore(client, prefix) as store:
        dist._test_python_store(store)
