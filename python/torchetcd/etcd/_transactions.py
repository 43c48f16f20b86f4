"""Paths, conditions and the parts of etcd transactions that `_key_operations.py` is built from."""

from __future__ import annotations

from typing import Any, TypeAlias

from torchetcd import _native
from torchetcd.etcd._exceptions import EtcdValueError
from torchetcd.etcd._results import KeyValue, decode, encode

#: A comparison or an operation, as the native module takes it.
Part: TypeAlias = tuple[Any, ...]


class Conditions:
    """What must hold for a write or delete."""

    def __init__(
        self, value: bytes | None = None, index: int | None = None, exist: bool | None = None
    ) -> None:
        self.value = value
        self.index = index
        self.exist = exist

    @classmethod
    def of(cls, value: object, index: object, exist: bool | None = None) -> Conditions:
        """Take `prevValue`, `prevIndex` and `prevExist` as callers give them."""
        try:
            number = None if index is None else int(index)  # type: ignore[call-overload]
        except (TypeError, ValueError, OverflowError) as exc:
            message = f"prevIndex must be an integer, not {index!r}."
            raise EtcdValueError(message) from exc
        return cls(None if value is None else encode(value), number, exist)

    @property
    def swaps(self) -> bool:
        """Whether the content of the key matters."""
        return self.value is not None or self.index is not None

    @property
    def action(self) -> str:
        """Name a write under these conditions."""
        if self.swaps:
            return "compareAndSwap"
        return {None: "set", True: "update", False: "create"}[self.exist]

    def compares(self, key: bytes) -> list[Part]:
        """Express the conditions as comparisons."""
        compares: list[Part] = []
        if self.value is not None:
            compares.append(("value", key, "=", self.value))
        if self.index is not None:
            compares.append(("mod", key, "=", self.index))
        if self.exist is False:
            compares.append(("version", key, "=", 0))
        elif self.exist or self.swaps:
            compares.append(("version", key, ">", 0))
        return compares

    def mismatch(self, kv: KeyValue) -> str | None:
        """Say what of a key that exists is not as demanded."""
        if self.value is not None and self.value != kv[1]:
            return f"[{decode(self.value)} != {decode(kv[1])}]"
        if self.index is not None and self.index != kv[3]:
            return f"[{self.index} != {kv[3]}]"
        return None


def split_path(key: str) -> tuple[bytes, bytes]:
    """Split a key into its path and the beginning of all keys below it.

    The path of the root is empty. One "/" at the end is taken off, other ones are left alone: the
    keys of a store are base64, in which "/" is a letter.
    """
    if not isinstance(key, str):
        message = f"A key must be a string, not {type(key).__name__}."
        raise TypeError(message)
    path = encode(key if key.startswith("/") else f"/{key}").removesuffix(b"/")
    return path, path + b"/"


def get_key(key: bytes, end: bytes | None = None, limit: int = 0) -> Part:
    """Read a key or range; all of it when `limit` is 0."""
    return ("get", key, end, limit, False, 0)


def get_below(base: bytes, limit: int = 0) -> Part:
    """Read what starts with `base`."""
    return get_key(base, _native.prefix_end(base), limit)


def nothing_below(base: bytes) -> Part:
    """Compare: no key starts with `base`."""
    # A range without keys compares like a key that does not exist.
    return ("create", base, "=", 0, _native.prefix_end(base))


def something_below(base: bytes) -> Part:
    """Compare: some key starts with `base`."""
    return ("version", base, ">", 0, _native.prefix_end(base))
