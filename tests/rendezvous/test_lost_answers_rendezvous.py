"""A node's requests whose answers are lost: it joins, completes and closes once."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousParameters

from support.network.proxy import Proxy
from support.waiting import eventually
from torchetcd.etcd import Client
from torchetcd.etcd._transactions import get_below, get_key
from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler
from torchetcd.etcd_server import EtcdServer


class Run:
    """A run, one node of which is behind the proxy."""

    def __init__(self, server: EtcdServer, client: Client, proxy: Proxy) -> None:
        self._ports = {"direct": server.get_port(), "proxied": proxy.port}
        self._client = client
        self._run_id = uuid.uuid4().hex
        self.path = f"/torchelastic/p2p/run_{self._run_id}/rdzv"

    def node(self, way: str, nodes: int) -> EtcdRendezvousHandler:
        endpoint = f"127.0.0.1:{self._ports[way]}"
        return create_rdzv_handler(
            RendezvousParameters(
                "etcd-v3", endpoint, self._run_id, nodes, nodes, local_addr="127.0.0.1"
            )
        )

    def control(self) -> tuple[dict[str, object], int]:
        """Return the control record, and how often it was written."""
        found = self._txn(get_key(f"{self.path}/head/control".encode()))
        return (json.loads(found[0][1]), found[0][4]) if found else ({}, 0)

    def below(self, path: str) -> list[tuple[bytes, int]]:
        """Return the keys below a path, each with how often it was written."""
        found = self._txn(get_below(f"{self.path}/{path}/".encode()))
        return [(key, version) for key, _, _, _, version, _ in found]

    def _txn(self, get: tuple[object, ...]) -> list[tuple[bytes, bytes, int, int, int, int]]:
        return self._client._native.txn([], [get], [])[2][0][0]


@pytest.fixture
def proxy(etcd_server: EtcdServer) -> Iterator[Proxy]:
    with Proxy(etcd_server.get_port()) as made:
        yield made


@pytest.fixture
def run(etcd_server: EtcdServer, client: Client, proxy: Proxy) -> Run:
    return Run(etcd_server, client, proxy)


@pytest.mark.parametrize("forward", [True, False], ids=["answer", "request"])
@pytest.mark.parametrize("step", ["open", "member", "final"])
def test_a_coordinator(step: str, forward: bool, run: Run, proxy: Proxy) -> None:
    """It creates the run, gives out the ranks and completes the round."""
    needle = b"/member/" if step == "member" else b'"%s"' % step.encode()
    coordinator, peer = run.node("proxied", 2), run.node("direct", 2)
    proxy.break_at(needle, forward=forward)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(coordinator.next_rendezvous)
        eventually(lambda: run.below("round/1/join"))
        second = pool.submit(peer.next_rendezvous)
        places = [first.result(60), second.result(60)]
    assert proxy.broken == 1
    assert sorted((place.rank, place.world_size) for place in places) == [(0, 2), (1, 2)]
    control, writes = run.control()
    assert (control["state"], control["round"], control["world"], writes) == ("final", 1, 2, 2)
    # What an attempt wrote whose answer was lost is nobody's membership.
    attempt = str(control["attempt"])
    assert len(run.below(f"round/1/member/{attempt}")) == 2
    assert peer.num_nodes_waiting() == coordinator.num_nodes_waiting() == 0
    for node in (coordinator, peer):
        assert node.shutdown()


@pytest.mark.parametrize("forward", [True, False], ids=["answer", "request"])
def test_a_node_that_joins(forward: bool, run: Run, proxy: Proxy) -> None:
    coordinator, joiner = run.node("direct", 2), run.node("proxied", 2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(coordinator.next_rendezvous)
        eventually(lambda: run.below("round/1/join"))
        proxy.break_at(b"/join/", forward=forward)
        second = pool.submit(joiner.next_rendezvous)
        places = [first.result(60), second.result(60)]
    assert proxy.broken == 1
    assert sorted((place.rank, place.world_size) for place in places) == [(0, 2), (1, 2)]
    assert run.control()[1] == 2
    assert [version for _, version in run.below("round/1/join")] == [1, 1]
    for node in (coordinator, joiner):
        assert node.shutdown()


@pytest.mark.parametrize("meddled", [False, True], ids=["alone", "meddled"])
@pytest.mark.parametrize("forward", [True, False], ids=["answer", "request"])
def test_a_close(forward: bool, meddled: bool, run: Run, proxy: Proxy) -> None:
    closing, other = run.node("proxied", 1), run.node("direct", 1)
    closing.next_rendezvous()

    def meanwhile() -> None:
        if forward:
            eventually(lambda: run.control()[0]["state"] == "closed")
        if meddled:
            other._rdzv_impl.set_closed("theirs")

    proxy.break_at(b'"closed"', forward=forward, then=meanwhile)
    closing._rdzv_impl.set_closed("mine")
    assert proxy.broken == 1
    control, writes = run.control()
    # Closed once, and who was first stands there.
    first = "theirs" if meddled and not forward else "mine"
    assert (control["state"], control["reason"], writes) == ("closed", first, 3)
    for node in (closing, other):
        with pytest.raises(RendezvousClosedError):
            node.next_rendezvous()
        assert node.shutdown()
