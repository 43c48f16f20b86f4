"""Values of `torchetcd.aio` for tests that need no etcd."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from torchetcd._run_model import Node, Run

#: 2027-01-15 08:00:00 UTC.
NOW = 1_800_000_000.0
_ids = itertools.count(1)


def node(host: str = "host-a", pid: int = 1, **other: Any) -> Node:
    values: dict[str, Any] = {
        "id": f"{next(_ids):016x}",
        "host": host,
        "pid": pid,
        "node_id": None,
        "domain": None,
        "rank": None,
        "address": None,
        "since": NOW - 200,
        "until": NOW + 400,
        "lease_left_s": None,
        "lease_ttl_s": None,
        "state": "joined",
    }
    return Node(**(values | other))


def workers(*numbers: int, name: str = "worker-", **other: Any) -> tuple[Node, ...]:
    return tuple(node(f"{name}{number}", **other) for number in numbers)


def members(count: int, **other: Any) -> tuple[Node, ...]:
    return tuple(
        node(f"worker-{rank}", rank=rank, state="member", until=None, **other)
        for rank in range(count)
    )


def run(**other: Any) -> Run:
    """Make a run whose first round is open and needs four nodes."""
    values: dict[str, Any] = {field.name: None for field in dataclasses.fields(Run)} | {
        "id": "my-job",
        "prefix": "/torchelastic/p2p",
        "revision": 7,
        "state": "open",
        "round": 1,
        "min_nodes": 4,
        "max_nodes": 4,
        "opened_at": NOW - 300,
        "opened_by": "worker-0 (pid 1)",
        "why": "the first round",
        "observed_at": NOW,
    }
    for name in ("joined", "members", "waiting", "spares", "missing", "rounds", "denied"):
        values[name] = ()
    return Run(**(values | other))


def final(world: int = 4, **other: Any) -> Run:
    """Make a run whose round is complete."""
    values = {
        "state": "final",
        "world": world,
        "members": members(world),
        "completed_at": NOW - 200,
        "master_addr": "10.0.0.1",
        "master_port": 4567,
    }
    return run(**(values | other))
