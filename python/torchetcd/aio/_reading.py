"""Reading runs: one, or all of a prefix, each as it was at one revision."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace

from torchetcd._run_model import Node, Run
from torchetcd.aio._raw_client import KeyValue, RawClient, prefix_end
from torchetcd.aio._run_errors import RunNotFoundError
from torchetcd.aio._run_keys import RunKeys, run_of, runs_start
from torchetcd.aio._run_view import RunView
from torchetcd.etcd import EtcdEventIndexCleared

#: So many requests of one call are under way at the same time.
AT_ONCE = 64
#: Names of runs are looked for in so many keys at a time. What is left of a run is jumped over.
_NAMES = 200
#: So many runs are read at once, with so many keys of each.
_RUNS, _KEYS = 32, 128


async def read_view(raw: RawClient, keys: RunKeys) -> RunView:
    """Read all that describes a run, at one revision."""
    view = RunView(keys)
    while True:
        kvs: list[KeyValue] = []
        revision = 0
        try:
            async for page in raw.pages(keys.start, keys.end):
                kvs += page.kvs
                revision = page.revision
        except EtcdEventIndexCleared:
            # Compacted between two pages, in a run of thousands of nodes.
            continue
        view.reset(kvs, revision)
        return view


async def ask_last_call(raw: RawClient, view: RunView) -> None:
    """Find out when the last call ends, if there is one."""
    control = view.control
    lease = view.last_calls.get(control.round) if control and control.state == "open" else None
    if lease is None:
        view.last_call_until = None
        return
    left = await raw.lease_time_to_live(lease)
    view.last_call_until = time.time() + (left.left_s if left else 0)


async def describe(raw: RawClient, keys: RunKeys, *, leases: bool) -> Run:
    """Return a run as it is.

    Raises:
        RunNotFoundError: if nothing of it is in etcd.
    """
    view = await read_view(raw, keys)
    if not view.present:
        await _refuse_if_absent(raw, keys)
    await ask_last_call(raw, view)
    run = view.run(time.time())
    return await with_leases(raw, run) if leases else run


async def _refuse_if_absent(raw: RawClient, keys: RunKeys) -> None:
    base = keys.base.encode()
    found = await raw.range(base, prefix_end(base), limit=1, keys_only=True)
    if not found.kvs:
        raise not_found(keys)


def not_found(keys: RunKeys) -> RunNotFoundError:
    """Return the error that says that there is no such run."""
    message = (
        f"There is no run '{keys.run_id}' below '{keys.prefix}' in etcd: it never was, or its "
        "lease ran out after its last node had gone."
    )
    return RunNotFoundError(message)


async def with_leases(raw: RawClient, run: Run) -> Run:
    """Return a run whose nodes tell how long their leases last."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(node: Node) -> Node:
        async with gate:
            left = await raw.lease_time_to_live(int(node.id, 16))
        if left is None:
            return replace(node, alive=False)
        return replace(node, lease_left_s=float(left.left_s), lease_ttl_s=float(left.granted_s))

    async def ask_all(nodes: Iterable[Node]) -> tuple[Node, ...]:
        return tuple(await asyncio.gather(*map(ask, nodes)))

    groups = (run.joined, run.members, run.waiting, run.spares, run.missing)
    joined, members, waiting, spares, missing = await asyncio.gather(*map(ask_all, groups))
    coordinator = run.coordinator
    if coordinator is not None:
        known = {node.id: node for node in joined}
        coordinator = known.get(coordinator.id) or await ask(coordinator)
    return replace(
        run, joined=joined, members=members, waiting=waiting, spares=spares, missing=missing,
        coordinator=coordinator,
    )  # fmt: skip


async def list_runs(raw: RawClient, prefix: str) -> list[Run]:
    """Return all runs below a prefix."""
    while True:
        try:
            names, revision = await _names(raw, prefix)
            views = await _views(raw, prefix, names, revision)
        except EtcdEventIndexCleared:
            # Compacted between two of the answers.
            continue
        await asyncio.gather(*(ask_last_call(raw, view) for view in views))
        now = time.time()
        return [view.run(now) for view in views]


async def _names(raw: RawClient, prefix: str) -> tuple[list[str], int]:
    """Return the run ids below a prefix, and the revision at which they were there."""
    start = runs_start(prefix)
    key, end, revision = start, prefix_end(start), 0
    names: list[str] = []
    while True:
        page = await raw.range(key, end, limit=_NAMES, keys_only=True, revision=revision)
        revision = revision or page.revision
        for kv in page.kvs:
            key = kv.key + b"\0" if kv.key >= key else key
            found = run_of(kv.key, start)
            if found and (not names or names[-1] != found[0]):
                names.append(found[0])
            if found:
                # Of a large run only the first keys are looked at.
                key = max(key, found[1])
        if not page.more:
            return names, revision


async def _views(raw: RawClient, prefix: str, names: list[str], revision: int) -> list[RunView]:
    views = []
    for first in range(0, len(names), _RUNS):
        part = [RunKeys.of(name, prefix) for name in names[first : first + _RUNS]]
        reads = [("get", keys.start, keys.end, _KEYS, False, revision) for keys in part]
        reply = await raw.txn([], reads)
        for index, keys in enumerate(part):
            kvs = reply.keys(index)
            if reply.answers[index][2]:
                rest = kvs[-1].key + b"\0"
                async for page in raw.pages(rest, keys.end, revision=revision):
                    kvs += page.kvs
            view = RunView(keys)
            view.reset(kvs, revision)
            views.append(view)
    return views
