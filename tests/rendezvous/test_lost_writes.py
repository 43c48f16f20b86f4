"""Nodes that write the state of a rendezvous against each other: who loses gives way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import Token

from support.handlers import set_state
from torchetcd._rendezvous import state_backend as module
from torchetcd.etcd import Client
from torchetcd.etcd_rendezvous_backend import EtcdRendezvousBackend
from torchetcd.etcd_server import EtcdServer


@pytest.fixture
def lose(
    backend: EtcdRendezvousBackend, client: Client, prefix: str
) -> Callable[[], tuple[bytes, Token]]:
    """Write with a token that is old, and return what came back."""
    other = EtcdRendezvousBackend(client, "run", prefix)
    set_state(other, b"x")

    def lost() -> tuple[bytes, Token]:
        found = backend.get_state()
        assert found is not None
        assert set_state(other, b"theirs", found[1])[2]
        state, token, has_set = set_state(backend, b"mine", found[1])
        assert not has_set
        return state, token

    return lost


def test_the_pauses_grow_with_the_losses_in_a_row(
    backend: EtcdRendezvousBackend,
    lose: Callable[[], tuple[bytes, Token]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(module, "_RANDOM", SimpleNamespace(uniform=lambda _low, high: high))
    # Every attempt takes longer than this.
    monkeypatch.setattr(module, "_LONGEST_ATTEMPT_S", 2.0**-30)
    for _ in range(8):
        _, token = lose()
    assert [pause * 2**30 for pause in pauses] == [2, 4, 8, 16, 32, 32, 32]
    assert set_state(backend, b"mine", token)[2]
    pauses.clear()
    lose()
    assert not pauses
    lose()
    assert [pause * 2**30 for pause in pauses] == [2]


def test_no_pause_is_longer_than_a_node_may_be_silent(
    lose: Callable[[], tuple[bytes, Token]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(module, "_MOST_DOUBLINGS", 60)
    monkeypatch.setattr(module, "_RANDOM", SimpleNamespace(uniform=lambda _low, high: high))
    for _ in range(60):
        lose()
    assert max(pauses) == 4


def test_the_state_is_read_after_the_pause(
    backend: EtcdRendezvousBackend,
    lose: Callable[[], tuple[bytes, Token]],
    client: Client,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lose()
    other = EtcdRendezvousBackend(client, "run", prefix)

    def meanwhile(_seconds: float) -> None:
        found = other.get_state()
        assert set_state(other, b"later", found and found[1])[2]

    monkeypatch.setattr(time, "sleep", meanwhile)
    state, token = lose()
    assert state == b"later"
    assert set_state(backend, b"mine", token)[2]


@pytest.mark.needs_etcd
def test_a_crowd_needs_few_attempts(etcd_server: EtcdServer, prefix: str) -> None:
    nodes = 32
    start = threading.Barrier(nodes)
    thinking = threading.Event()

    def node(number: int) -> int:
        """Add a line to the state, as PyTorch's handler adds a node; return the losses."""
        with etcd_server.get_client() as client:
            mine = EtcdRendezvousBackend(client, "run", prefix)
            mine.get_state()
            start.wait()
            state, token = mine.get_state() or (b"", None)
            for lost in range(1000):
                # What PyTorch's handler needs to read, change and write the state.
                thinking.wait(0.01)
                state, token, has_set = set_state(mine, state + b"%d\n" % number, token)
                if has_set:
                    return lost
        raise AssertionError(number)

    with ThreadPoolExecutor(nodes) as pool:
        lost = sum(pool.map(node, range(nodes)))
    # Without pauses 13 to 15 for each: about half of those who still have to write.
    assert lost / nodes < 8
    with etcd_server.get_client() as client:
        found = EtcdRendezvousBackend(client, "run", prefix).get_state()
    assert found is not None
    assert sorted(map(int, found[0].split())) == list(range(nodes))


def test_writes_soon_after_each_other_do_not_renew_it(
    client: Client, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = EtcdRendezvousBackend(client, "run", prefix, ttl=100_000)
    _, token, _ = set_state(backend, b"x")
    renewed: list[int] = []
    native = client._native

    def keep_alive(lease: int) -> object:
        renewed.append(lease)
        return native.lease_keep_alive_once(lease)

    calls = SimpleNamespace(
        txn=native.txn, lease_grant=native.lease_grant, lease_keep_alive_once=keep_alive
    )
    monkeypatch.setitem(client.__dict__, "_native_client", calls)
    for ago, renewals in ((500, 0), (1001, 1)):
        monkeypatch.setattr(backend, "_lease_renewed", time.monotonic() - ago)
        _, token, has_set = set_state(backend, b"x", token)
        assert has_set
        assert len(renewed) == renewals
