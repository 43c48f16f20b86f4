"""Keys and values of a store as callers give them: text or bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

#: A key or a value. Text is taken as UTF-8.
Data: TypeAlias = "str | bytes | bytearray | memoryview"


def as_bytes(data: Data) -> bytes:
    """Return what etcd gets.

    Raises:
        TypeError: if it is neither text nor bytes.
    """
    if isinstance(data, str):
        # See `as_text`: keys may be no UTF-8.
        return data.encode("utf-8", "surrogateescape")
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    message = f"Keys and values must be str or bytes, not {type(data).__name__}."
    raise TypeError(message)


def as_text(data: bytes) -> str:
    """Return a key as `as_bytes` takes it."""
    return data.decode("utf-8", "surrogateescape")


def all_as_bytes(data: Iterable[Data]) -> list[bytes]:
    """Return what etcd gets of several.

    Raises:
        TypeError: if one is neither text nor bytes, or if it is only one.
    """
    if isinstance(data, (str, bytes)):
        message = "Several keys or values are needed in a list, not one string."
        raise TypeError(message)
    return [as_bytes(item) for item in data]
