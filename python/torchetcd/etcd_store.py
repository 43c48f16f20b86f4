"""A c10d store on etcd v3, with the semantics of torch's TCPStore."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakSet

from torch.distributed import Store

from torchetcd import _native
from torchetcd._store_data import Data, all_as_bytes, as_bytes, as_text
from torchetcd.errors import (
    MemberLostError,
    QueueEmptyError,
    StoreConnectionError,
    StoreError,
    StoreOutcomeUnknownError,
    StoreTimeoutError,
)
from torchetcd.etcd import as_client

if TYPE_CHECKING:
    from torchetcd._torchetcd import Store as NativeStore

__all__ = [
    "Data",
    "EtcdStore",
    "MemberLostError",
    "QueueEmptyError",
    "StoreConnectionError",
    "StoreError",
    "StoreOutcomeUnknownError",
    "StoreTimeoutError",
]

#: So many stores are kept whose makers are gone.
_GIVEN_UP = 8


class _Closed:
    """What a closed store has in place of the native one."""

    def __getattr__(self, name: str) -> NoReturn:
        message = "The store is closed."
        raise RuntimeError(message)


class EtcdStore(Store):
    """A store whose keys lie below a prefix in etcd.

    It works wherever torch takes a store: below a `PrefixStore`, and for process groups.

    >>> from datetime import timedelta
    >>> from torchetcd.etcd import Client
    >>> from torchetcd.etcd_store import EtcdStore
    >>> store = EtcdStore(Client(endpoint), "/docs/store", timeout=timedelta(seconds=30))
    >>> store.set("key", b"value")
    >>> store.get("key")
    b'value'
    >>> store.add("counter", 2)
    2
    >>> store.delete_key("key"), store.delete_key("counter")
    (True, True)
    >>> store.close()

    Every write takes effect exactly once, although connections break. `get`, `multi_get`, `wait`
    and `queue_pop` wait up to `timeout` (a property; `set_timeout` changes it), 300 s unless given,
    and all else up to the `read_timeout` that the client had when the store was made. A `timeout`
    of 0 waits not at all.

    torch's C++ keeps only its own half of a store alive, and does not tell when it lets go of it. So
    that a store handed to it and to nobody else goes on working, a store is kept until `close`, and
    with it its client, whose connection is shared by all stores that were made with it. A store that
    was written to also keeps one lease in etcd, which is renewed every 20 minutes and runs out an
    hour after the process ended. It has no thread or connection of its own. A program that makes
    stores again and again closes them. The store of a round is kept for as long as its handler is, that
    of a process group until the next one, and both for some more: until eight more such have come.

    A store can be used by several threads, and in a forked child, which connects by itself.

    All methods that reach etcd raise:
        StoreConnectionError: if etcd cannot be reached; a `torch.distributed.DistNetworkError`.
        StoreOutcomeUnknownError: if the answer to a write was lost and cannot be found out.
        RuntimeError: if the store or its client is closed.

    Those that wait raise:
        StoreTimeoutError: if the time is over; both a `torch.distributed.DistStoreError` and a
            `LookupError`.
        MemberLostError: if the store is of a round, and a member of it was lost.
    """

    # See "kept until `close`" above.
    _open: set[EtcdStore] = set()  # noqa: RUF012 - mypy knows no ClassVar of the class itself
    #: Stores of rounds whose handlers are gone and of groups that were made again, the newest last.
    _given_up: deque[EtcdStore] = deque()  # noqa: RUF012 - likewise
    #: The store of each purpose that has one after the other.
    _latest: dict[str, EtcdStore] = {}  # noqa: RUF012 - likewise

    #: What the store was made with.
    client: Any
    #: The directory of its keys in etcd, with a "/" at the end.
    prefix: str

    def __init__(
        self, etcd_client: Any, etcd_store_prefix: str, timeout: timedelta | None = None
    ) -> None:
        """Make a store; nothing is sent to etcd yet.

        Args:
            etcd_client: A `torchetcd.etcd.Client`, or a client of python-etcd whose address is
                taken.
            etcd_store_prefix: The directory of the keys in etcd.
            timeout: How long to wait for keys; 300 s without it.

        Raises:
            TypeError: if the client is no client.
        """
        client = as_client(etcd_client)
        native = _native.Store(client._native, as_bytes(etcd_store_prefix))
        self._begin(etcd_client, etcd_store_prefix, native, timeout)

    def _begin(
        self, client: Any, prefix: str, native: NativeStore, timeout: timedelta | None
    ) -> None:
        super().__init__()
        self.client = client
        self.prefix = prefix if prefix.endswith("/") else f"{prefix}/"
        self._native: NativeStore = native
        #: Itself and its clones. C++ makes them without a word, and lets go of them so.
        self._family: WeakSet[EtcdStore] = WeakSet((self,))
        if timeout is not None:
            self.set_timeout(timeout)
        self._open.add(self)

    @classmethod
    def _of_round(
        cls, client: Any, prefix: str, native: NativeStore, timeout: timedelta | None = None
    ) -> EtcdStore:
        """Make a store of a native one, which knows more than a prefix (a lease, a round)."""
        store = cls.__new__(cls)
        store._begin(client, prefix, native, timeout)
        return store

    def close(self) -> None:
        """Let go of the store. Its keys stay in etcd, its client stays open; clones go on."""
        self._native = _Closed()  # type: ignore[assignment]
        self._open.discard(self)

    def _give_up(self) -> None:
        """Keep it no longer than until some others have come whose makers are gone, too.

        It may be in use still, by C++ alone. But a process that makes one handler after the other
        must not keep a connection for each.
        """
        self._given_up.append(self)
        while len(self._given_up) > _GIVEN_UP:
            with contextlib.suppress(IndexError):  # another thread was faster
                self._open.difference_update(self._given_up.popleft()._family)

    def _replaces_the_last(self, purpose: str) -> None:
        """Keep the store that this process had for the same purpose no longer than a given-up one."""
        last = self._latest.get(purpose)
        self._latest[purpose] = self
        if last is not None:
            last._give_up()

    def __enter__(self) -> EtcdStore:
        """Close the store at the end of a `with` block."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Show where its keys are."""
        return f"EtcdStore({self.client!r}, {self.prefix!r})"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: torch's part of a store ends the process when that is tried."""
        message = "A store cannot be pickled: make one where it is needed, or use `clone`."
        raise TypeError(message)

    def _timeout_s(self) -> float:
        timeout: timedelta = self.timeout
        return timeout.total_seconds()

    # torch's C++ finds only Python functions, by these names: see docs/architecture.md.

    def set(self, key: Data, value: Data) -> None:
        """Set a key.

        Raises:
            ValueError: if the value is larger than etcd's requests can be (1.1 MB).
        """
        self._native.set(as_bytes(key), as_bytes(value))

    def get(self, key: Data) -> bytes:
        """Wait for a key and return its value."""
        return self._native.get(as_bytes(key), self._timeout_s())

    def add(self, key: Data, num: int) -> int:
        """Add to a counter, which is 0 while the key does not exist, and return its value then.

        As in TCPStore a counter is a decimal number to the other methods, and wraps at 64 bits.

        Raises:
            ValueError: if the value does not begin with an integer.
        """
        return self._native.add(as_bytes(key), num)

    def compare_set(self, key: Data, expected_value: Data, desired_value: Data) -> bytes:
        """Set a key if it has the expected value, or does not exist and that is empty.

        Returns:
            The key's value after that; the expected one if the key does not exist.
        """
        return self._native.compare_set(
            as_bytes(key), as_bytes(expected_value), as_bytes(desired_value)
        )

    def append(self, key: Data, value: Data) -> None:
        """Append to the value of a key, which is empty while the key does not exist."""
        self._native.append(as_bytes(key), as_bytes(value))

    def multi_get(self, keys: Iterable[Data]) -> list[bytes]:
        """Wait for several keys and return their values, all of the same moment."""
        return self._native.multi_get(all_as_bytes(keys), self._timeout_s())

    def multi_set(self, keys: Iterable[Data], values: Iterable[Data]) -> None:
        """Set several keys: at once if etcd can take them in one request, else in several.

        Raises:
            ValueError: if there are not as many values as keys, or one is too large.
        """
        self._native.multi_set(all_as_bytes(keys), all_as_bytes(values))

    def check(self, keys: Iterable[Data]) -> bool:
        """Return whether all keys exist, or are queues with an entry, without waiting."""
        return self._native.check(all_as_bytes(keys))

    def wait(self, keys: Iterable[Data], override_timeout: timedelta | None = None) -> None:
        """Wait until all keys exist, or are queues with an entry.

        As in TCPStore a key that came and went while others were waited for counts.

        Args:
            keys: What to wait for. Nothing is there at once.
            override_timeout: Used instead of `timeout`.
        """
        timeout: timedelta = self.timeout if override_timeout is None else override_timeout
        self._native.wait(all_as_bytes(keys), timeout.total_seconds())

    def delete_key(self, key: Data) -> bool:
        """Delete a key and return whether it existed."""
        return self._native.delete_key(as_bytes(key))

    def deleteKey(self, key: Data) -> bool:  # noqa: N802 - the name that C++ looks up
        """Delete a key and return whether it existed."""
        return self._native.delete_key(as_bytes(key))

    def num_keys(self) -> int:
        """Return how many keys there are, queues not counted."""
        return self._native.num_keys()

    def getNumKeys(self) -> int:  # noqa: N802 - the name that C++ looks up
        """Return how many keys there are, queues not counted."""
        return self._native.num_keys()

    def list_keys(self) -> list[str]:
        """Return all keys, in no particular order, queues left out."""
        return [as_text(key) for key in self._native.list_keys()]

    def queue_push(self, key: Data, value: Data) -> None:
        """Put a value at the end of a queue. Queues have names of their own, apart from keys.

        Raises:
            ValueError: if the value is larger than etcd's requests can be (1.1 MB).
        """
        self._native.queue_push(as_bytes(key), as_bytes(value))

    def queue_pop(self, key: Data, block: bool = True) -> bytes:
        """Take the first value out of a queue.

        Args:
            key: The name of the queue.
            block: Wait while the queue is empty.

        Raises:
            QueueEmptyError: if it is empty and `block` is false (torch's error of this name).
        """
        return self._native.queue_pop(as_bytes(key), self._timeout_s() if block else None)

    def queue_len(self, key: Data) -> int:
        """Return how many values there are in a queue."""
        return self._native.queue_len(as_bytes(key))

    def has_extended_api(self) -> bool:
        """Return that `append`, `multi_get` and `multi_set` are provided."""
        return True

    def clone(self) -> EtcdStore:
        """Return another store of the same keys, with a timeout of its own; `close` that too.

        That of a subclass has the same attributes; its `__init__` is not called.
        """
        clone = type(self).__new__(type(self))
        clone.__dict__.update(self.__dict__)
        clone._begin(self.client, self.prefix, self._native, self.timeout)
        self._family.add(clone)
        clone._family = self._family
        return clone
