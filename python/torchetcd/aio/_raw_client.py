"""etcd's own calls for asyncio, and their answers as named values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torchetcd import _native

if TYPE_CHECKING:
    from torchetcd._torchetcd import AsyncClient, AsyncWatch
    from torchetcd.etcd import Client

#: So many keys are asked for at once, so that no answer is large.
PAGE = 2000


class KeyValue(NamedTuple):
    """A key as etcd has it."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


def prefix_end(prefix: bytes) -> bytes:
    """Return the end of the range of all keys that begin with a prefix."""
    return _native.prefix_end(prefix)


class RangeResult(NamedTuple):
    """What a range held at a revision."""

    revision: int
    kvs: list[KeyValue]
    #: How many there are, whatever the limit was.
    total: int
    more: bool


class TxnResult(NamedTuple):
    """Whether the comparisons held, and the answers of the operations that were done then."""

    succeeded: bool
    revision: int
    #: Of a "get" a tuple of keys, count and more; of a "delete" how many there were; of a "put" `None`.
    answers: list[Any]

    def keys(self, index: int) -> list[KeyValue]:
        """Return what the "get" of that number has found."""
        return [KeyValue(*kv) for kv in self.answers[index][0]]


class WatchEvent(NamedTuple):
    """A change of a key. Of a deletion `kv` has no value, and the revision of the deletion."""

    kind: Literal["put", "delete"]
    kv: KeyValue


class WatchBatch(NamedTuple):
    """Changes in their order; a watch without a start tells first, without any, when it has begun."""

    revision: int
    events: list[WatchEvent]


class MemberStatus(NamedTuple):
    """What a member says of itself."""

    version: str
    cluster_id: int
    member_id: int
    revision: int
    #: 0 where it knows none.
    leader_id: int
    is_learner: bool
    raft_term: int
    raft_index: int
    raft_applied_index: int
    #: In bytes: the file, the part of it that is in use, and its limit (0 before etcd 3.6: unknown).
    db_size: int
    db_size_in_use: int
    db_quota: int
    errors: list[str]


class Member(NamedTuple):
    """A member of the cluster."""

    id: int
    name: str
    peer_urls: list[str]
    client_urls: list[str]
    is_learner: bool


class Alarm(NamedTuple):
    """An alarm that is on."""

    member_id: int
    #: "NOSPACE" or "CORRUPT".
    kind: str


class LeaseTime(NamedTuple):
    """How long a lease has left, and from how long, in whole seconds."""

    left_s: int
    granted_s: int


