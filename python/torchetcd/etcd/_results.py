"""What `torchetcd.etcd.Client` answers with: `EtcdResult`, in python-etcd's shape, and its making.

etcd v3 has no directories. Here a directory is a prefix with keys below it, or one that was made
explicitly: then there is a *marker*, an empty value under the directory's path and a "/".
"""
# ruff: noqa: N803 - the camel case is python-etcd's

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

#: key, value, create revision, mod revision, version, lease: the native module's tuple.
KeyValue: TypeAlias = tuple[bytes, bytes, int, int, int, int]

# Anybody's key may have any number of slashes: what lies deeper is listed in the deepest directory.
_DEEPEST = 100

TtlSource: TypeAlias = Callable[[], "int | None"]


class EtcdResult:
    """A key or directory as a call saw it.

    `modifiedIndex` and `createdIndex` are etcd's mod and create revisions, `etcd_index` is the
    revision of the answer. `ttl` and `expiration` are asked for when they are first read, because
    v3 keeps them apart from the key; they are `None` for a key without a lease. `lease` is that
    lease.
    """

    def __init__(
        self,
        action: str | None = None,
        node: Mapping[str, Any] | None = None,
        prevNode: Mapping[str, Any] | None = None,
        **_ignored: object,
    ) -> None:
        """Take nodes as the JSON answers of the v2 API had them."""
        node = node or {}
        self.action = action
        self.key: str | None = node.get("key")
        # Not only a string: `update` writes whatever a caller puts here.
        self.value: Any = node.get("value")
        self.modifiedIndex: int | None = node.get("modifiedIndex")
        self.createdIndex: int | None = node.get("createdIndex")
        self.newKey: bool = node.get("newKey", False)
        self.dir: bool = node.get("dir", False)
        self.lease: int = 0
        self.etcd_index: int | None = None
        # v3 tells a raft term, but no raft index.
        self.raft_index: int | None = None
        self._ttl: int | None = node.get("ttl")
        self._ttl_source: TtlSource | None = None
        self._expiration: str | None = node.get("expiration")
        self._children = [EtcdResult(None, child) for child in node.get("nodes", ())]
        self._prev_node: EtcdResult | None = EtcdResult(None, prevNode) if prevNode else None

    @property
    def ttl(self) -> int | None:
        """Seconds until the key expires; `None` when it does not, or when it has."""
        if self._ttl_source is not None:
            self._ttl = self._ttl_source()
            self._ttl_source = None
        return self._ttl

    @ttl.setter
    def ttl(self, seconds: int | None) -> None:
        self._ttl, self._ttl_source = seconds, None

    @property
    def expiration(self) -> str | None:
        """When the key expires, by this machine's clock, in ISO 8601."""
        if self._expiration is None and self.ttl is not None:
            now = datetime.datetime.now(datetime.timezone.utc)
            self._expiration = (now + datetime.timedelta(seconds=self.ttl)).isoformat()
        return self._expiration

    @property
    def prev_node(self) -> EtcdResult | None:
        """What was there before a write or delete."""
        return self._prev_node

    def get_subtree(self, leaves_only: bool = False) -> Iterator[EtcdResult]:
        """Yield this result and all below it; a directory without children counts as a leaf."""
        left = [self]
        while left:
            result = left.pop()
            if not result._children or not leaves_only:
                yield result
            left += reversed(result._children)

    @property
    def leaves(self) -> Iterator[EtcdResult]:
        """All values (and empty directories) below this one."""
        return self.get_subtree(leaves_only=True)

    @property
    def children(self) -> Iterator[EtcdResult]:
        """The same as `leaves`, as in python-etcd."""
        return self.leaves

    def __eq__(self, other: object) -> bool:
        """Compare what is stored; the time left to live is not, it changes by itself."""
        if type(self) is not type(other):
            return NotImplemented
        return self._stored() == other._stored()

    # Mutable and compared by content.
    __hash__ = None  # type: ignore[assignment]

    def _stored(self) -> tuple[object, ...]:
        return (self.key, self.value, self.dir, self.createdIndex, self.modifiedIndex, self.newKey)

    def __repr__(self) -> str:
        """Show what is known without asking etcd."""
        names = ("action", "key", "value", "dir", "createdIndex", "modifiedIndex", "newKey")
        shown = [f"{name}={getattr(self, name)!r}" for name in names]
        if self._children:
            shown.append(f"children={len(self._children)}")
        return f"EtcdResult({', '.join(shown)})"


