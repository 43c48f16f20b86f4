"""Stores of a round: its waits end when a member is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousParameters

from support.stores import in_background, seconds
from torchetcd.etcd import Client
from torchetcd.etcd_rendezvous import create_rdzv_handler
from torchetcd.etcd_store import EtcdStore, MemberLostError


class Member:
    """A node that is in the round, and its store as torchrun gets it."""

    def __init__(self, client: Client, run_id: str) -> None:
        parameters = RendezvousParameters(
            "etcd-v3", f"127.0.0.1:{client.port}", run_id, 2, 2, local_addr="127.0.0.1"
        )
        self.handler = create_rdzv_handler(parameters)

    def join(self) -> None:
        self.store: dist.Store = self.handler.next_rendezvous().store
        self.store.set_timeout(seconds(30))

    def leave(self) -> None:
        self.handler._rdzv_impl.leave()


@pytest.fixture
def members(client: Client, prefix: str) -> Iterator[list[Member]]:
    made = [Member(client, prefix.strip("/")) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Member.join, made))
    yield made
    for member in made:
        member.leave()


def find_store(store: dist.Store) -> EtcdStore:
    while not isinstance(store, EtcdStore):
        store = store.underlying_store
    return store


def test_members_share_a_store(members: list[Member]) -> None:
    one, two = (member.store for member in members)
    thread = in_background(lambda: two.set("k", "v"), after=0.1)
    assert one.get("k") == b"v"
    thread.join()
    assert one.add("n", 1) + two.add("n", 1) == 3


@pytest.mark.parametrize("operation", ["get", "multi_get", "wait", "queue_pop"])
def test_a_lost_member_ends_a_wait(members: list[Member], operation: str) -> None:
    store = members[0].store
    store.set("there", "v")
    thread = in_background(members[1].leave, after=0.2)
    wait = {
        "get": lambda: store.get("missing"),
        "multi_get": lambda: store.multi_get(["there", "missing"]),
        "wait": lambda: store.wait(["there", "missing"]),
        "queue_pop": lambda: find_store(store).queue_pop("missing"),
    }[operation]
    started = time.monotonic()
    with pytest.raises(MemberLostError, match="lost") as caught:
        wait()
    assert time.monotonic() - started < 10
    assert isinstance(caught.value, dist.DistStoreError)
    thread.join()
    # What is there can be had, and later waits for what is not fail at once.
    assert store.get("there") == b"v"
    assert store.multi_get(["there"]) == [b"v"]
    store.wait(["there"])
    started = time.monotonic()
    with pytest.raises(MemberLostError):
        store.get("missing")
    assert time.monotonic() - started < 10


def test_all_keys_live_under_the_lease_of_the_run(members: list[Member], client: Client) -> None:
    store = find_store(members[0].store)
    store.set("k", "v")
    store.add("n", 1)
    store.queue_push("q", "v")
    start = store.prefix.encode()
    kvs = client._native.txn([], [("get", start, start[:-1] + b"0", 0, False, 0)], [])[2][0][0]
    assert len(kvs) >= 5
    leases = {kv[5] for kv in kvs}
    assert len(leases) == 1
    assert leases != {0}
