"""Steering a run from outside, by the rules of `docs/protocol.md`.

Every write is guarded by the revision of what it was decided upon, and done again with what is there
now if that has changed. So a request whose answer was lost is simply sent again.
"""

from __future__ import annotations

import getpass
import json
import socket
import time
from typing import Any

from torchetcd import _native
from torchetcd._defaults import RUN_TTL_S
from torchetcd._run_model import Node, RoundRecord
from torchetcd.aio._raw_client import KeyValue, RawClient, prefix_end
from torchetcd.aio._reading import not_found, read_view
from torchetcd.aio._records import (
    Control,
    control_record,
    denial_record,
    escaped_name,
    one_line,
    round_record,
)
from torchetcd.aio._run_errors import RunInUseError, RunRecordError
from torchetcd.aio._run_keys import RunKeys
from torchetcd.diagnosis import denials_called, nodes_called
from torchetcd.etcd import EtcdException, EtcdNoSpace

#: Names that a message may hold.
_NAMES = 8


def operator() -> str:
    """Return who operates: user and host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = "?"
    return f"{user}@{socket.gethostname()}"


def _record(**fields: Any) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def _run_lease(keys: RunKeys) -> int:
    return _native.run_lease(keys.base)


async def _hold_run_lease(raw: RawClient, keys: RunKeys, record: Control) -> int:
    """Have the run's lease last a whole time again: what is written now is to be found by others."""
    lease = _run_lease(keys)
    if not await raw.lease_keep_alive_once(lease):
        await raw.lease_grant(record.run_ttl or RUN_TTL_S, lease)
    return lease


async def _read_control(raw: RawClient, keys: RunKeys) -> tuple[Control, KeyValue]:
    """Return the control record, and the key and value that it is from.

    Raises:
        RunNotFoundError: if there is none.
        RunRecordError: if it cannot be understood.
    """
    found = await raw.range(keys.control)
    if not found.kvs:
        raise not_found(keys)
    kv = found.kvs[0]
    record = control_record(kv.value)
    if isinstance(record, str):
        message = (
            f"The value of the etcd key '{keys.control.decode()}' {record}. As it is, nothing can be done "
            "with the run but to purge it."
        )
        raise RunRecordError(message)
    return record, kv


async def close_run(raw: RawClient, keys: RunKeys, reason: str, by: str) -> bool:
    """Close a run and return whether that was this call's doing."""
    at, mine = int(time.time()), 0
    while True:
        record, kv = await _read_control(raw, keys)
        if record.state == "closed":
            # An answer may have been lost: then it is this call's own record.
            return bool(mine) and (record.by, record.reason, record.at) == (by, reason, at)
        last = await _last_round(raw, keys, record)
        lease = await _hold_run_lease(raw, keys, record)
        value = _record(
            v=record.version,
            round=record.round,
            run_ttl=record.run_ttl or RUN_TTL_S,
            **({"reopened": record.reopened} if record.reopened else {}),
            state="closed",
            by=by,
            reason=reason,
            at=at,
            last=last,
        )
        mine = kv.mod_revision
        reply = await raw.txn(
            [("mod", keys.control, "=", kv.mod_revision)],
            [("put", keys.control, value, lease)],
            safely=True,
        )
        if reply.succeeded:
            return True


async def _last_round(raw: RawClient, keys: RunKeys, record: Control) -> dict[str, Any] | None:
    """Return the last completed round as the record of a close keeps it, for a reopening."""
    if record.last is None:
        return None
    number, attempt, world = record.last
    if world is None:
        found = await raw.range(keys.history(number))
        past = round_record(found.kvs[0].value) if found.kvs else None
        world = past.world if isinstance(past, RoundRecord) else None
    return {"round": number, "attempt": attempt, "world": world}


async def reopen_run(raw: RawClient, keys: RunKeys, reason: str, by: str) -> bool:
    """Open the next round of a closed run and return whether that was this call's doing."""
    at, tried = int(time.time()), False
    why = one_line(f"reopened by {by}: {reason}")
    while True:
        record, kv = await _read_control(raw, keys)
        if record.state != "closed":
            return tried and (record.by, record.why, record.at) == (by, why, at)
        # What is written is what an agent with if_closed=reopen writes.
        compares, operations = _native.reopening(
            kv.value, kv.mod_revision, keys.base[:-1], by, why, at, False
        )
        await _hold_run_lease(raw, keys, record)
        tried = True
        reply = await raw.txn(compares, operations, safely=True)
        if reply.succeeded:
            return True