def encode(value: object) -> bytes:
    """Give the bytes of a value as python-etcd sent them: what is no string is written as one."""
    if isinstance(value, bytes):
        return value
    return str(value).encode("utf-8", "surrogateescape")


def decode(value: bytes) -> str:
    """Make a string of any bytes, such that `encode` returns the same bytes."""
    return value.decode("utf-8", "surrogateescape")


class ResultFactory:
    """Makes the results of one answer of etcd."""

    def __init__(self, index: int, ttl_of: Callable[[int], int | None]) -> None:
        """Take the answer's revision and the way to ask for the time left to a lease."""
        self._index = index
        self._ttl_of = ttl_of
        self._asked: dict[int, int | None] = {}

    def leaf(self, kv: KeyValue, action: str | None = None) -> EtcdResult:
        """Make a result of one key."""
        key, value, *_ = kv
        return self._fill(EtcdResult(action, {"key": decode(key), "value": decode(value)}), kv)

    def directory(
        self,
        base: bytes,
        kvs: Sequence[KeyValue],
        action: str | None = None,
        depth: int = 0,
        level: int = 0,
    ) -> EtcdResult:
        """Make a directory of the keys that start with `base`, and `depth` levels of children."""
        result = EtcdResult(action, {"key": decode(base[:-1]) or "/", "dir": True})
        marker = next((kv for kv in kvs if is_marker(kv) and kv[0] == base), None)
        if marker is not None:
            self._fill(result, marker)
        elif kvs:
            # Nobody made it: it is as old as its oldest key.
            result.createdIndex = result.modifiedIndex = min(kv[2] for kv in kvs)
        result.etcd_index = self._index
        if depth > 0:
            result._children = list(self._list(base, kvs, depth - 1, level))
        return result

    def _list(
        self, base: bytes, kvs: Iterable[KeyValue], depth: int, level: int
    ) -> Iterator[EtcdResult]:
        flat = level == _DEEPEST
        below: dict[bytes, list[KeyValue]] = {}
        nodes: list[tuple[bytes, EtcdResult]] = []
        for kv in kvs:
            key = kv[0]
            if is_marker(kv) and key == base:
                continue
            slash = key.find(b"/", len(base))
            if flat or slash < 0 or (slash == len(key) - 1 and not is_marker(kv)):
                nodes.append((key, self.leaf(kv)))
            else:
                below.setdefault(key[: slash + 1], []).append(kv)
        nodes += [
            (sub, self.directory(sub, inner, None, depth, level + 1))
            for sub, inner in below.items()
        ]
        return (node for _, node in sorted(nodes, key=lambda pair: pair[0]))

    def _fill(self, result: EtcdResult, kv: KeyValue) -> EtcdResult:
        _, _, created, modified, _, lease = kv
        result.createdIndex, result.modifiedIndex = created, modified
        result.etcd_index = self._index
        result.lease = lease
        if lease:
            result._ttl_source = lambda: self._ttl(lease)
        return result

    def _ttl(self, lease: int) -> int | None:
        # The keys of a directory often hang on one lease.
        if lease not in self._asked:
            self._asked[lease] = self._ttl_of(lease)
        return self._asked[lease]


def is_marker(kv: KeyValue) -> bool:
    """Whether this key only says that there is a directory.

    A key that ends in "/" and has a value is an ordinary one that another program wrote.
    """
    return kv[0].endswith(b"/") and not kv[1]
