"""Objects that are made, used and let go hundreds of times leave nothing behind."""

from __future__ import annotations

import gc
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousParameters

from support.handlers import set_state
from support.processes.usage import AtEtcd, Usage, at_etcd, leases, usage
from support.stores import in_processes
from support.waiting import eventually
from torchetcd.etcd import Client, EtcdWatchTimedOut
from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler
from torchetcd.etcd_rendezvous_backend import EtcdRendezvousBackend
from torchetcd.etcd_server import EtcdServer
from torchetcd.etcd_store import EtcdStore

pytestmark = pytest.mark.needs_etcd

ROUNDS = 500
#: What is lost in each round is missed after each of so many parts; a buffer that grows, after one or two.
PARTS = 5
#: Several may grow at once, but all are full at some time: when something grows the rounds are repeated.
ATTEMPTS = 3
#: Until then caches fill.
WARM_UP = 100
#: What one lost object would cost per round: the smallest in Python, and one of Rust's.
PYTHON_BLOCKS = 0.5
NATIVE_BYTES = 100.0


def _use_client(client: Client, key: str) -> None:
    written = client.write(key, "x", ttl=60)
    assert written.modifiedIndex is not None
    with pytest.raises(EtcdWatchTimedOut):
        # One from the past would take 100 ms.
        client.watch(key, index=written.modifiedIndex + 1, timeout=0.005)
    client.delete(key)


def _use_store(store: dist.Store) -> None:
    store.set("k", "v")
    store.wait(["k"], timedelta(seconds=20))
    assert store.get("k") == b"v"
    store.add("n", 1)
    for key in ("k", "n"):
        store.delete_key(key)


def client_closed(port: int, prefix: str, number: int) -> None:
    with Client(port=port) as client:
        _use_client(client, f"{prefix}/{number}")


def client_dropped(port: int, prefix: str, number: int) -> None:
    _use_client(Client(port=port), f"{prefix}/{number}")


def store_closed(port: int, prefix: str, number: int) -> None:
    with EtcdStore(Client(port=port), f"{prefix}/{number}") as store:
        _use_store(store)


def store_of_a_shared_client(client: Client, prefix: str, number: int) -> None:
    with EtcdStore(client, f"{prefix}/{number}") as store:
        _use_store(store)


def clone_below_a_prefix(client: Client, prefix: str, number: int) -> None:
    with EtcdStore(client, f"{prefix}/{number}") as store:
        with store.clone() as clone:
            _use_store(dist.PrefixStore("below", clone))
        _use_store(dist.PrefixStore("below", store))


def _handler(port: int, prefix: str, number: int) -> EtcdRendezvousHandler:
    params = RendezvousParameters(
        *("etcd-v3", f"127.0.0.1:{port}", f"run{number}", 1, 1),
        local_addr="127.0.0.1",
        etcd_prefix=prefix,
        last_call_timeout=0,
        run_ttl=60,
    )
    return create_rdzv_handler(params)


def handler_shut_down(port: int, prefix: str, number: int) -> None:
    handler = _handler(port, prefix, number)
    info = handler.next_rendezvous()
    info.store.set("k", "v")
    assert handler.num_nodes_waiting() == 0
    assert handler.shutdown()


def handler_dropped(port: int, prefix: str, number: int) -> None:
    handler = _handler(port, prefix, number)
    handler.next_rendezvous().store.set("k", "v")


def handler_of_many_rounds(handler: EtcdRendezvousHandler, _prefix: str, _number: int) -> None:
    _use_store(handler.next_rendezvous().store)


def backend_of_a_client(port: int, prefix: str, number: int) -> None:
    with Client(port=port) as client:
        backend = EtcdRendezvousBackend(client, f"run{number}", prefix, ttl=60)
        token = set_state(backend, b"x")[1]
        assert set_state(backend, b"y", token)[2]


