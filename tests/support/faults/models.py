"""What one key of a store is, as a state machine: the specification that histories are checked against.

It is TCPStore's meaning of the operations (torch `csrc/distributed/c10d/TCPStoreBackend.cpp`), not ours.
A model says which results an operation may have in a state, and the state after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Unknown:
    """The result of a call that did not come back in order: it may have taken effect."""


UNKNOWN = Unknown()


class Model(Protocol):
    """A sequential object."""

    initial: Hashable

    def step(self, state: Any, name: str, args: tuple[Any, ...], result: Any) -> Any:
        """Return the state after the operation, or `None` if it cannot have this result here."""


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


class Value:
    """A key with a value: `set`, `get`, `check`, `add`, `append`, `compare_set`, `delete_key`."""

    initial: Hashable = ABSENT

    def step(self, state: Any, name: str, args: tuple[Any, ...], result: Any) -> Any:
        after, told = self._effect(state, name, args)
        return after if isinstance(result, Unknown) or result == told else None

    @staticmethod
    def _effect(state: Any, name: str, args: tuple[Any, ...]) -> tuple[Any, Any]:
        value = b"" if state is ABSENT else state
        match name:
            case "set":
                return args[0], None
            case "get":  # waits until there is one
                return state, (object() if state is ABSENT else state)
            case "check":
                return state, state is not ABSENT
            case "add":
                total = (int(value) if value else 0) + args[0]
                return str(total).encode(), total
            case "append":
                return value + args[0], None
            case "compare_set":
                expected, desired = args
                if state is ABSENT:
                    return (state, expected) if expected else (desired, desired)
                return (desired, desired) if state == expected else (state, state)
            case "delete_key":
                return ABSENT, state is not ABSENT
        raise AssertionError(name)


#: What `queue_pop` without waiting says of a queue that is empty.
EMPTY = "empty"


class Queue:
    """A queue: `queue_push`, `queue_pop` without waiting, `queue_len`."""

    initial: Hashable = ()

    def step(self, state: Any, name: str, args: tuple[Any, ...], result: Any) -> Any:
        match name:
            case "queue_push":
                after, told = (*state, args[0]), None
            case "queue_pop":
                after, told = (state[1:], state[0]) if state else (state, EMPTY)
            case "queue_len":
                after, told = state, len(state)
            case _:
                raise AssertionError(name)
        return after if isinstance(result, Unknown) or result == told else None
