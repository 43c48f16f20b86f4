"""Processes that fork with a live handler, and processes that end with one."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from support.processes.nodes import TTL, Node, Run
from support.processes.zygote import Program, Zygote

# Leases of processes that end by themselves: nothing may have to wait for these.
LONG_TTL = 60

# A node of a world of two. It goes on when it is told to by a line on its standard input.
NODE = """
import os, sys, threading
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torchetcd.etcd_rendezvous import create_rdzv_handler

def say(*words):
    print(*words, flush=True)

endpoint, run_id, ttl = sys.argv[1:]
handler = create_rdzv_handler(RendezvousParameters(
    "etcd-v3", endpoint, run_id, 2, 2, local_addr="127.0.0.1", join_timeout=60, keep_alive_ttl=ttl
))
"""
JOIN = """
info = handler.next_rendezvous()
say("joined", info.world_size)
"""


Start = Callable[..., Program]


@pytest.fixture
def start(run: Run, zygote: Zygote) -> Start:
    """Provide what starts a process that runs a program."""

    def start(source: str, ttl: int = LONG_TTL) -> Program:
        return Program(zygote, NODE + source, run.endpoint, run.run_id, ttl)

    return start


@pytest.fixture
def peer(run: Run) -> Node:
    """The other node; it has begun to join."""
    node = run.node(2, 2, keep_alive_ttl=TTL)
    node.start("join")
    return node


FORKING = (
    JOIN
    + """
child = os.fork()
if child == 0:
    for method in (
        handler.next_rendezvous, handler.num_nodes_waiting, handler.is_closed, handler.set_closed,
        handler._rdzv_impl.rendezvous_barrier, handler.shutdown,
    ):
        try:
            say(method.__name__, "returned", method())
        except BaseException as exc:
            say(type(exc).__name__, "process" in str(exc) and str(os.getppid()) in str(exc))
    info.store.set("from child", "value")
    say(info.store.get("from child"), info.store.add("count", 1), info.store.check(["no such key"]))
    handler._rdzv_impl.leave()
    sys.stdin.readline()
    # A whole end of the interpreter, which is what must not touch the lease.
    sys.exit(0)
say("child", os.WEXITSTATUS(os.waitpid(child, 0)[1]))
sys.stdin.readline()
say(handler.num_nodes_waiting(), handler.is_closed(), info.store.add("count", 1))
info = handler.next_rendezvous()
say("joined", info.world_size)
"""
)


@pytest.mark.slow(15)
def test_a_forked_child(start: Start, peer: Node, run: Run) -> None:
    """It cannot use its parent's handler, can use its parent's store, and changes no lease."""
    script = start(FORKING, ttl=TTL)
    assert script.line() == "joined 2"
    peer.finish()
    assert [script.line() for _ in range(5)] == ["RuntimeError True"] * 5
    # It never raises: the job's own error may be under way.
    assert script.line() == "shutdown returned False"
    assert script.line() == "b'value' 1 False"
    # The parent only waits for its child; its lease lives on, and longer than a TTL.
    peer.start("most_waiting", TTL + 2)
    assert peer.finish() == 0
    script.go_on()
    assert script.line() == "child 0"
    assert peer.call("most_waiting", TTL + 2) == 0
    script.go_on()
    assert script.line() == "0 False 2"
    peer.start("join")
    assert script.line() == "joined 2"
    peer.finish()
    code, errors = script.end()
    assert code == 0
    # Of the child.
    (line,) = errors.splitlines()
    assert line.startswith(f"Run '{run.run_id}' could not be closed: ")


def test_a_handler_of_its_own_in_a_forked_child(start: Start, peer: Node) -> None:
    source = """
child = os.fork()
if child == 0:
    handler = create_rdzv_handler(RendezvousParameters(
        "etcd-v3", endpoint, run_id, 2, 2, local_addr="127.0.0.1", join_timeout=60
    ))
    say("joined", handler.next_rendezvous().world_size)
    sys.exit(0)
say("child", os.WEXITSTATUS(os.waitpid(child, 0)[1]))
"""
    script = start(source)
    assert script.line() == "joined 2"
    assert peer.finish().world == 2
    assert script.line() == "child 0"
    assert script.end() == (0, "")


@pytest.mark.parametrize(
    ("end", "code"),
    [("", 0), ("1 / 0", 1), ("del handler, info", 0)],
)
def test_an_end_without_shutdown(start: Start, peer: Node, end: str, code: int) -> None:
    """The peer learns of it at once, not when the lease has run out, and the run stays open."""
    script = start(f"{JOIN}\nsys.stdin.readline()\n{end}")
    assert script.line() == "joined 2"
    peer.finish()
    peer.start("await_waiting", LONG_TTL / 2)
    told = time.monotonic()
    script.go_on()
    assert peer.finish(LONG_TTL) == 1
    # Most of it is the end of an interpreter with torch in it.
    assert peer.finished_at - told < LONG_TTL / 6
    assert not peer.call("is_closed")
    assert script.end()[0] == code


def test_an_end_with_shutdown(start: Start, peer: Node) -> None:
    script = start(f"{JOIN}\nsys.stdin.readline()\nsay(handler.shutdown())")
    assert script.line() == "joined 2"
    peer.finish()
    script.go_on()
    assert script.line() == "True"
    assert script.end() == (0, "")
    assert peer.call("is_closed")
    assert peer.call("waiting") == 0


def test_an_end_while_a_thread_is_in_the_barrier(run: Run, start: Start) -> None:
    source = """
threading.Thread(target=handler.next_rendezvous, daemon=True).start()
sys.stdin.readline()
say("end")
"""
    script = start(source)
    run.await_joined(1)
    script.go_on()
    assert script.line() == "end"
    began = time.monotonic()
    code, errors = script.end()
    assert time.monotonic() - began < LONG_TTL / 6
    assert code == 0
    assert "panicked" not in errors
    assert "Fatal" not in errors
    assert not run.keys("/rdzv/round/1/join")