async def evict(  # noqa: PLR0913 - as `Client.evict`
    raw: RawClient, keys: RunKeys, name: str, reason: str, by: str, *, deny: bool
) -> tuple[Node, ...]:
    """Deny those that a name means, and end their leases."""
    keys.denied(name)  # whether it can be one at all
    record, _ = await _read_control(raw, keys)
    told = {"v": record.version, "by": by, "reason": reason, "at": int(time.time())}
    denied: set[str] = set()
    while True:
        view = await read_view(raw, keys)
        found = nodes_called(view.placed().alive().values(), name)
        # Who has not come yet is denied as it is called here.
        new = [each for each in found or (name,) if each not in denied]
        if not deny or not new:
            break
        lease = await _hold_run_lease(raw, keys, record)
        denials = [
            ("put", keys.denied(each), _record(**told, **_whose(found.get(each), each)), lease)
            for each in new
        ]
        # The same whoever has changed the control record; only there must be a run.
        reply = await raw.txn([("create", keys.control, ">", 0)], denials, safely=True)
        if not reply.succeeded:
            raise not_found(keys)
        # Once more after the denial: who joins from now on has read it.
        denied |= set(new)
    nodes = tuple(node for those in found.values() for node in those)
    for node in nodes:
        await raw.lease_revoke(int(node.id, 16))
    return nodes


def _whose(nodes: list[Node] | None, name: str) -> dict[str, Any]:
    """Say whose id is denied, so that it can be allowed again by what people call it."""
    if not nodes or nodes[0].id != name:
        return {}
    return {"host": nodes[0].host, "pid": nodes[0].pid}


async def allow(raw: RawClient, keys: RunKeys, name: str) -> tuple[str, ...]:
    """Take back the denials that a name means, and return their names."""
    keys.denied(name)
    start, end = keys.denials
    tried: tuple[str, ...] = ()
    while True:
        page = await raw.range(start, end)
        chosen = []
        for kv in page.kvs:
            own = escaped_name(kv.key[len(start) :].decode(errors="replace")) or ""
            found = denial_record(own, kv.value)
            # A record that cannot be read denies nobody. It can still be removed by its name.
            if own == name or (not isinstance(found, str) and denials_called([found], name)):
                chosen.append((kv, own))
        if not chosen:
            return tried
        tried = tuple(own for _, own in chosen)
        reply = await raw.txn(
            [("mod", kv.key, "=", kv.mod_revision) for kv, _ in chosen],
            [("delete", kv.key, None) for kv, _ in chosen],
            safely=True,
        )
        if reply.succeeded:
            return tried


async def purge(raw: RawClient, keys: RunKeys, *, force: bool) -> int:
    """Delete all of a run and return how many keys there were."""
    base = keys.base.encode()
    end = prefix_end(base)
    deleted = 0
    while True:
        view = await read_view(raw, keys)
        there = await raw.range(base, end, count_only=True)
        if there.total == 0:
            if not deleted:
                raise not_found(keys)
            break
        nodes = tuple(view.placed().alive().values())
        if nodes and not force:
            raise RunInUseError(_in_use(keys, nodes), nodes)
        for node in nodes:
            await raw.lease_revoke(int(node.id, 16))
        # Whoever joins meanwhile changes a key, and is looked at.
        unchanged = [] if force else [("mod", keys.start, "<", view.revision + 1, keys.end)]
        deleted = max(deleted, there.total)
        delete = [("delete", base, end)]
        try:
            reply = await raw.txn(unchanged, delete, safely=True)
        except EtcdNoSpace:
            # One up to 3.5.5 takes no condition then. Nobody can join it either.
            reply = await raw.txn([], delete, safely=True)
        if reply.succeeded:
            deleted = max(deleted, reply.answers[0])
            break
    if not (await raw.range(base, end, count_only=True)).total:
        try:
            await raw.lease_revoke(_run_lease(keys))
        except EtcdException as exc:
            if exc.refusal != "permission_denied":
                raise
            # A role may not end leases of keys that it may not write: this one runs out by itself.
    return deleted


def _in_use(keys: RunKeys, nodes: tuple[Node, ...]) -> str:
    names = ", ".join(f"{node.host} (pid {node.pid})" for node in nodes[:_NAMES])
    more = f" and {len(nodes) - _NAMES} more" if len(nodes) > _NAMES else ""
    count = "1 live node" if len(nodes) == 1 else f"{len(nodes)} live nodes"
    return (
        f"The run '{keys.run_id}' has {count}, {names}{more}: close it first, or force the purge, which "
        "ends the nodes' leases."
    )
