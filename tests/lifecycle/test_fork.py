"""Forks at any moment: while other threads are in calls, of children, before an exec."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.network.proxy import Proxy
from support.processes.programs import LONG_TTL, PRELUDE, check_errors, of_nodes
from support.processes.usage import leases
from support.processes.zygote import Program, Zygote
from support.waiting import eventually
from torchetcd.etcd import Client
from torchetcd.etcd_server import EtcdServer

CHILDREN = 6

# Threads of the parent are in calls of every kind all the time.
BUSY_PARENT = (
    PRELUDE
    + f"""
CHILDREN = {CHILDREN}
"""
    + """
store = new_store()
handler = new_handler(1)
info = handler.next_rendezvous()
store.add("n", 0)
info.store.set("k", "v")
stop = threading.Event()
own = 0

def add():
    global own
    while not stop.is_set():
        store.add("n", 1)
        own += 1

def wait():
    while not stop.is_set():
        with contextlib.suppress(LookupError):
            info.store.wait(["never"], timedelta(milliseconds=5))

def ask():
    while not stop.is_set():
        assert not handler.is_closed() and handler.num_nodes_waiting() == 0
        store.client.read("/")

failed = []
def watched(work):
    def run():
        try:
            work()
        except BaseException as exc:
            failed.append(exc)
            raise
    thread = threading.Thread(target=run)
    thread.start()
    return thread

def as_child(work):
    pid = os.fork()
    if pid == 0:
        # What the parent's other threads did is not this one's.
        try:
            work()
        except BaseException as exc:
            print(type(exc).__name__, exc, file=sys.stderr, flush=True)
            os._exit(1)
    return pid

