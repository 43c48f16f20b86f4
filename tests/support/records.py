"""Runs as records in etcd, written by the test, and events of `torchetcd.aio` as they come."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from torchetcd import aio
from torchetcd._defaults import PREFIX
from torchetcd._torchetcd import run_lease
from torchetcd.aio._run_keys import RunKeys
from torchetcd.etcd import Client

#: For what etcd and this process do at once, on a machine that has much else to do.
SOON_S = 30.0

E = TypeVar("E", bound=aio.Event)


class Written:
    """A run whose keys the test writes, each node's under a lease of its own, as agents do."""

    def __init__(self, client: Client, run_id: str, prefix: str = PREFIX) -> None:
        self.client, self.run_id, self.prefix = client, run_id, prefix
        self.keys = RunKeys.of(run_id, prefix)
        self.lease = run_lease(self.keys.base)
        client._native.lease_grant(60, self.lease)
        self._pid = 0
        #: What each node says of itself, by its id.
        self.nodes: dict[str, dict[str, Any]] = {}

    def key(self, path: str) -> bytes:
        return f"{self.keys.rdzv}{path}".encode()

    def put(self, path: str, record: object, lease: int | None = None) -> int:
        return self.write({path: record}, lease)

    def write(self, records: dict[str, object], lease: int | None = None) -> int:
        """Write records (or delete those that are `None`) in one transaction, and return its revision."""
        ops: list[Any] = []
        for path, record in records.items():
            if record is None:
                ops.append(("delete", self.key(path), None))
                continue
            value = record if isinstance(record, bytes) else json.dumps(record).encode()
            found = self._node_of(path)
            under = lease if lease is not None else int(found, 16) if found else self.lease
            ops.append(("put", self.key(path), value, under))
        return self.client._native.txn([], ops, [])[1]

    def _node_of(self, path: str) -> str | None:
        last = path.rpartition("/")[2]
        return last if last in self.nodes else None

    def node(self, host: str, **more: Any) -> str:
        """Grant a lease to a node and return its id."""
        self._pid += 1
        made = f"{self.client._native.lease_grant(60):016x}"
        self.nodes[made] = {"host": host, "pid": self._pid, **more}
        return made

    def end(self, node: str) -> None:
        """End the lease of a node, as etcd does when it is not renewed."""
        self.client._native.lease_revoke(int(node, 16))

    def control(self, number: int, state: str, **more: Any) -> dict[str, Any]:
        record = {"v": 1, "round": number, "state": state, "by": "a (pid 1)", "at": 100 * number}
        if state == "open":
            record |= {"previous": None, "why": "the first round"}
        if state == "final":
            record |= {
                "world": 1, "attempt": "1.1", "since": 1, "master_addr": "h", "master_port": 29500,
                "opened_at": 100 * number - 50, "opened_by": "a (pid 1)", "why": "the first round",
                "min": 1, "max": 2,
            }  # fmt: skip
        return record | more

    def joining(self, number: int, host: str, **more: Any) -> tuple[str, dict[str, object]]:
        node = self.node(host, **more)
        record = {"v": 1, "master_addr": host, "master_port": 1, "at": 10, "until": 20}
        return node, {f"round/{number}/join/{node}": record | self.nodes[node]}

    def join(self, number: int, host: str, **more: Any) -> str:
        node, records = self.joining(number, host, **more)
        self.write(records)
        return node

    def wait(self, number: int, host: str, **more: Any) -> str:
        node = self.node(host, **more)
        self.put(f"round/{number}/waiting/{node}", {"at": 11, "until": 21} | self.nodes[node])
        return node

    def membership(self, number: int, nodes: list[str], attempt: str = "1.1") -> dict[str, object]:
        """The member keys and the roster of a round."""
        records: dict[str, object] = {}
        roster = []
        for rank, node in enumerate(nodes):
            member = {"rank": rank, "next": 0, "addr": self.nodes[node]["host"], **self.nodes[node]}
            records[f"round/{number}/member/{attempt}/{node}"] = member
            roster.append({"node": node, "node_id": None, **member})
        return records | {f"round/{number}/roster/{attempt}/0": {"members": roster}}

    def complete(self, number: int, nodes: list[str], **more: Any) -> None:
        """Complete a round as a coordinator does."""
        self.write(self.membership(number, nodes))
        control = self.control(number, "final", world=len(nodes), **more)
        past = {name: control[name] for name in ("round", "world", "why", "opened_at", "opened_by")}
        self.write(
            {
                "head/control": control,
                "head/coordinator": None,
                f"round/{number}/last_call": None,
                f"history/{number:016x}": past | {"at": control["at"], "by": "a (pid 1)"},
            }
        )

    def reopen(self, number: int, previous: int, **more: Any) -> None:
        before = {"round": previous, "attempt": "1.1"}
        self.put("head/control", self.control(number, "open", previous=before, **more))


@contextlib.asynccontextmanager
async def connected(client: Client) -> AsyncIterator[aio.Client]:
    async with aio.Client(client.base_uri) as made:
        yield made


class Watching:
    """The events of a run, read one after the other."""

    def __init__(self, events: AsyncIterator[aio.Event]) -> None:
        self._events = events
        self.seen: list[aio.Event] = []

    async def next(self, kind: type[E]) -> E:
        """Return the next event, which must be of this kind."""
        event = await asyncio.wait_for(anext(self._events), SOON_S)
        self.seen.append(event)
        assert isinstance(event, kind), event
        return event

    async def until(self, kind: type[E]) -> E:
        """Return the next event of this kind."""
        while True:
            event = await asyncio.wait_for(anext(self._events), SOON_S)
            self.seen.append(event)
            if isinstance(event, kind):
                return event


@contextlib.asynccontextmanager
async def watching(client: aio.Client, run_id: str) -> AsyncIterator[Watching]:
    events = client.watch_run(run_id)
    try:
        yield Watching(events)
    finally:
        await events.aclose()


async def eventually(condition: Callable[[], object], timeout: float = SOON_S) -> None:
    """Wait for what no event announces."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s"
        await asyncio.sleep(0.02)
