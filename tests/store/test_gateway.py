"""What torch's own TCPStore clients find at a gateway: TCPStore's protocol and semantics, kept in etcd."""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousParameters

from support.stores import in_background, seconds
from support.waiting import eventually
from torchetcd import _native
from torchetcd.etcd import Client
from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler

MAGIC = 0x3C85F7CE
#: Each of these is tried below. A method that a new torch has belongs here, and into `src/gateway/query.rs`.
METHODS: dict[str, Callable[[dist.TCPStore], object]] = {
    "set": lambda store: store.set("k", "v"),
    "get": lambda store: store.get("k"),
    "add": lambda store: store.add("n", 2),
    "check": lambda store: store.check(["k"]),
    "wait": lambda store: store.wait(["k"]),
    "compare_set": lambda store: store.compare_set("k", "v", "w"),
    "append": lambda store: store.append("k", "x"),
    "multi_set": lambda store: store.multi_set(["a", "b"], ["1", "2"]),
    "multi_get": lambda store: store.multi_get(["a", "b"]),
    "num_keys": lambda store: store.num_keys(),
    "delete_key": lambda store: store.delete_key("a"),
    "queue_push": lambda store: store.queue_push("q", "v"),
    "queue_len": lambda store: store.queue_len("q"),
    "queue_pop": lambda store: store.queue_pop("q"),
    "list_keys": lambda store: store.list_keys(),
    "barrier": lambda store: store.barrier("all", 1),
    "clone": lambda store: store.clone(),
}
#: What asks no server.
LOCAL = {"has_extended_api", "host", "libuvBackend", "port", "set_timeout", "timeout"}


@pytest.fixture
def gateway(client: Client, prefix: str) -> Iterator[_native.Gateway]:
    made = opened(client, prefix)
    yield made
    made.close()


def opened(client: Client, prefix: str) -> _native.Gateway:
    made = _native.Gateway([0], os.geteuid())
    made.serve(_native.Store(client._native, prefix.encode()))
    return made


def connected(gateway: _native.Gateway, timeout: float = 30) -> dist.TCPStore:
    host, port = gateway.address
    return dist.TCPStore(host, port, None, False, timeout=seconds(timeout), wait_for_workers=False)


def raw(gateway: _native.Gateway, sent: bytes) -> socket.socket:
    """Send bytes after those that every client begins with."""
    made = socket.create_connection(gateway.address, 30)
    made.sendall(struct.pack("=BI", 0, MAGIC) + sent)
    return made


def received(client: socket.socket, count: int) -> bytes:
    """Receive so many bytes: a socket with a timeout gives what there is."""
    got = b""
    while len(got) < count and (more := client.recv(count - len(got))):
        got += more
    return got


def text(value: bytes) -> bytes:
    return struct.pack("=Q", len(value)) + value


def test_every_method_of_this_torch_is_served(gateway: _native.Gateway) -> None:
    store = connected(gateway)
    public = {name for name in dir(store) if not name.startswith("_")}
    assert public - LOCAL <= METHODS.keys()
    results = {name: call(store) for name, call in METHODS.items() if name in public}
    expected = {
        "get": b"v",
        "add": 2,
        "check": True,
        "compare_set": b"w",
        "multi_get": [b"1", b"2"],
        "num_keys": 4,
        "delete_key": True,
        "queue_len": 1,
        "queue_pop": b"v",
    }
    assert {name: results[name] for name in expected if name in results} == {
        name: value for name, value in expected.items() if name in results
    }
    assert store.get("k") == b"wx"
    assert gateway.remarks() == []


def test_the_workers_count_themselves(gateway: _native.Gateway) -> None:
    """As `env://` opens it at an agent."""
    host, port = gateway.address
    with ThreadPoolExecutor(3) as pool:
        made = pool.map(
            lambda _: dist.TCPStore(host, port, 3, False, timeout=seconds(30)), range(3)
        )
        assert len(list(made)) == 3