def _measure(
    _rank: int, use: Callable[..., None], shared: str, port: int, prefix: str, rounds: int
) -> tuple[list[Usage], int]:
    """Return what is used before the rounds that count and after each part of them, and the number of all.

    They are begun anew when something has grown.
    """
    what: object = port
    if shared == "client":
        what = Client(port=port)
    elif shared == "handler":
        what = _handler(port, prefix, 0)
    numbers = itertools.count()

    def use_times(times: int) -> None:
        for number in itertools.islice(numbers, times):
            use(what, prefix, number)

    use_times(WARM_UP)
    for _ in range(ATTEMPTS):
        found = [usage()]
        for _ in range(PARTS):
            use_times(rounds // PARTS)
            found.append(usage())
        if not _grows(found, rounds):
            break
    return found, next(numbers)


def _grows(found: list[Usage], rounds: int) -> bool:
    """Whether more is used after most of the parts than before them."""

    def growth(of: Callable[[Usage], int]) -> float:
        return statistics.median(
            of(after) - of(before) for before, after in itertools.pairwise(found)
        )

    blocks, native = growth(lambda each: each.python_blocks), growth(lambda each: each.native_bytes)
    part = rounds / PARTS
    return blocks >= part * PYTHON_BLOCKS or native >= part * NATIVE_BYTES


@pytest.mark.slow(15)
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    # Leases that stay by their nature: of a run or a state that is still there for its time.
    ("use", "shared", "kept", "kept_of_each"),
    [
        (client_closed, "", 0, 0),
        (client_dropped, "", 0, 0),
        (store_closed, "", 0, 0),
        (store_of_a_shared_client, "client", 0, 0),
        (clone_below_a_prefix, "client", 0, 0),
        (handler_shut_down, "", 0, 1),
        (handler_dropped, "", 0, 1),
        (handler_of_many_rounds, "handler", 1, 0),
        (backend_of_a_client, "", 0, 1),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_hundreds_of_times(
    use: Callable[..., None],
    shared: str,
    kept: int,
    kept_of_each: int,
    etcd_server: EtcdServer,
    prefix: str,
) -> None:
    there, held = leases(etcd_server), at_etcd(etcd_server)
    port = etcd_server.get_port()
    ((found, uses),) = in_processes(1, _measure, use, shared, port, prefix, ROUNDS)
    before, after = found[0], found[-1]
    assert (after.threads, after.files) == (before.threads, before.files)
    assert not _grows(found, ROUNDS), found
    # What was given back is gone at once, not when it runs out.
    eventually(lambda: len(leases(etcd_server) - there) <= kept + uses * kept_of_each)
    eventually(lambda: not _more(at_etcd(etcd_server), held))


def _more(now: AtEtcd, before: AtEtcd) -> bool:
    return any(left > right for left, right in zip(now, before, strict=True))


def _without_close(_rank: int, port: int, prefix: str, stores: int) -> list[Usage]:
    client = Client(port=port)
    assert prefix not in client
    found = [usage()]
    for number in range(stores):
        _use_store(EtcdStore(client, f"{prefix}/{number}"))
    found.append(usage())
    # C++ may have one of them, so all are there still.
    assert len(EtcdStore._open) == stores
    for store in list(EtcdStore._open):
        store.close()
    # Their receipts go with their leases; nobody waits for that.
    eventually(lambda: prefix not in client)
    return found


def test_stores_that_are_not_closed(etcd_server: EtcdServer, prefix: str) -> None:
    """They stay, each with a lease, as `EtcdStore` says; but without a thread or a socket."""
    there = leases(etcd_server)
    ((before, after),) = in_processes(1, _without_close, etcd_server.get_port(), prefix, 50)
    assert (after.threads, after.files) == (before.threads, before.files)
    assert leases(etcd_server) <= there


def test_the_store_of_a_round_outlives_its_handler(etcd_server: EtcdServer, prefix: str) -> None:
    """C++ may be the only one that has it; a process that makes handler after handler keeps few."""
    port = etcd_server.get_port()
    below = dist.PrefixStore("p", _handler(port, prefix, 0).next_rendezvous().store)
    gc.collect()
    below.set("k", "v")
    assert below.get("k") == b"v"
    for number in range(1, 9):
        handler_dropped(port, prefix, number)
    gc.collect()
    # An error, and no crash.
    with pytest.raises(RuntimeError, match="Not implemented|pure virtual"):
        below.get("k")


# What a process holds that makes a group again and again.
GROUPS = """
import gc, json, os, sys
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torchetcd.etcd_rendezvous import create_rdzv_handler
from torchetcd.etcd_store import EtcdStore

port, job, method, groups = *sys.argv[1:4], int(sys.argv[4])
if method == "env://":
    # The agent and its worker in one.
    handler = create_rdzv_handler(RendezvousParameters(
        "etcd-v3", f"127.0.0.1:{port}", job, 1, 1, local_addr="127.0.0.1", last_call_timeout=0,
        worker_store="etcd",
    ))
    master = handler.next_rendezvous().bootstrap_store_info
    os.environ |= {
        "TORCHELASTIC_RUN_ID": job, "MASTER_ADDR": master.master_addr,
        "MASTER_PORT": str(master.master_port),
    }
found = []
for number in range(groups):
    dist.init_process_group("gloo", init_method=method, rank=0, world_size=1)
    store = dist.distributed_c10d._get_default_store()
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    assert isinstance(store, EtcdStore), store
    del store
    dist.barrier()
    dist.destroy_process_group()
    gc.collect()
    if number >= groups // 2:
        holds = [len(os.listdir(f"/proc/self/{kind}")) for kind in ("task", "fd")]
        found.append([*holds, len(EtcdStore._open)])
print(json.dumps(found))
"""


@pytest.mark.slow(10)
@pytest.mark.parametrize("method", ["env://", "etcd-v3://127.0.0.1:{port}/{job}"])
def test_groups_that_are_made_anew(
    method: str, etcd_server: EtcdServer, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread, connection or store for each: C++ says nothing of those of a group that is destroyed."""
    for name in ("RANK", "WORLD_SIZE", "ROLE_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    port = str(etcd_server.get_port())
    done = subprocess.run(
        [sys.executable, "-c", GROUPS, port, run_id, method.format(port=port, job=run_id), "30"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert max(found) == min(found), found
    assert found[0][-1] < 25


def test_clones_go_with_their_store(client: Client, prefix: str) -> None:
    """Those of a round are let go of when eight more rounds' handlers have gone; C++ makes clones."""
    before = set(EtcdStore._open)
    for number in range(20):
        store = EtcdStore(client, f"{prefix}/{number}")
        store.clone().clone()
        store._give_up()
    del store
    gc.collect()
    assert len(EtcdStore._open - before) == 8 * 3


def test_servers(prefix: str) -> None:
    def use() -> None:
        with EtcdServer() as server, server.get_client() as client:
            client.write(prefix, "x")

    use()
    before = usage()
    for _ in range(10):
        use()
    # Not at once: what ends it may be a thread, and earlier tests have theirs.
    eventually(lambda: usage().threads <= before.threads)
    after = usage()
    assert after.files <= before.files
    assert after.python_blocks - before.python_blocks < 10 * 50