class Watch:
    """A watch of etcd: an asynchronous iterator that survives reconnects.

    It ends at etcd with `close`, or with a `with` block, at the latest when nothing refers to it. The
    traceback of a task that was cancelled does.
    """

    def __init__(self, native: AsyncWatch) -> None:
        """Use `RawClient.watch`."""
        self._native: AsyncWatch | None = native
        #: The oldest revision that etcd has, once compaction has ended the watch.
        self.compacted: int | None = None

    def __aiter__(self) -> Watch:
        """Iterate over the batches."""
        return self

    async def __anext__(self) -> WatchBatch:
        """Wait for changes. A call that was cancelled loses none.

        Raises:
            EtcdEventIndexCleared: if events are missing, by compaction or because etcd has another
                history: read the range, and watch again.
        """
        native = self._native
        if native is None:
            raise StopAsyncIteration
        try:
            revision, events = await native.next()
        except Exception:
            if self._native is None:
                # Closed meanwhile.
                raise StopAsyncIteration from None
            self.compacted = native.compacted
            self.close()
            raise
        native.take()
        made = [WatchEvent(kind, KeyValue(*kv)) for kind, kv, _ in events or ()]
        return WatchBatch(revision, made)

    def close(self) -> None:
        """End the watch, and the iteration."""
        native, self._native = self._native, None
        if native is not None:
            native.close()

    def __enter__(self) -> Watch:
        """Close it at the end of a `with` block."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()


class RawClient:
    """The calls of etcd. Keys and values are bytes; a `range_end` is as etcd has it.

    Operations and comparisons are the tuples of the native module: `("put", key, value, lease)`,
    `("get", key, range_end, limit, keys_only, revision)`, `("delete", key, range_end)`,
    `("txn", comparisons, success, failure)`; `(target, key, sign, operand[, range_end])` with the
    targets "value", "version", "create", "mod" and "lease" and the signs "=", "!=", "<" and ">".

    They raise the errors of `torchetcd.etcd`.
    """

    def __init__(self, client: Client) -> None:
        """Share the connection of a client."""
        self._client = client
        self._made: AsyncClient | None = None

    @property
    def _native(self) -> AsyncClient:
        if self._made is None:
            self._made = _native.AsyncClient(self._client._native)
        return self._made

    async def range(  # noqa: PLR0913 - what etcd takes
        self,
        key: bytes,
        range_end: bytes | None = None,
        *,
        limit: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
        revision: int = 0,
        timeout: float | None = None,
    ) -> RangeResult:
        """Read a key, or all from it up to `range_end`, now or as they were at a revision."""
        found, (kvs, total, more) = await self._native.range(
            key,
            range_end,
            limit=limit,
            keys_only=keys_only,
            count_only=count_only,
            revision=revision,
            timeout_s=timeout,
        )
        return RangeResult(found, [KeyValue(*kv) for kv in kvs], total, more)

    async def pages(
        self, key: bytes, range_end: bytes, *, revision: int = 0
    ) -> AsyncIterator[RangeResult]:
        """Read a range of any size, all of it as it was at one revision."""
        while True:
            page = await self.range(key, range_end, limit=PAGE, revision=revision)
            revision = revision or page.revision
            yield page._replace(revision=revision)
            if not page.more:
                return
            key = page.kvs[-1].key + b"\0"

    async def txn(
        self,
        compares: Sequence[tuple[Any, ...]],
        success: Sequence[tuple[Any, ...]],
        failure: Sequence[tuple[Any, ...]] = (),
        *,
        safely: bool = False,
        timeout: float | None = None,
    ) -> TxnResult:
        """Do one transaction.

        Args:
            compares: What must hold.
            success: What is done then.
            failure: What is done otherwise.
            safely: It takes effect once however often it is sent: send it again if its answer was
                lost, instead of `EtcdAmbiguous`.
            timeout: Seconds; the client's without it.
        """
        return TxnResult(
            *await self._native.txn(
                list(compares), list(success), list(failure), safely=safely, timeout_s=timeout
            )
        )

    def watch(self, key: bytes, range_end: bytes | None = None, start_revision: int = 0) -> Watch:
        """Watch a key, or all from it up to `range_end`, from now on or from a revision on."""
        return Watch(self._native.watch(key, range_end, start_revision))

    async def lease_grant(self, ttl: int, lease_id: int = 0) -> int:
        """Grant a lease and return its id. An existing lease of this id counts as granted."""
        return await self._native.lease_grant(ttl, lease_id)

    async def lease_revoke(self, lease_id: int) -> None:
        """Revoke a lease, which deletes its keys. A missing lease counts as revoked."""
        await self._native.lease_revoke(lease_id)

    async def lease_keep_alive_once(self, lease_id: int) -> bool:
        """Renew a lease and return whether etcd still has it."""
        return await self._native.lease_keep_alive_once(lease_id)

    async def lease_time_to_live(self, lease_id: int) -> LeaseTime | None:
        """Return how long a lease has left; `None` if etcd does not have it."""
        found = await self._native.lease_time_to_live(lease_id)
        return None if found is None else LeaseTime(*found)

    async def version(self, timeout: float | None = None) -> str:
        """Return the version of the member that answers."""
        return await self._native.version(timeout)

    async def status(
        self, endpoint: str | None = None, *, timeout: float | None = None
    ) -> MemberStatus:
        """Return what the member at an endpoint, or any, says of itself."""
        ids, raft, sizes, errors = await self._native.status(endpoint, timeout_s=timeout)
        return MemberStatus(*ids, *raft, *sizes, errors)

    async def members(self, timeout: float | None = None) -> list[Member]:
        """Return the members of the cluster. Only etcd's root user may ask."""
        return [Member(*found) for found in await self._native.members(timeout)]

    async def alarms(self, timeout: float | None = None) -> list[Alarm]:
        """Return the alarms that are on. Only etcd's root user may ask."""
        return [Alarm(*found) for found in await self._native.alarms(timeout)]