def wait_for(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def use_all(n=10):
    for _ in range(n):
        store.add("n", 1)
    assert info.store.get("k") == b"v"
    with contextlib.suppress(LookupError):
        info.store.wait(["never"], timedelta(milliseconds=5))
    store.client.read("/")
    # It tells nobody but the log: the error that ends the process is what people must see.
    import logging
    logging.disable()
    assert not handler.shutdown()
    for method in (handler.next_rendezvous, handler.num_nodes_waiting, handler.is_closed,
                   handler.set_closed):
        try:
            method()
        except RuntimeError as exc:
            assert "belongs to process" in str(exc), exc
        else:
            raise AssertionError(method.__name__)
"""
)


def run(zygote: Zygote, source: str, port: int, run_id: str) -> None:
    program = Program(zygote, source, port, run_id, LONG_TTL)
    assert program.line(90) == "done"
    code, errors = program.end()
    assert code == 0, errors
    check_errors(errors)


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "os.kill(os.getpid(), 9)"])
def test_forks_while_other_threads_are_in_calls(
    end: str, zygote: Zygote, etcd_server: EtcdServer, client: Client, run_id: str
) -> None:
    """Every child gets a connection of its own, and none disturbs the parent's, however it ends."""
    # A whole end of the interpreter must be outside of the `try`, as it is for programs.
    source = f"""{BUSY_PARENT}
threads = [watched(work) for work in (add, add, wait, wait, ask)]
children = []
for number in range(CHILDREN):
    time.sleep(0.02)
    pid = as_child(use_all)
    if pid == 0:
        {end}
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
stop.set()
for thread in threads:
    thread.join()
assert not failed, failed
assert store.add("n", 0) == own + 10 * CHILDREN, (own, store.add("n", 0))
assert handler.num_nodes_waiting() == 0 and not handler.is_closed()
say("done")
"""
    # Two threads add to `own`, which Python does not do in one step.
    source = source.replace("(add, add, wait", "(add, wait")
    there = leases(etcd_server)
    with Proxy(client.port) as proxy:
        run(zygote, source, proxy.port, run_id)
        # The parent's clients, of its store and its handler, and two of each child.
        assert proxy.connections == 2 + 2 * CHILDREN
    assert not of_nodes(client, run_id)
    # The lease of the run, and one for the receipts of each process that ended without closing.
    assert len(leases(etcd_server) - there) <= 2 + CHILDREN


def test_a_fork_by_a_thread_and_of_a_child(zygote: Zygote, client: Client, run_id: str) -> None:
    source = f"""{BUSY_PARENT}
def family():
    def child():
        use_all()
        def grandchild():
            use_all()
            os._exit(0)
        wait_for(as_child(grandchild))
        use_all()
        os._exit(0)
    for _ in range(3):
        wait_for(as_child(child))

threads = [watched(work) for work in (add, wait, ask)]
families = [watched(family) for _ in range(2)]
for thread in families:
    thread.join()
stop.set()
for thread in threads:
    thread.join()
assert not failed, failed
assert store.add("n", 0) == own + 2 * 3 * 30
assert handler.num_nodes_waiting() == 0
say("done")
"""
    run(zygote, source, client.port, run_id)
    assert not of_nodes(client, run_id)


def test_an_exec_in_the_child(zygote: Zygote, client: Client, run_id: str) -> None:
    """Sockets of this process do not go on in another program."""
    source = f"""{BUSY_PARENT}
threads = [watched(work) for work in (add, wait, ask)]
look = (
    "import contextlib, os\\n"
    "for fd in os.listdir('/proc/self/fd'):\\n"
    "    with contextlib.suppress(FileNotFoundError):\\n"
    "        if 'socket' in os.readlink('/proc/self/fd/' + fd): print(fd)\\n"
)
for _ in range(3):
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writes, 1)
        os.execv(sys.executable, [sys.executable, "-c", look])
    os.close(writes)
    with os.fdopen(reads) as told:
        assert told.read() == ""
    wait_for(pid)
stop.set()
for thread in threads:
    thread.join()
assert not failed, failed
assert store.add("n", 0) == own
say("done")
"""
    run(zygote, source, client.port, run_id)


def test_a_child_of_its_own_run(zygote: Zygote, client: Client, run_id: str) -> None:
    """A node of its own in the child; its end is not that of the parent's, nor the other way."""
    source = f"""{BUSY_PARENT}
def child():
    global run_id
    run_id += ".child"
    mine = new_handler(1)
    assert mine.next_rendezvous().rank == 0
    assert mine.num_nodes_waiting() == 0
    assert mine.shutdown() and mine.is_closed()
    os._exit(0)
threads = [watched(work) for work in (add, wait, ask)]
for pid in [as_child(child) for _ in range(1)]:
    wait_for(pid)
stop.set()
for thread in threads:
    thread.join()
assert not failed, failed
info = handler.next_rendezvous()
assert info.rank == 0 and not handler.is_closed()
say("done")
"""
    run(zygote, source, client.port, run_id)
    eventually(lambda: not of_nodes(client, run_id))
    assert not of_nodes(client, f"{run_id}.child")


# The first process of a namespace, whose child is the first one of another.
_INIT = """
import ctypes, os, sys
from torchetcd.etcd import Client

assert os.getpid() == 1
client = Client("127.0.0.1", int(sys.argv[1]), read_timeout=30)
client.write(sys.argv[2], "of the parent")
if ctypes.CDLL(None, use_errno=True).unshare(0x20000000):  # CLONE_NEWPID
    raise OSError(ctypes.get_errno(), "unshare")
child = os.fork()
if child == 0:
    assert os.getpid() == 1
    client.write(sys.argv[2], "of the child")
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert client.read(sys.argv[2]).value == "of the child"
"""


def test_a_child_with_the_same_process_number(client: Client, prefix: str) -> None:
    """The first process of a container that makes another container."""
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    with Proxy(client.port) as proxy:
        arguments = [sys.executable, "-c", _INIT, str(proxy.port), prefix]
        try:
            subprocess.run([*unshare, "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no namespaces can be made here")
        done = subprocess.run(
            [*unshare, *arguments], check=False, timeout=90, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert proxy.connections == 2, "one of each process"
