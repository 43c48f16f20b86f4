"""Is a history of concurrent calls one that calls one after the other could have given?

The algorithm of Wing and Gong with Lowe's memoization ("Testing for linearizability", 2017), the one
that Porcupine and Jepsen's Knossos have: take any call that began before the first of the remaining ones
ended, go on with the rest, and come back when that leads nowhere; a set of calls taken together with the
state they lead to is tried once only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from support.faults.models import UNKNOWN, Model, Unknown


@dataclasses.dataclass(frozen=True)
class Call:
    """One operation of a history; times by one clock, `returned` infinite where nothing came back."""

    client: str
    name: str
    key: str
    args: tuple[Any, ...]
    called: float
    returned: float = math.inf
    result: Any = UNKNOWN

    def __str__(self) -> str:
        args = ", ".join(map(repr, self.args))
        result = "?" if isinstance(self.result, Unknown) else repr(self.result)
        return (
            f"{self.called:10.4f} to {self.returned:10.4f}  {self.client}: "
            f"{self.name}({self.key!r}{', ' if args else ''}{args}) -> {result}"
        )


class _Entry:
    """A call's beginning or end, in a list from which calls are taken and put back."""

    __slots__ = ("after", "before", "call", "end", "number")

    def __init__(self, call: Call, number: int) -> None:
        self.call = call
        self.number = number
        #: The entry of the call's end; `None` in that entry itself.
        self.end: _Entry | None = None
        self.before: _Entry | None = None
        self.after: _Entry | None = None

    def take(self) -> None:
        for entry in (self, self.end):
            assert entry is not None
            assert entry.before is not None
            entry.before.after = entry.after
            if entry.after is not None:
                entry.after.before = entry.before

    def put_back(self) -> None:
        for entry in (self.end, self):
            assert entry is not None
            assert entry.before is not None
            entry.before.after = entry
            if entry.after is not None:
                entry.after.before = entry


def _entries(calls: list[Call]) -> _Entry:
    head = _Entry(calls[0], -1)
    ordered: list[tuple[float, int, int, _Entry]] = []
    for number, call in enumerate(calls):
        begin, end = _Entry(call, number), _Entry(call, number)
        begin.end = end
        # Of the same moment a beginning comes first: the calls may have overlapped.
        ordered += [(call.called, 0, number, begin), (call.returned, 1, number, end)]
    last = head
    for *_, entry in sorted(ordered, key=lambda item: item[:3]):
        last.after, entry.before = entry, last
        last = entry
    return head


def linearizable(model: Model, calls: Iterable[Call]) -> bool:
    """Whether the calls, all of one key, have an order that the model allows and time does not forbid."""
    history = list(calls)
    if not history:
        return True
    head = _entries(history)
    # What has no end is not needed in the order: if it took no effect it is left out.
    needed = sum(1 for call in history if call.returned != math.inf)
    state: Any = model.initial
    taken, count = 0, 0
    tried: set[tuple[int, Any]] = set()
    stack: list[tuple[_Entry, Any]] = []
    entry = head.after
    while count < needed:
        if entry is not None and entry.end is not None:
            call = entry.call
            after = model.step(state, call.name, call.args, call.result)
            mark = (taken | 1 << entry.number, after)
            if after is not None and mark not in tried:
                tried.add(mark)
                stack.append((entry, state))
                state, taken = after, mark[0]
                count += call.returned != math.inf
                entry.take()
                entry = head.after
            else:
                entry = entry.after
            continue
        # A call has ended, or all are tried: the last choice was wrong.
        if not stack:
            return False
        entry, state = stack.pop()
        taken &= ~(1 << entry.number)
        count -= entry.call.returned != math.inf
        entry.put_back()
        entry = entry.after
    return True


def shortest_violation(model: Model, calls: Iterable[Call]) -> list[Call]:
    """Return the history up to the first return that no order explains: what to read on a failure."""
    history = sorted(calls, key=lambda call: call.returned)
    few, many = 0, len(history)
    while many - few > 1:
        middle = (few + many) // 2
        if linearizable(model, _until(history, middle)):
            few = middle
        else:
            many = middle
    return sorted(_until(history, many), key=lambda call: call.called)


def _until(history: list[Call], count: int) -> list[Call]:
    """The first calls that returned, and what was under way then."""
    limit = history[count - 1].returned
    under_way = [
        dataclasses.replace(call, returned=math.inf, result=UNKNOWN)
        for call in history[count:]
        if call.called <= limit
    ]
    return history[:count] + under_way