def test_two_gateways_are_one_store(client: Client, prefix: str) -> None:
    gateways = [opened(client, prefix) for _ in range(2)]
    one, two = (connected(gateway) for gateway in gateways)
    with ThreadPoolExecutor(2) as pool:
        got = pool.submit(one.get, "k")
        pool.submit(two.set, "k", "v")
        assert got.result() == b"v"
        added = [
            pool.submit(lambda it: [it.add("n", 1) for _ in range(20)], it) for it in (one, two)
        ]
        # Each sum was seen once.
        assert sorted(one for done in added for one in done.result()) == list(range(1, 41))
        popped = pool.submit(one.queue_pop, "q")
        two.queue_push("q", "first")
        assert popped.result() == b"first"
    for gateway in gateways:
        gateway.close()


@pytest.mark.skipif(not hasattr(dist.TCPStore, "barrier"), reason="this torch's has no barrier")
def test_a_barrier_of_two_gateways(client: Client, prefix: str) -> None:
    gateways = [opened(client, prefix) for _ in range(2)]
    one, two = (connected(gateway) for gateway in gateways)
    with ThreadPoolExecutor(2) as pool:
        for name in ("first", "second"):
            there = [pool.submit(store.barrier, name, 2) for store in (one, two)]
            assert [done.result() for done in there] == [None, None]
    # Nothing of it is counted but what TCPStore counts.
    assert sorted(one.list_keys()) == ["first", "second"]
    with pytest.raises(dist.DistStoreError):
        one.barrier("alone", 2, seconds(0.2))
    # Whoever comes later than the last one passes.
    two.barrier("alone", 2)
    one.barrier("alone", 2)
    for gateway in gateways:
        gateway.close()


def test_a_wait_is_cancelled_and_the_connection_goes_on(gateway: _native.Gateway) -> None:
    store = connected(gateway, timeout=0.2)
    for _ in range(3):
        with pytest.raises(dist.DistStoreError, match="timeout"):
            store.get("missing")
    store.set("k", "v")
    assert store.get("k") == b"v"
    assert gateway.remarks() == []


def test_what_comes_during_a_wait_keeps_its_turn(gateway: _native.Gateway) -> None:
    wait = b"\x06" + struct.pack("=Q", 1) + text(b"/k")
    ping = b"\x0d\x01\x02\x03\x04"
    with raw(gateway, wait + ping) as client:
        connected(gateway).set("k", "v")
        assert received(client, 5) == b"\0\x01\x02\x03\x04"
        # The wait was over when this came.
        client.sendall(b"\x0c" + ping)
        assert received(client, 5) == b"\x01\x01\x02\x03\x04"


@pytest.mark.parametrize(
    ("sent", "remark"),
    [
        (b"\x13", "the query 19"),
        (b"\x03" + b"\xff" * 8, "a key or value of 18446744073709551615 bytes"),
        (b"\x05" + struct.pack("=Q", 1 << 40), "a query of 1099511627776 keys"),
        (b"\x01" + text(b"/k") + text(b"x") + b"\x04" + text(b"/k") + bytes(8), "needs an integer"),
        (b"\x01" + text(b"/k") + text(bytes(2 << 20)), "the value of .* has 2097152 bytes"),
    ],
)
def test_what_cannot_be_answered_ends_its_connection_alone(
    gateway: _native.Gateway, sent: bytes, remark: str
) -> None:
    other = connected(gateway)
    with raw(gateway, sent) as client:
        assert client.recv(1) == b""
    told = remarks(gateway)
    assert len(told) == 1
    assert re.search(remark, told[0])
    assert other.add("n", 1) == 1


