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

from torchetcd._etcd_errors import EtcdException, EtcdNoSpace
from torchetcd.aio._errors import RunInUseError, RunRecordError
from torchetcd.aio._keys import RunKeys
from torchetcd.aio._model import Node, RoundRecord
from torchetcd.aio._raw import KeyValue, RawClient
from torchetcd.aio._reading import not_found, read_view
from torchetcd.aio._records import Control, control, plain, round_record
from torchetcd.aio._view import RunView

#: The default of the handler's parameter `run_ttl`, for a run's lease that is gone.
_RUN_TTL_S = 7200
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
    from torchetcd._torchetcd import run_lease  # noqa: PLC0415 - with the first call

    return run_lease(keys.base)


async def _hold_run_lease(raw: RawClient, keys: RunKeys, record: Control) -> int:
    """Have the run's lease last a whole time again: what is written now is to be found by others."""
    lease = _run_lease(keys)
    if not await raw.lease_keep_alive_once(lease):
        await raw.lease_grant(record.run_ttl or _RUN_TTL_S, lease)
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
    record = control(kv.value)
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
            run_ttl=record.run_ttl or _RUN_TTL_S,
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
    """Return the last completed round as the record of a close keeps it, for who reopens the run."""
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
    why = plain(f"reopened by {by}: {reason}")
    while True:
        record, kv = await _read_control(raw, keys)
        if record.state != "closed":
            return tried and (record.by, record.why, record.at) == (by, why, at)
        from torchetcd._torchetcd import reopening  # noqa: PLC0415 - with the first call

        # What is written is what an agent with if_closed=reopen writes.
        compares, operations = reopening(
            kv.value, kv.mod_revision, keys.base[:-1], by, why, at, False
        )
        await _hold_run_lease(raw, keys, record)
        tried = True
        reply = await raw.txn(compares, operations, safely=True)
        if reply.succeeded:
            return True


def find_nodes(view: RunView, name: str) -> tuple[Node, ...]:
    """Return the live nodes that a name means: the id of one, a node id, or a host."""
    nodes = view.placed().alive().values()
    for matches in (
        [node for node in nodes if node.id == name],
        [node for node in nodes if node.node_id == name],
        [node for node in nodes if node.host == name],
    ):
        if matches:
            return tuple(matches)
    return ()


async def evict(  # noqa: PLR0913 - as `Client.evict`
    raw: RawClient, keys: RunKeys, name: str, reason: str, by: str, *, deny: bool
) -> tuple[Node, ...]:
    """Deny a name, and end the leases of the nodes that it means."""
    key = keys.denied(name)
    record, _ = await _read_control(raw, keys)
    if deny:
        lease = await _hold_run_lease(raw, keys, record)
        value = _record(v=record.version, by=by, reason=reason, at=int(time.time()))
        # The same whoever has changed the control record; only there must be a run.
        reply = await raw.txn(
            [("create", keys.control, ">", 0)], [("put", key, value, lease)], safely=True
        )
        if not reply.succeeded:
            raise not_found(keys)
    # After the denial: who joins from now on has read it.
    nodes = find_nodes(await read_view(raw, keys), name)
    for node in nodes:
        await raw.lease_revoke(int(node.id, 16))
    return nodes


async def allow(raw: RawClient, keys: RunKeys, name: str) -> bool:
    """Take a denial back and return whether there was one."""
    key, tried = keys.denied(name), False
    while True:
        found = await raw.range(key)
        if not found.kvs:
            return tried
        revision = found.kvs[0].mod_revision
        tried = True
        reply = await raw.txn([("mod", key, "=", revision)], [("delete", key, None)], safely=True)
        if reply.succeeded:
            return True


async def purge(raw: RawClient, keys: RunKeys, *, force: bool) -> int:
    """Delete all of a run and return how many keys there were."""
    base = keys.base.encode()
    end = base[:-1] + b"0"
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
            if "permission denied" not in str(exc):
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
