"""The keys of etcd v3 with the operations of python-etcd: read, write, delete and watch.

Each operation is one transaction, so that its conditions and its effect are one step.
`torchetcd.etcd.Client` is what users see of this.
"""
# ruff: noqa: N803, PLR0913 - names and signatures are python-etcd's

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torchetcd import _native
from torchetcd.etcd._exceptions import (
    EtcdAlreadyExist,
    EtcdAmbiguous,
    EtcdCompareFailed,
    EtcdDirNotEmpty,
    EtcdException,
    EtcdKeyNotFound,
    EtcdNotDir,
    EtcdNotFile,
    EtcdRootReadOnly,
    EtcdValueError,
    EtcdWatchTimedOut,
    v2_error,
)
from torchetcd.etcd._results import EtcdResult, KeyValue, ResultFactory, decode, encode, is_marker
from torchetcd.etcd._transactions import (
    Conditions,
    Part,
    get_below,
    get_key,
    nothing_below,
    something_below,
    split_path,
)

if TYPE_CHECKING:
    from torchetcd._torchetcd import Client as NativeClient

# "No timeout" for calls that need a number.
_FOREVER = 10.0 * 365 * 86400
# So many leases are remembered for a second use. A forgotten one is left to expire by itself.
_REMEMBERED_LEASES = 4096


def _positive(ttl: float | None) -> float:
    try:
        seconds = float(ttl)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds < _FOREVER:
        message = f"The ttl must be a positive number of seconds, not {ttl!r}."
        raise EtcdValueError(message)
    return seconds


