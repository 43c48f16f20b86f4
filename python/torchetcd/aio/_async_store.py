"""The c10d store for asyncio."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

from torchetcd import _native
from torchetcd._store_data import Data, all_as_bytes, as_bytes, as_text
from torchetcd.aio._client import Client

if TYPE_CHECKING:
    from torchetcd._torchetcd import AsyncStore

#: torch's default for stores.
_TIMEOUT = timedelta(seconds=300)


class Store:
    """The keys of a `torchetcd.etcd_store.EtcdStore`, for asyncio.

    What one of them writes the other reads. Every operation means the same and raises the same
    errors; those of `torchetcd.etcd_store` import torch when the first one is raised. A call that is
    cancelled may have taken effect, if it writes.

    >>> import asyncio
    >>> from torchetcd.aio import Client, Store
    >>> async def use(endpoints: str) -> bytes:
    ...     async with Client(endpoints) as client:
    ...         store = Store(client, "/docs/aio-store")
    ...         await store.set("key", b"value")
    ...         value = await store.get("key")
    ...         await store.delete_key("key")
    ...         return value
    >>> asyncio.run(use(endpoint))
    b'value'

    Args:
        client: Where etcd is.
        prefix: The directory of the keys in etcd.
        timeout: How long `get`, `multi_get`, `wait` and `queue_pop` wait for keys.
    """

    def __init__(self, client: Client, prefix: str, timeout: timedelta | float = _TIMEOUT) -> None:
        """Make a store; nothing is sent to etcd yet."""
        self.client = client
        self.prefix = prefix if prefix.endswith("/") else f"{prefix}/"
        self._timeout_s = _seconds(timeout)
        self._made: AsyncStore | None = None

    @property
    def _native(self) -> AsyncStore:
        if self._made is None:
            native = _native.Store(self.client._etcd._native, as_bytes(self.prefix))
            self._made = _native.AsyncStore(native)
        return self._made

    def __repr__(self) -> str:
        """Show where its keys are."""
        return f"Store({self.client!r}, {self.prefix!r})"

    async def set(self, key: Data, value: Data) -> None:
        """Set a key."""
        await self._native.set(as_bytes(key), as_bytes(value))

    async def get(self, key: Data) -> bytes:
        """Wait for a key and return its value."""
        return await self._native.get(as_bytes(key), self._timeout_s)

    async def add(self, key: Data, num: int) -> int:
        """Add to a counter, which is 0 while the key does not exist, and return its value then."""
        return await self._native.add(as_bytes(key), num)

    async def compare_set(self, key: Data, expected_value: Data, desired_value: Data) -> bytes:
        """Set a key if it has the expected value, or does not exist and that is empty."""
        return await self._native.compare_set(
            as_bytes(key), as_bytes(expected_value), as_bytes(desired_value)
        )

    async def append(self, key: Data, value: Data) -> None:
        """Append to the value of a key, which is empty while the key does not exist."""
        await self._native.append(as_bytes(key), as_bytes(value))

    async def multi_get(self, keys: Iterable[Data]) -> list[bytes]:
        """Wait for several keys and return their values, all of the same moment."""
        return await self._native.multi_get(all_as_bytes(keys), self._timeout_s)

    async def multi_set(self, keys: Iterable[Data], values: Iterable[Data]) -> None:
        """Set several keys: at once if etcd can take them in one request, else in several."""
        await self._native.multi_set(all_as_bytes(keys), all_as_bytes(values))

    async def check(self, keys: Iterable[Data]) -> bool:
        """Return whether all keys exist, or are queues with an entry, without waiting."""
        return await self._native.check(all_as_bytes(keys))

    async def wait(self, keys: Iterable[Data], timeout: timedelta | float | None = None) -> None:
        """Wait until all keys exist, or are queues with an entry."""
        limit = self._timeout_s if timeout is None else _seconds(timeout)
        await self._native.wait(all_as_bytes(keys), limit)

    async def delete_key(self, key: Data) -> bool:
        """Delete a key and return whether it existed."""
        return await self._native.delete_key(as_bytes(key))

    async def num_keys(self) -> int:
        """Return how many keys there are, queues not counted."""
        return await self._native.num_keys()

    async def list_keys(self) -> list[str]:
        """Return all keys, in no particular order, queues left out."""
        return [as_text(key) for key in await self._native.list_keys()]

    async def queue_push(self, key: Data, value: Data) -> None:
        """Put a value at the end of a queue."""
        await self._native.queue_push(as_bytes(key), as_bytes(value))

    async def queue_pop(self, key: Data, block: bool = True) -> bytes:
        """Take the first value out of a queue, and wait for one unless `block` is false."""
        return await self._native.queue_pop(as_bytes(key), self._timeout_s if block else None)

    async def queue_len(self, key: Data) -> int:
        """Return how many values there are in a queue."""
        return await self._native.queue_len(as_bytes(key))


def _seconds(timeout: timedelta | float) -> float:
    return timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
