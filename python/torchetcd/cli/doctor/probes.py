"""What `torchetcd doctor` looks at. It writes nothing: a write is tried under a guard that never holds."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from torchetcd._quorum.seen import Quorum
from torchetcd.aio import Client, RawClient, Run, RunNotFoundError, key_prefix, prefix_end
from torchetcd.cli.doctor import certificates, server_metrics
from torchetcd.cli.doctor.observations import Endpoint, Observations, Status
from torchetcd.cli.target import Target
from torchetcd.etcd import Client as EtcdClient
from torchetcd.etcd import EtcdException, EtcdInsufficientPermissions

_T = TypeVar("_T")

_READS, _WRITES = 30, 10
# More than this would be a load, and no look.
_LEASES = 64
# No key is ever written so often.
_NEVER = 2**62


async def observe(target: Target, run: str | None, quorum: Quorum | None = None) -> Observations:
    """Look at the cluster, and at the runs in it.

    Args:
        target: The options.
        run: The run below which reading and writing is tried; all below the prefix without it.
        quorum: What was seen of the quorum inside a job. Only its members are endpoints then, and only with
            a majority.

    Raises:
        click.UsageError: if an option is not valid.
    """
    path = key_prefix(run, target.prefix)
    client = target.client()  # also checks the options
    # Clients of which only the address is used.
    uris = client.endpoints if quorum is None else quorum.reached
    addresses = [EtcdClient(uri) for uri in uris]
    endpoints = await asyncio.gather(*(_endpoint(target, address, path) for address in addresses))
    seen = Observations(
        endpoints=tuple(endpoints),
        path=path,
        now=time.time(),
        user=target.user,
        quorum=quorum,
    )
    seen = _client_certificate(seen, target)
    async with client:
        if not any(endpoint.error is None and endpoint.refused is None for endpoint in endpoints):
            return seen
        seen = await _cluster(client, seen)
        return await _runs(client, target, run, seen)


async def _endpoint(target: Target, address: EtcdClient, path: str) -> Endpoint:
    seen = Endpoint(address.base_uri)
    if address.protocol == "https":
        seen = await asyncio.to_thread(_server_certificate, seen, address, target)
    async with target.client(address.base_uri) as client:
        raw: RawClient = client.raw
        key = f"{path}torchetcd-doctor".encode()
        # Both at once: with an unreachable endpoint each takes the whole time.
        (_, read), (status, why) = await asyncio.gather(
            _tried(raw.range(key, limit=1, timeout=target.timeout)),
            _tried(_status(raw, target.timeout)),
        )
        if isinstance(read, EtcdInsufficientPermissions):
            if read.refusal != "permission_denied":
                return dataclasses.replace(seen, refused=str(read))
            seen = dataclasses.replace(seen, read_denied=True)
        elif read is not None and status is None:
            return dataclasses.replace(seen, error=str(read))
        elif read is not None:
            # A member without a leader and a learner report their status nevertheless.
            return dataclasses.replace(seen, status=status, read_error=str(read))
        seen = dataclasses.replace(seen, status=status, status_error=_text(why))
        if not seen.read_denied:
            seen = await _reading(raw, seen, key, path, target.timeout)
        seen = await _writing(raw, seen, key, target.timeout)
        if status is None:
            return seen
        seen = await asyncio.to_thread(_of_metrics, seen, status, address, target)
        last, _ = await _tried(_status(raw, target.timeout))
        return dataclasses.replace(seen, last_term=None if last is None else last.term)


def _of_metrics(seen: Endpoint, status: Status, address: EtcdClient, target: Target) -> Endpoint:
    """Add what only etcd's page of metrics tells: changes of the leader, and the quota before etcd 3.6."""
    told = server_metrics.read(address, target)
    leaders, since = told.get(server_metrics.LEADERS), told.get(server_metrics.SINCE)
    quota = int(told.get(server_metrics.QUOTA, 0))
    return dataclasses.replace(
        seen,
        status=dataclasses.replace(status, db_quota=status.db_quota or quota),
        leaders_seen=None if leaders is None else int(leaders),
        running_since=since,
    )


async def _status(raw: RawClient, timeout: float) -> Status:
    told = await raw.status(timeout=timeout)
    return Status(
        version=told.version,
        cluster=told.cluster_id,
        member=told.member_id,
        leader=told.leader_id,
        is_learner=told.is_learner,
        lag=told.raft_index - told.raft_applied_index,
        db_size=told.db_size,
        db_size_in_use=told.db_size_in_use,
        db_quota=told.db_quota,
        errors=tuple(told.errors),
        term=told.raft_term,
    )