def test_strangers_are_sent_away(gateway: _native.Gateway) -> None:
    for sent in (b"\x07", b"\0\1\2\3\4", b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(gateway.address, 30) as client:
            client.sendall(sent)
            assert client.recv(1) == b""
        assert len(remarks(gateway)) == 1


def test_other_users_are_sent_away(client: Client, prefix: str) -> None:
    gateway = _native.Gateway([0], os.geteuid() + 1)
    gateway.serve(_native.Store(client._native, prefix.encode()))
    with raw(gateway, b"\x07") as other:
        assert other.recv(1) == b""
    assert f"user id {os.geteuid()}" in remarks(gateway)[0]
    gateway.close()
    everybody = _native.Gateway([0], None)
    everybody.serve(_native.Store(client._native, prefix.encode()))
    with raw(everybody, b"\x07") as other:
        assert received(other, 8) == bytes(8)
    everybody.close()


def test_each_round_is_a_store_of_its_own(
    gateway: _native.Gateway, client: Client, prefix: str
) -> None:
    first = connected(gateway)
    first.set("k", "v")
    assert first.check(["k"])
    gateway.serve(_native.Store(client._native, f"{prefix}/2".encode()))
    # Workers of the last round disturb nobody.
    with pytest.raises(dist.DistNetworkError):
        first.check(["k"])
    second = connected(gateway)
    assert not second.check(["k"])


def test_it_ends(client: Client, prefix: str) -> None:
    gateway = opened(client, prefix)
    address, store = gateway.address, connected(gateway)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(store.wait, ["missing"])
        gateway.close()
        with pytest.raises(dist.DistError):
            waits.result()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 30)
    with pytest.raises(RuntimeError, match="closed"):
        gateway.serve(_native.Store(client._native, prefix.encode()))
    assert gateway.remarks() == []
    gateway.close()


def remarks(gateway: _native.Gateway) -> list[str]:
    told: list[str] = []

    def some() -> bool:
        told.extend(gateway.remarks())
        return bool(told)

    eventually(some)
    return told


class Agent:
    """An agent's handler, and a client as its workers are."""

    def __init__(self, client: Client, run_id: str, **conf: object) -> None:
        endpoint = f"127.0.0.1:{client.port}"
        conf = {"local_addr": "127.0.0.1", "worker_store": "gateway", **conf}
        self.handler: EtcdRendezvousHandler = create_rdzv_handler(
            RendezvousParameters("etcd-v3", endpoint, run_id, 2, 2, **conf)
        )

    def join(self) -> None:
        assert self.handler.use_agent_store
        told = self.handler.next_rendezvous().bootstrap_store_info
        assert told.master_addr == "127.0.0.1"
        self.port = told.master_port
        self.store = dist.TCPStore(
            told.master_addr, told.master_port, 2, False, timeout=seconds(60)
        )


@pytest.fixture
def agents(client: Client, run_id: str) -> Iterator[list[Agent]]:
    made = [Agent(client, run_id) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Agent.join, made))
    yield made
    for agent in made:
        agent.handler.shutdown()


def test_rounds_are_at_one_port(agents: list[Agent]) -> None:
    ports = [agent.port for agent in agents]
    assert ports[0] != ports[1]
    agents[0].store.set("k", "v")
    assert agents[1].store.get("k") == b"v"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Agent.join, agents))
    assert [agent.port for agent in agents] == ports
    assert not agents[0].store.check(["k"])
    agents[1].store.set("k", "again")
    assert agents[0].store.get("k") == b"again"


@pytest.mark.parametrize("operation", ["get", "wait", "queue_pop"])
def test_a_lost_member_ends_a_wait(
    agents: list[Agent], operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    if not hasattr(dist.TCPStore, operation):
        pytest.skip("this torch's TCPStore has no such method")
    store = agents[0].store
    thread = in_background(agents[1].handler._rdzv_impl.leave, after=0.2)
    key = ["missing"] if operation == "wait" else "missing"
    started = time.monotonic()
    with pytest.raises(dist.DistError):
        getattr(store, operation)(key)
    assert time.monotonic() - started < 30
    thread.join()

    def told() -> bool:
        agents[0].handler.num_nodes_waiting()
        return "a member of the round was lost" in caplog.text

    eventually(told)


def test_the_port_can_be_chosen(client: Client, run_id: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = [Agent(client, run_id, master_port=str(port)), Agent(client, run_id)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Agent.join, made))
    assert made[0].port == port
    late = Agent(client, run_id, master_port=str(port))
    with pytest.raises(Exception, match=f"cannot listen on 127.0.0.1 at .*{port}"):
        late.join()
    for agent in made:
        agent.handler.shutdown()
