"""etcd behind its own `etcd grpc-proxy`, which numbers watches itself and merges those of equal ranges."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.etcd.metrics import watchers_left
from support.processes.nodes import TTL, Run, join_all
from support.stores import opened
from support.waiting import eventually
from torchetcd.etcd import Client, EtcdException, EtcdKeyNotFound
from torchetcd.etcd_server import EtcdServer, find_binary, find_free_port

NAMESPACE = "/space"


@pytest.fixture(params=["", NAMESPACE], ids=["plain", "namespace"])
def namespace(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def proxy(etcd_server: EtcdServer, namespace: str) -> Iterator[str]:
    """Provide the endpoint of a proxy, which sees only what is in its namespace."""
    with find_free_port() as sock:
        endpoint = f"127.0.0.1:{sock.getsockname()[1]}"
    process = subprocess.Popen(
        [
            find_binary(),
            "grpc-proxy",
            "start",
            f"--endpoints=http://{etcd_server.get_endpoint()}",
            f"--listen-addr={endpoint}",
            f"--namespace={namespace}",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        assert process.poll() is None
        with Client(endpoint, read_timeout=5) as client:
            try:
                return bool(client.version)
            except EtcdException:
                return False

    try:
        eventually(answers, 60)
        yield endpoint
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def proxied(proxy: str) -> Iterator[Client]:
    with Client(proxy, read_timeout=60) as made:
        yield made


def test_keys_are_in_the_namespace(
    client: Client, proxied: Client, prefix: str, namespace: str
) -> None:
    with opened(proxied, prefix) as store:
        store.set("key", "value")
    assert client.read(f"{namespace}{prefix}", recursive=True)
    if namespace:
        with pytest.raises(EtcdKeyNotFound):
            client.read(prefix)


def test_waits_are_told_apart(proxied: Client, proxy: str, prefix: str) -> None:
    """They begin at any time, some end before others have begun, and some watch the same key."""
    with (
        opened(proxied, prefix, timeout=60) as store,
        Client(proxy) as another,
        opened(another, prefix) as other,
        ThreadPoolExecutor(200) as pool,
    ):
        waits = [pool.submit(store.get, f"key {number % 150}") for number in range(200)]
        for number in range(150):
            other.set(f"key {number}", str(number))
        for number, wait in enumerate(waits):
            assert wait.result() == b"%d" % (number % 150)


def test_waits_for_one_key_after_the_other(
    client: Client, etcd_server: EtcdServer, proxied: Client, prefix: str, namespace: str
) -> None:
    """Watches that are over are given back."""
    before = watchers_left(etcd_server)
    with (
        opened(proxied, prefix, timeout=60) as store,
        opened(client, f"{namespace}{prefix}") as other,
        ThreadPoolExecutor(4) as pool,
    ):
        for number in range(20):
            waits = [pool.submit(store.get, f"{number} {which}") for which in range(4)]
            for which in range(4):
                other.set(f"{number} {which}", str(which))
            assert [wait.result() for wait in waits] == [b"0", b"1", b"2", b"3"]
        eventually(lambda: watchers_left(etcd_server) <= before)


def test_a_watch_from_the_past(proxied: Client, prefix: str) -> None:
    index = proxied.write(prefix, "0").modifiedIndex
    assert index is not None
    for number in range(1, 5):
        proxied.write(prefix, str(number))
    changes = proxied.eternal_watch(prefix, index=index)
    assert [next(changes).value for _ in range(5)] == ["0", "1", "2", "3", "4"]


def test_a_world(proxied: Client, proxy: str) -> None:
    """It forms, loses a member, and takes another one in."""
    with Run(proxy, proxied) as run:
        nodes = run.nodes(4, 3, 4, keep_alive_ttl=TTL)
        join_all(nodes)
        nodes[0].start("store_get", "key")
        nodes[1].call("store_set", "key", "value")
        assert nodes[0].finish() == b"value"
        nodes[3].kill()
        for node in nodes[:3]:
            assert node.call("await_waiting", 60, timeout=90) == 1
        nodes[3] = run.node(3, 4, keep_alive_ttl=TTL)
        join_all(nodes)
