"""The native runtime: who drives it, and that nothing in it depends on Python."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

from torch.distributed.elastic.rendezvous import RendezvousParameters

from support.stores import opened
from torchetcd.etcd import Client
from torchetcd.etcd_rendezvous import create_rdzv_handler

#: Calls this C function without giving up the GIL.
HOLD_THE_GIL = ctypes.PyDLL(None).sleep


def _native_threads() -> int:
    names = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return sum(name.strip() == "torchetcd" for name in names)


def test_one_native_thread_serves_a_process(client: Client, prefix: str) -> None:
    with opened(client, prefix) as store, opened(client, prefix) as other:
        store.set("key", "value")
        assert other.get("key") == b"value"
        assert _native_threads() == 1


def test_leases_are_renewed_while_the_gil_is_held(client: Client, prefix: str) -> None:
    params = RendezvousParameters(
        "etcd-v3",
        f"127.0.0.1:{client.port}",
        f"run{os.getpid()}",
        1,
        1,
        etcd_prefix=prefix,
        keep_alive_ttl=2,
        last_call_timeout=0,
    )
    handler = create_rdzv_handler(params)
    world = handler.next_rendezvous()
    # This thread has just driven the runtime itself: the native one has to take over.
    world.store.set("key", "value")
    HOLD_THE_GIL(5)
    # etcd would have taken it away with the lease.
    keys = [found.key for found in client.read(prefix, recursive=True).children]
    assert any("/member/" in key for key in keys), keys
    assert handler.num_nodes_waiting() == 0
    handler.shutdown()


def test_a_thread_that_waits_goes_on_beside_threads_that_call(client: Client, prefix: str) -> None:
    with opened(client, prefix) as store:
        got: list[bytes] = []
        rounds = 30

        def wait() -> None:
            got.extend(store.get(f"key{number}") for number in range(rounds))

        waiting = threading.Thread(target=wait)
        waiting.start()
        for number in range(rounds):
            # Each call takes the driving over from the native thread and leaves it behind.
            for _ in range(20):
                store.add("calls", 1)
            store.set(f"key{number}", str(number))
        waiting.join(30)
        assert got == [str(number).encode() for number in range(rounds)]


def test_no_key_is_missed_while_others_write(client: Client, prefix: str) -> None:
    """Between the read and the watch of a wait something is always written here."""
    stop = threading.Event()
    rounds = 40

    def write() -> None:
        with opened(client, f"{prefix}/others") as others:
            number = 0
            while not stop.is_set():
                number += 1
                others.set("key", str(number))

    busy = threading.Thread(target=write)
    busy.start()
    try:
        with opened(client, prefix) as store, opened(client, prefix) as setter:
            for number in range(rounds):
                # At about the moment at which the wait looks and begins to watch.
                setting = threading.Thread(target=setter.set, args=(f"key{number}", "value"))
                setting.start()
                if number % 2:
                    store.wait([f"key{number}"])
                else:
                    assert store.get(f"key{number}") == b"value"
                setting.join()
            setter.queue_push("queue", "first")
            assert store.queue_pop("queue") == b"first"
    finally:
        stop.set()
        busy.join()