class KeyOperations:
    """What `Client` does with keys. The subclass provides the native client and the timeout."""

    def __init__(self) -> None:
        """Prepare the memory of leases that were granted here, each for one key."""
        # The TTL asked for by lease: etcd rounds small ones up, so it cannot tell.
        self._key_leases: OrderedDict[int, float] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the leases: a copy grants its own."""
        return self.__dict__ | {"_key_leases": OrderedDict()}

    @property
    def _native(self) -> NativeClient:
        raise NotImplementedError

    @property
    def read_timeout(self) -> float:
        """Seconds that a call may take; 0 for no limit."""
        raise NotImplementedError

    # --- reading ---------------------------------------------------------------------------------

    def read(
        self,
        key: str,
        *,
        recursive: bool | None = False,
        wait: bool = False,
        waitIndex: int | None = None,
        sorted: bool = False,
        quorum: bool = True,
        timeout: float | None = None,
    ) -> EtcdResult:
        """Read a key, or list a directory; with `wait`, wait for its next change instead.

        Every read is linearizable and every listing sorted, whatever `quorum` and `sorted` say.

        Raises:
            EtcdKeyNotFound: if there is neither the key nor one below it.
        """
        if wait:
            return self.watch(key, index=waitIndex, timeout=timeout, recursive=recursive)
        path, base = split_path(key)
        listed = key.endswith("/")
        if not path:
            compares, success, failure = [], [get_below(base)], []
        elif listed:
            compares, success, failure = [something_below(base)], [get_below(base)], [get_key(path)]
        else:
            compares = [("version", path, ">", 0)]
            success, failure = [get_key(path)], [get_below(base)]
        _, revision, replies = self._txn(compares, success, failure, timeout)
        kvs: list[KeyValue] = replies[0][0]
        factory = self._factory(revision)
        if not kvs and path:
            raise v2_error(EtcdKeyNotFound, decode(path), revision)
        exact = next((kv for kv in kvs if kv[0] == path or (listed and kv[0] == base)), None)
        if exact is not None and not is_marker(exact):
            return factory.leaf(exact, "get")
        return factory.directory(base, kvs, "get", depth=sys.maxsize if recursive else 1)

    # --- writing ---------------------------------------------------------------------------------

    def write(
        self,
        key: str,
        value: object,
        ttl: float | None = None,
        dir: bool = False,
        append: bool = False,
        *,
        prevValue: object = None,
        prevIndex: int | None = None,
        prevExist: bool | None = None,
        refresh: bool = False,
        lease: int = 0,
    ) -> EtcdResult:
        """Write a key, make a directory (`dir`), or add a key to a directory (`append`).

        Args:
            key: The key; a "/" is put before it when it has none.
            value: Written as `str(value)`, bytes as they are.
            ttl: Seconds until the key expires. Without it the key stays, also when it had a TTL.
            dir: Make a directory, which has no value.
            append: Write under a new name below `key` that sorts after those given before.
            prevValue: Only write if the key has this value.
            prevIndex: Only write if this is the key's `modifiedIndex`.
            prevExist: Only write if the key exists (`True`) or does not (`False`).
            refresh: Only give the key a new `ttl`, see `refresh`.
            lease: Attach the key to this lease of etcd instead of one of its own.

        Raises:
            EtcdAlreadyExist: if it exists and `prevExist` is `False`.
            EtcdKeyNotFound: if it does not exist and a condition needs it.
            EtcdCompareFailed: if `prevValue` or `prevIndex` differ.
            EtcdNotFile: if it is a directory.
            EtcdNotDir: if `append` is to a key that has a value.
            EtcdAmbiguous: if the answer was lost.
        """
        if refresh:
            if value is not None:
                message = "A refresh cannot change the value."
                raise EtcdException(message)
            return self.refresh(key, ttl, prevValue=prevValue, prevIndex=prevIndex)
        path, base = split_path(key)
        if path.endswith(b"/"):
            message = f"The key {key!r} ends in more than one '/'."
            raise EtcdValueError(message)
        if dir and value:
            message = "Cannot create a directory with a value."
            raise EtcdException(message)
        if not path and not append:
            raise v2_error(EtcdRootReadOnly, "/")
        conditions = Conditions.of(prevValue, prevIndex, prevExist)
        data = b"" if value is None else encode(value)
        with self._lease(ttl, lease) as granted:
            if append:
                return self._append(path, data, dir, granted)
            if dir:
                return self._make_directory(path, conditions, granted)
            compares = [*conditions.compares(path), nothing_below(base)]
            put = ("put", path, data, granted)
            done, revision, replies = self._txn(
                compares, [get_key(path), put], [get_key(path), get_below(base, 1)]
            )
            if not done:
                raise self._why_not(path, conditions, revision, replies)
            return self._written(conditions.action, put, revision, replies[0][0])

    def refresh(
        self, key: str, ttl: float | None, *, prevValue: object = None, prevIndex: int | None = None
    ) -> EtcdResult:
        """Let a key live `ttl` seconds from now, with its value.

        With the TTL that the key was given before this makes no change that a watch would see. With
        another one the key moves to a new lease, which is a write: its `modifiedIndex` changes.

        Raises:
            EtcdKeyNotFound: if it does not exist.
            EtcdCompareFailed: if `prevValue` or `prevIndex` differ.
        """
        seconds = _positive(ttl)
        conditions = Conditions.of(prevValue, prevIndex, True)
        path, base = split_path(key)
        while True:
            _, revision, replies = self._txn([], [get_key(path), get_key(base)], [])
            found: list[KeyValue] = [*replies[0][0], *filter(is_marker, replies[1][0])]
            if not found:
                raise v2_error(EtcdKeyNotFound, decode(path), revision)
            kv = found[0]
            if mismatch := conditions.mismatch(kv):
                raise v2_error(EtcdCompareFailed, mismatch, revision)
            if kv[5] and self._keep_alive(kv[5], seconds):
                return self._result(kv, "update", revision)
            with self._lease(seconds, 0) as granted:
                put = ("put", kv[0], kv[1], granted)
                done, revision, _ = self._txn([("mod", kv[0], "=", kv[3])], [put], [])
                if done:
                    return self._written("update", put, revision, [kv])
                # Written in between: look again. The lease that was not used goes.
                self._forget(granted)

    # --- deleting --------------------------------------------------------------------------------

    def delete(
        self,
        key: str,
        recursive: bool | None = None,
        dir: bool | None = None,
        *,
        prevValue: object = None,
        prevIndex: int | None = None,
    ) -> EtcdResult:
        """Delete a key, an empty directory (`dir`) or a directory and all below it (`recursive`).

        Raises:
            EtcdKeyNotFound: if it does not exist.
            EtcdCompareFailed: if `prevValue` or `prevIndex` differ.
            EtcdNotFile: if it is a directory and neither `dir` nor `recursive` was given.
            EtcdDirNotEmpty: if it is a directory with keys and `recursive` was not given.
        """
        path, base = split_path(key)
        if not path:
            raise v2_error(EtcdRootReadOnly, "/")
        conditions = Conditions.of(prevValue, prevIndex)
        compares = conditions.compares(path)
        success = [get_key(path), ("delete", path, None)]
        if recursive:
            success += [get_below(base, 1), ("delete", base, _native.prefix_end(base))]
        elif not compares:
            compares = [("version", path, ">", 0)]
        done, revision, replies = self._txn(compares, success, [get_key(path), get_below(base, 2)])
        if done:
            deleted: list[KeyValue] = replies[0][0]
            if not deleted and recursive:
                deleted = replies[2][0]
            if not deleted:
                raise v2_error(EtcdKeyNotFound, decode(path), revision)
            return self._deleted(path, conditions, revision, deleted[0])
        below: list[KeyValue] = replies[1][0]
        if not dir or conditions.swaps or replies[0][0] or not below:
            raise self._why_not(path, conditions, revision, replies)
        return self._delete_empty(path, base, revision, below)

    def _delete_empty(
        self, path: bytes, base: bytes, revision: int, below: list[KeyValue]
    ) -> EtcdResult:
        done = len(below) == 1 and is_marker(below[0]) and below[0][0] == base
        if done:
            # Still alone, that is without a key after it.
            alone = [
                ("mod", base, "=", below[0][3]),
                ("create", base + b"\0", "=", 0, _native.prefix_end(base)),
            ]
            done, revision, _ = self._txn(alone, [("delete", base, None)], [])
        if not done:
            raise v2_error(EtcdDirNotEmpty, decode(path), revision)
        return self._deleted(path, Conditions(), revision, below[0])

    # --- watching --------------------------------------------------------------------------------

    def watch(
        self,
        key: str,
        index: int | None = None,
        timeout: float | None = None,
        recursive: bool | None = None,
    ) -> EtcdResult:
        """Wait for the first change of a key at or after `index`, or from now on.

        Args:
            key: The key. The changes of a directory itself are not seen, those below it are.
            index: The first revision of interest; `None` (or 0) for those that are to come.
            timeout: Seconds to wait; `None` for `read_timeout`, 0 for no limit.
            recursive: Watch all keys below it, too.

        Raises:
            EtcdWatchTimedOut: if there was none in time.
            EtcdEventIndexCleared: if `index` is so old that etcd has forgotten what was since.
        """
        return self._changes(key, index, timeout, recursive)[0]

    def eternal_watch(
        self, key: str, index: int | None = None, recursive: bool | None = None
    ) -> Iterator[EtcdResult]:
        """Yield all changes of a key at or after `index`, or from the first `next()` on."""
        while True:
            changes = self._changes(key, index, 0, recursive)
            index = (changes[-1].modifiedIndex or 0) + 1
            yield from changes

    def _changes(
        self, key: str, index: int | None, timeout: float | None, recursive: bool | None
    ) -> list[EtcdResult]:
        seconds = self._seconds(timeout)
        deadline = time.monotonic() + seconds
        path, base = split_path(key)
        begin, end = path or base, None
        if recursive:
            # Both the key itself and what is below it; siblings between the two are sorted out.
            begin, end = (base if key.endswith("/") else path or base), _native.prefix_end(base)
        if not index:
            # Pinned down here, so that no change is missed however often the watch is renewed.
            index = self._txn([], [get_key(begin, limit=1)], [], timeout=timeout)[1] + 1
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            seen = self._native.watch(begin, end, index, left)
            if seen is None:
                message = f"Nothing happened to {decode(path) or '/'} within {seconds:g} s."
                raise EtcdWatchTimedOut(message)
            revision, events = seen
            changes = [
                self._change(kind, kv, before, revision)
                for kind, kv, before in events
                if kv[0] == path or kv[0].startswith(base)
            ]
            if changes:
                return changes
            index = events[-1][1][3] + 1

    def _change(
        self, kind: str, kv: KeyValue, before: KeyValue | None, revision: int
    ) -> EtcdResult:
        action = "set" if kind == "put" else "delete"
        result = self._result(kv, action, revision)
        result.newKey = kv[4] == 1
        if kind != "put":
            result.value = None
            result.createdIndex = before[2] if before else None
        if before:
            result._prev_node = self._result(before, None, revision)
        return result

    # --- helpers ---------------------------------------------------------------------------------

    def _seconds(self, timeout: float | None = None) -> float:
        seconds = self.read_timeout if timeout is None else timeout
        return min(seconds, _FOREVER) if seconds > 0 else _FOREVER

    def _txn(
        self,
        compares: list[Part],
        success: list[Part],
        failure: list[Part],
        timeout: float | None = None,
    ) -> tuple[bool, int, list[Any]]:
        return self._native.txn(compares, success, failure, self._seconds(timeout))

    def _factory(self, revision: int) -> ResultFactory:
        return ResultFactory(revision, self._ttl_of)

    def _result(self, kv: KeyValue, action: str | None, revision: int) -> EtcdResult:
        factory = self._factory(revision)
        if is_marker(kv):
            return factory.directory(kv[0], [kv], action)
        return factory.leaf(kv, action)

    def _why_not(
        self, path: bytes, conditions: Conditions, revision: int, replies: list[Any]
    ) -> EtcdException:
        """Say which condition failed, from what was at the path and below it."""
        (found, *_), (below, *_) = replies
        if (found or below) and conditions.exist is False:
            return v2_error(EtcdAlreadyExist, decode(path), revision)
        if found and (mismatch := conditions.mismatch(found[0])):
            return v2_error(EtcdCompareFailed, mismatch, revision)
        if below:
            return v2_error(EtcdNotFile, decode(path), revision)
        return v2_error(EtcdKeyNotFound, decode(path), revision)

    def _written(self, action: str, put: Part, revision: int, before: list[KeyValue]) -> EtcdResult:
        _, key, value, lease = put
        # What was there is another key where a directory took the place of a value.
        same = bool(before) and before[0][0] == key
        created, version = (before[0][2], before[0][4]) if same else (revision, 0)
        result = self._result((key, value, created, revision, version + 1, lease), action, revision)
        result.newKey = not same
        if before:
            result._prev_node = self._result(before[0], None, revision)
            if before[0][5] != lease:
                self._forget(before[0][5])
        return result

    def _deleted(
        self, path: bytes, conditions: Conditions, revision: int, before: KeyValue
    ) -> EtcdResult:
        action = "compareAndDelete" if conditions.swaps else "delete"
        result = EtcdResult(action, {"key": decode(path), "modifiedIndex": revision})
        result.createdIndex, result.etcd_index = before[2], revision
        result.dir = before[0] != path
        factory = self._factory(revision)
        is_dir = result.dir
        previous = factory.directory(path + b"/", [before]) if is_dir else factory.leaf(before)
        result._prev_node = previous
        self._forget(before[5])
        return result

    def _make_directory(self, path: bytes, conditions: Conditions, lease: int) -> EtcdResult:
        base = path + b"/"
        put = ("put", base, b"", lease)
        look = [get_key(path), get_below(base, 1)]
        if conditions.swaps:
            raise v2_error(EtcdNotFile, decode(path))
        if conditions.exist:
            compares, success = [something_below(base)], [get_key(base), put]
        else:
            # As in v2, a directory takes the place of a value unless `prevExist` forbids it.
            compares = [nothing_below(base), *conditions.compares(path)]
            success = [get_key(path), put, *([] if compares[1:] else [("delete", path, None)])]
        done, revision, replies = self._txn(compares, success, look)
        if done:
            return self._written(conditions.action, put, revision, replies[0][0])
        if conditions.exist and replies[0][0]:
            raise v2_error(EtcdNotDir, decode(path), revision)
        raise self._why_not(path, conditions, revision, replies)

    def _append(self, path: bytes, data: bytes, dir: bool, lease: int) -> EtcdResult:
        absent: list[Any] = [("version", path, "=", 0)] if path else []
        key = path or b"/"
        _, revision, (reply,) = self._txn([], [get_key(key, limit=1)], [])
        while True:
            if path and reply[0]:
                raise v2_error(EtcdNotDir, decode(path), revision)
            # Revisions only grow, and the comparison refuses a name that does not sort last: so
            # names are in the order of their writes. Twenty digits hold any revision.
            name = path + b"/%020d" % (revision + 1)
            last = ("create", name, "=", 0, path + b"/1")
            put = ("put", name + (b"/" if dir else b""), data, lease)
            done, revision, (reply, *_) = self._txn([*absent, last], [put], [get_key(key, limit=1)])
            if done:
                return self._written("create", put, revision, [])

    # --- leases ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _lease(self, ttl: float | None, given: int) -> Iterator[int]:
        """Provide the lease for a write, and revoke it when the write did not happen."""
        if given or ttl is None:
            # Whoever names a lease may hang other keys on it: it is not ours to revoke any more.
            self._key_leases.pop(given, None)
            yield given
            return
        seconds = _positive(ttl)
        lease = self._native.lease_grant(math.ceil(seconds))
        self._key_leases[lease] = seconds
        if len(self._key_leases) > _REMEMBERED_LEASES:
            self._key_leases.popitem(last=False)
        try:
            yield lease
        except EtcdAmbiguous:
            # The key may be there and hang on it.
            raise
        except EtcdException:
            self._forget(lease)
            raise

    def _forget(self, lease: int) -> None:
        """Revoke a lease that no key uses any more, if it was granted here for one key."""
        if self._key_leases.pop(lease, None) is not None:
            with contextlib.suppress(EtcdException):
                # When it fails, the lease expires by itself.
                self._native.lease_revoke(lease)

    def _keep_alive(self, lease: int, ttl: float) -> bool:
        """Renew a lease if that gives the key `ttl` seconds."""
        asked = self._key_leases.get(lease)
        if asked is None:
            asked = self._native.lease_time_to_live(lease)[1]
        return asked == ttl and bool(self._native.lease_keep_alive_once(lease))

    def _ttl_of(self, lease: int) -> int | None:
        left, _ = self._native.lease_time_to_live(lease)
        # etcd rounds down: an existing key has a second to live.
        return None if left < 0 else max(left, 1)
