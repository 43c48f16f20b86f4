"""Programs for `zygote.Program` that use stores and handlers, and what is left of them."""

from __future__ import annotations

from torchetcd.etcd import Client

#: Nothing may have to wait for this one to run out.
LONG_TTL = 60

PRELUDE = """
import atexit, contextlib, ctypes, random, select
import torch.distributed as dist
from datetime import timedelta
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torchetcd.etcd import Client
from torchetcd.etcd_rendezvous import create_rdzv_handler
from torchetcd.etcd_store import EtcdStore

port, run_id, ttl = sys.argv[1:4]
prefix = f"/{run_id}"

def say(*words):
    print(*words, flush=True)

def in_thread(work, *args):
    def run():
        with contextlib.suppress(Exception):
            work(*args)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    # Until it is in the native call that it blocks in.
    while (frame := sys._current_frames().get(thread.ident)) is None or (
        "torchetcd" not in frame.f_code.co_filename
    ):
        time.sleep(0.001)
    return thread

def wait_for_a_line():
    # A signal that comes right before a read is heard only after it.
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        pass

def new_store():
    return EtcdStore(Client(port=int(port)), prefix, timedelta(seconds=60))

def new_handler(nodes):
    return create_rdzv_handler(RendezvousParameters(
        "etcd-v3", f"127.0.0.1:{port}", run_id, nodes, nodes, local_addr="127.0.0.1",
        keep_alive_ttl=ttl, last_call_timeout=0,
    ))
"""


def check_errors(errors: str, expected: str = "") -> None:
    for sign in ("panicked", "Fatal Python error", "terminate called", "core dumped"):
        assert sign not in errors
    # A traceback where one is to be expected, nothing else anywhere.
    assert (expected in errors) if expected else not errors


def of_nodes(client: Client, run_id: str) -> list[bytes]:
    """The keys of a run that live under the lease of a node."""
    path = f"/torchelastic/p2p/run_{run_id}/rdzv/".encode()
    found = client._native.txn([], [("get", path, path + b"\xff", 0, False, 0)], [])[2][0][0]
    names = (b"/join/", b"/member/", b"/waiting/", b"/coordinator")
    return [kv[0] for kv in found if any(name in kv[0] for name in names)]
