"""What happened between two states of a run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby

from torchetcd._run_model import (
    Allowed,
    Denial,
    Denied,
    Event,
    Final,
    Gone,
    Joined,
    LastCall,
    Left,
    Lost,
    Node,
    Opened,
    Reopened,
    Run,
    RunClosed,
    Waiting,
)
from torchetcd.aio._raw_client import WatchEvent
from torchetcd.aio._records import Control
from torchetcd.aio._run_view import RunView


def by_revision(events: Iterable[WatchEvent]) -> Iterator[tuple[int, list[WatchEvent]]]:
    """Group changes by the transaction that made them. A watch never splits one."""
    for revision, group in groupby(events, key=lambda event: event.kv.mod_revision):
        yield revision, list(group)


class Follower:
    """Applies changes to a view and tells what they mean.

    Without `with_runs` the events have the run as it was at first: who goes through a long history
    does not need it after each of them.
    """

    def __init__(self, view: RunView, *, with_runs: bool = True) -> None:
        self._view = view
        self._same_run = None if with_runs else view.run(time.time())

    def follow(self, revision: int, changes: list[WatchEvent]) -> list[Event]:
        """Apply what one revision has changed, and return what happened."""
        view = self._view
        control, denied, there = view.control, dict(view.denied), bool(view.present)
        nodes, last_call = view.placed().alive(), self._last_call()
        view.apply(changes, revision)
        at = time.time()
        told = _Told(revision, at, self._same_run or view.run(at))
        if there and not view.present:
            return [told.gone()]
        events: list[Event] = []
        changed = control != view.control
        if changed and view.control is not None:
            events += told.control(control, view.control)
        events += told.nodes(
            nodes, view.placed().alive(), view.touched, changed, _goes_on(control, view.control)
        )
        begun = self._last_call()
        if not changed and begun != last_call:
            events.append(told.last_call(begun))
        events += told.denials(denied, view.denied)
        return events

    def _last_call(self) -> bool:
        control = self._view.control
        return control is not None and control.round in self._view.last_calls


def _goes_on(before: Control | None, after: Control | None) -> bool:
    """Whether a complete round was there and still is."""
    if before is None or after is None:
        return False
    same = (before.round, before.attempt) == (after.round, after.attempt)
    return before.state == after.state == "final" and same


class _Told:
    """Makes the events of one revision."""

    def __init__(self, revision: int, at: float, run: Run) -> None:
        self._revision, self._at, self._run = revision, at, run

    def gone(self) -> Event:
        return Gone(revision=self._revision, at=self._at, run=self._run)

    def last_call(self, begun: bool) -> Event:
        return LastCall(revision=self._revision, at=self._at, run=self._run, begun=begun)

    def control(self, before: Control | None, after: Control) -> Iterator[Event]:
        revision, at, run = self._revision, self._at, self._run
        if after.state == "closed":
            by, reason = after.by or "?", after.reason or "?"
            yield RunClosed(
                revision=revision, at=at, run=run, by=by, reason=reason,
                result=after.result, text=after.ending,
            )  # fmt: skip
        elif after.state == "final":
            yield Final(
                revision=revision, at=at, run=run, round=after.round, world=after.world or 0
            )
        elif before is not None and before.state == "closed":
            yield Reopened(revision=revision, at=at, run=run, round=after.round, why=after.why)
        elif before is None or before.round != after.round:
            yield Opened(revision=revision, at=at, run=run, round=after.round, why=after.why)

    def nodes(
        self,
        before: dict[str, Node],
        after: dict[str, Node],
        touched: set[str],
        control_changed: bool,
        goes_on: bool,
    ) -> Iterator[Event]:
        revision, at, run = self._revision, self._at, self._run
        # With the control record the place of every node can change.
        looked_at = after.keys() if control_changed else [n for n in after if n in touched]
        for name in looked_at:
            node, state = after[name], before[name].state if name in before else None
            if node.state == "joined" and state != "joined":
                yield Joined(revision=revision, at=at, run=run, node=node)
            elif node.state in {"waiting", "spare"} and state not in {"waiting", "spare"}:
                yield Waiting(revision=revision, at=at, run=run, node=node)
        if control_changed:
            # Keys of the round before are deleted then, and their nodes may be there.
            return
        for name in sorted(touched - after.keys()):
            node_before = before.get(name)
            if node_before is None:
                continue
            kind = Lost if node_before.state == "member" and goes_on else Left
            gone = replace(node_before, alive=False)
            yield kind(revision=revision, at=at, run=run, node=gone)

    def denials(self, before: dict[str, Denial], after: dict[str, Denial]) -> Iterator[Event]:
        revision, at, run = self._revision, self._at, self._run
        for segment, denial in after.items():
            if before.get(segment) != denial:
                name, by, reason = denial.name, denial.by, denial.reason
                yield Denied(revision=revision, at=at, run=run, name=name, by=by, reason=reason)
        for segment in before.keys() - after.keys():
            yield Allowed(revision=revision, at=at, run=run, name=before[segment].name)
