"""The bench does what its verbs say: seen at etcd, without our client."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from support.faults.bench import Bench
from support.waiting import eventually


def _asks(port: int, timeout: float = 5) -> bytes:
    """Ask etcd something by a link, and return the beginning of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout) as sock:
        sock.settimeout(timeout)
        sock.sendall(b"GET /version HTTP/1.0\r\n\r\n")
        return sock.recv(1 << 16)


def _ports(endpoints: str) -> list[int]:
    return [int(endpoint.rsplit(":", 1)[1]) for endpoint in endpoints.split(",")]


def test_links_of_an_agent(bench: Bench) -> None:
    first, second = _ports(bench.connect("agent-1")), _ports(bench.connect("agent-2"))
    for port in first + second:
        assert b"200 OK" in _asks(port)
    bench.cut("agent-1", "etcd-2")
    with pytest.raises(ConnectionError):
        _asks(first[1])
    assert b"200 OK" in _asks(first[0])
    assert b"200 OK" in _asks(second[1])
    bench.silence("etcd-1", "agent-1")
    with pytest.raises(TimeoutError):
        _asks(first[0], 0.5)
    bench.delay("agent-1", "etcd-3", 0.2)
    begun = time.monotonic()
    assert b"200 OK" in _asks(first[2])
    assert time.monotonic() - begun >= 0.4
    bench.join("agent-1", "etcd-3")
    bench.throttle("agent-1", "etcd-3", 200)
    begun = time.monotonic()
    assert b"200 OK" in _asks(first[2])
    assert time.monotonic() - begun >= 0.5
    bench.break_message("agent-2", "etcd-3", 10)
    with contextlib.suppress(ConnectionError):  # the reset may come first
        assert len(_asks(second[2])) <= 10
    assert b"200 OK" in _asks(second[2])
    bench.mend()
    for port in first + second:
        assert b"200 OK" in _asks(port)


def test_an_open_connection_is_cut(bench: Bench) -> None:
    (port, *_) = _ports(bench.connect("agent-3"))
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.settimeout(5)
        sock.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in sock.recv(1 << 16)
        bench.cut("agent-3", "etcd-1")
        with pytest.raises(ConnectionError):
            sock.recv(1)


@pytest.mark.parametrize("how", ["cut", "silence"])
def test_a_leader_without_the_others(bench: Bench, how: str) -> None:
    """Who is partitioned leads no more, and the two others go on."""
    leader = bench.leader()
    bench.partition(leader, how)
    eventually(lambda: not bench.cluster[leader].serves(), 30)
    eventually(lambda: bench.leader() != leader, 30)
    successor = bench.cluster[bench.leader()]
    eventually(successor.writes, 30)


def test_one_link_between_members(bench: Bench) -> None:
    """Only the two named are cut: both still serve through the third."""
    leader = bench.leader()
    one, other = (name for name in bench.names if name != leader)
    bench.cut(one, other)
    for name in bench.names:
        eventually(lambda name=name: bench.cluster[name].writes())


def test_a_member_comes_back(bench: Bench) -> None:
    name = bench.leader()
    bench.cluster[name].put(b"/kept", b"z")
    bench.kill(name)
    assert bench.cluster[name].pid == 0
    bench.restart(name)
    eventually(bench.cluster[name].serves, 30)
    assert bench.cluster[name].post("/v3/kv/range", {"key": "L2tlcHQ="})["count"] == "1"


def test_a_paused_member_does_not_answer(bench: Bench) -> None:
    bench.pause("etcd-2")
    with pytest.raises(TimeoutError):
        bench.cluster["etcd-2"].post("/v3/kv/range", {"key": "Lw=="}, timeout=0.5)
    bench.resume("etcd-2")
    assert bench.cluster["etcd-2"].post("/v3/kv/range", {"key": "Lw=="})
    assert bench.told[-1].endswith("resume etcd-2")
