"""Stores for tests, and other processes that use them."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.process
import queue
import threading
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from torchetcd.etcd import Client
from torchetcd.etcd_store import EtcdStore

# The server forks each process, so torch is imported once.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch.distributed", "torchetcd.etcd_store"])


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


@contextlib.contextmanager
def opened(
    client: Client, prefix: str, kind: str = "direct", timeout: float = 30
) -> Iterator[dist.Store]:
    """Provide a store, itself ("direct") or below a `PrefixStore` ("prefixed")."""
    with EtcdStore(client, prefix, seconds(timeout)) as store:
        yield store if kind == "direct" else dist.PrefixStore("below", store)


def in_background(work: Callable[[], object], after: float = 0.0) -> threading.Thread:
    """Start `work` in a thread after a while (what waits in a store announces that to nobody)."""

    def run() -> None:
        threading.Event().wait(after)
        work()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def _report(results: Any, work: Callable[..., object], *args: object) -> None:
    try:
        results.put((args[0], work(*args), None))
    except BaseException as exc:
        results.put((args[0], None, f"{type(exc).__name__}: {exc}"))


def in_processes(number: int, work: Callable[..., object], *args: object) -> list[Any]:
    """Run `work(rank, *args)` in so many processes and return what each returned, by rank."""
    results = _context.Queue()
    processes: list[multiprocessing.process.BaseProcess] = [
        _context.Process(target=_report, args=(results, work, rank, *args), daemon=True)
        for rank in range(number)
    ]
    for process in processes:
        process.start()
    returned: dict[int, Any] = {}
    try:
        while len(returned) < number:
            try:
                rank, value, error = results.get(timeout=1)
            except queue.Empty:
                ended = [p.exitcode for p in processes if p.exitcode not in (None, 0)]
                assert not ended, f"processes ended with {ended}"
                continue
            assert error is None, f"process {rank}: {error}"
            returned[rank] = value
    finally:
        for process in processes:
            process.join(10 if len(returned) == number else 0)
            process.kill()
            process.join()
            process.close()
    return [returned[rank] for rank in range(number)]


def compact(client: Client) -> None:
    """Let etcd forget all of its history."""
    native = client._native
    revision = native.txn([], [("put", b"/compacted", b"", 0)], [])[1]
    request = urllib.request.Request(
        f"{client.base_uri}/v3/kv/compaction",
        json.dumps({"revision": revision, "physical": True}).encode(),
    )
    urllib.request.urlopen(request, timeout=10).close()