async def _reading(
    raw: RawClient, seen: Endpoint, key: bytes, path: str, timeout: float
) -> Endpoint:
    try:
        await raw.range(
            path.encode(), prefix_end(path.encode()), limit=1, keys_only=True, timeout=timeout
        )
        times = await _timed(_READS, lambda: raw.range(key, limit=1, timeout=timeout))
    except EtcdInsufficientPermissions:
        return dataclasses.replace(seen, read_denied=True)
    except EtcdException as exc:
        return dataclasses.replace(seen, read_error=str(exc))
    return dataclasses.replace(seen, reads_ms=times)


async def _writing(raw: RawClient, seen: Endpoint, key: bytes, timeout: float) -> Endpoint:
    """Try a write that never takes place.

    etcd checks the rights of both branches of a transaction, and brings it to a quorum, before it looks
    at the comparison.
    """
    never = [("version", key, "=", _NEVER)]
    put = [("put", key, b"", 0)]
    try:
        times = await _timed(_WRITES, lambda: raw.txn(never, put, safely=True, timeout=timeout))
    except EtcdInsufficientPermissions:
        return dataclasses.replace(seen, write_denied=True)
    except EtcdException as exc:
        return dataclasses.replace(seen, write_error=str(exc))
    return dataclasses.replace(seen, writes_ms=times)


async def _timed(times: int, call: Callable[[], Awaitable[object]]) -> tuple[float, ...]:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - started) * 1000)
    return tuple(taken)


def _text(error: EtcdException | None) -> str | None:
    return None if error is None else str(error)


async def _tried(call: Awaitable[_T]) -> tuple[_T | None, EtcdException | None]:
    try:
        return await call, None
    except EtcdException as exc:
        return None, exc


async def _cluster(client: Client, seen: Observations) -> Observations:
    members, members_error = await _tried(client.raw.members())
    alarms, alarms_error = await _tried(client.raw.alarms())
    return dataclasses.replace(
        seen,
        members=None
        if members is None
        else tuple((member.name, member.is_learner) for member in members),
        members_error=_text(members_error),
        alarms=None if alarms is None else tuple(alarm.kind for alarm in alarms),
        alarms_error=_text(alarms_error),
    )


async def _runs(
    client: Client, target: Target, run: str | None, seen: Observations
) -> Observations:
    try:
        if run is None:
            found = await client.list_runs(prefix=target.prefix)
        else:
            found = [await client.describe(run, prefix=target.prefix)]
    except RunNotFoundError:
        found = []
    except EtcdException as exc:
        return dataclasses.replace(seen, runs_error=str(exc))
    unleased, _ = await _tried(_unleased(client, target, found[:_LEASES]))
    ahead = max((_newest(each) for each in found), default=None)
    return dataclasses.replace(
        seen,
        runs=len(found),
        unreadable=tuple(each.id for each in found if each.state == "unreadable"),
        unleased=tuple(unleased or ()),
        ahead_s=None if ahead is None or ahead[0] == 0 else ahead[0] - seen.now,
        ahead_of="" if ahead is None else f"run '{ahead[1]}'",
    )


async def _unleased(client: Client, target: Target, runs: list[Run]) -> list[str]:
    """Find runs whose keys outlive all nodes: the lease that should end them is not there."""
    there = [run for run in runs if run.state in ("open", "final", "closed")]
    leases = await asyncio.gather(*(client.run_lease(run.id, target.prefix) for run in there))
    return [run.id for run, lease in zip(there, leases, strict=True) if lease is None]


def _newest(run: Run) -> tuple[float, str]:
    nodes = [*run.joined, *run.members, *run.waiting, *run.spares]
    times = [run.opened_at, run.completed_at, run.closed.at if run.closed else None]
    times += [node.since for node in nodes]
    return max((at for at in times if at is not None), default=0.0), run.id


def _client_certificate(seen: Observations, target: Target) -> Observations:
    if target.cert is None or seen.quorum is not None:
        return seen
    seen = dataclasses.replace(seen, client_certificate=target.cert)
    try:
        end = certificates.end_of_file(target.cert)
    except (OSError, ValueError) as exc:
        return dataclasses.replace(seen, client_certificate_error=str(exc))
    return dataclasses.replace(seen, client_certificate_end=end)


def _server_certificate(seen: Endpoint, address: EtcdClient, target: Target) -> Endpoint:
    try:
        end = certificates.end_of_server(address.host, address.port, target.timeout, target.pair)
    except (OSError, ValueError) as exc:
        return dataclasses.replace(seen, certificate_error=str(exc))
    return dataclasses.replace(seen, certificate_end=end)
