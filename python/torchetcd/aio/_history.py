"""What happened in a run, from etcd's own history as far as that is not compacted."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

from torchetcd._closed_run import how_it_ended
from torchetcd._phrasing import count
from torchetcd._run_model import (
    Allowed,
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
    RoundRecord,
    RunClosed,
    Timeline,
    TimelineEvent,
    Waiting,
)
from torchetcd.aio._changes import Follower, by_revision
from torchetcd.aio._raw_client import KeyValue, RawClient
from torchetcd.aio._reading import ask_last_call, not_found, read_view
from torchetcd.aio._run_keys import RunKeys
from torchetcd.aio._run_view import RunView
from torchetcd.diagnosis import denied_as
from torchetcd.etcd import EtcdConnectionFailed, EtcdEventIndexCleared

#: etcd sends a watch that begins in the past what there is ten times a second, a thousand revisions at
#: a time, and does not say when that was all. So long nothing must come once all is there that can be seen.
_SETTLED_S = 0.5


async def timeline(raw: RawClient, keys: RunKeys, limit: float) -> Timeline:
    """Return what happened in a run.

    Raises:
        RunNotFoundError: if neither etcd nor its history has anything of it.
        EtcdConnectionFailed: if etcd does not send its history for as long as `limit`.
    """
    present = await read_view(raw, keys)
    await ask_last_call(raw, present)
    while True:
        try:
            replayed = await _replay(raw, keys, present, limit)
            break
        except EtcdEventIndexCleared:
            # Compacted once more while it was being read, or etcd has another history.
            present = await read_view(raw, keys)
    events = _before(replayed, present) + replayed.events
    if not events and not present.present:
        raise not_found(keys)
    complete = replayed.first == 1 or not replayed.base
    problem = None
    if not complete:
        problem = (
            f"What etcd knew before revision {replayed.first} is compacted away: of the time before only "
            "completed rounds are known."
        )
    return Timeline(
        id=keys.run_id,
        prefix=keys.prefix,
        complete_from=replayed.first,
        complete=complete,
        events=_placed_in_time(events),
        run=present.run(time.time()) if present.present else None,
        problem=problem,
    )


@dataclass
class _Replayed:
    #: The first revision that etcd's history has.
    first: int
    #: The keys right before it.
    base: dict[bytes, int]
    events: list[TimelineEvent]


async def _replay(raw: RawClient, keys: RunKeys, present: RunView, limit: float) -> _Replayed:
    first = 1
    while True:
        watch = raw.watch(keys.start, keys.end, first)
        try:
            view = await _as_of(raw, keys, first - 1)
            base = dict(view.present)
            events: list[TimelineEvent] = []
            follower = Follower(view, with_runs=False)
            while view.revision < present.revision:
                settled = view.present == present.present
                try:
                    batch = await asyncio.wait_for(anext(watch), _SETTLED_S if settled else limit)
                except asyncio.TimeoutError:
                    if settled:
                        break
                    message = f"etcd has not sent its history within {limit:g} s."
                    raise EtcdConnectionFailed(message) from None
                for revision, changes in by_revision(batch.events):
                    if revision > present.revision:
                        view.revision = revision
                        break
                    told = follower.follow(revision, changes)
                    events += [_told(event, view) for event in told]
            return _Replayed(first, base, events)
        except EtcdEventIndexCleared:
            if watch.compacted is None:
                raise
            # The state at that revision can still be read, and what came after it is all there.
            first = watch.compacted + 1
        finally:
            watch.close()


async def _as_of(raw: RawClient, keys: RunKeys, revision: int) -> RunView:
    view = RunView(keys)
    if revision > 0:
        kvs: list[KeyValue] = []
        async for page in raw.pages(keys.start, keys.end, revision=revision):
            kvs += page.kvs
        view.reset(kvs, revision)
    return view


def _told(event: Event, view: RunView) -> TimelineEvent:  # noqa: PLR0911 - one for each kind
    control = view.control
    number = control.round if control else None
    at = control.at if control else None
    by = control.by if control else None
    made = _Maker(event.revision, number)
    match event:
        case Opened(round=opened, why=why):
            return made.event("opened", at, f"round {opened} was opened{_by(by)}{_because(why)}")
        case Reopened(round=opened, why=why):
            return made.event("reopened", at, f"round {opened} was {why or 'reopened'}")
        case Final(round=completed, world=world):
            return made.event(
                "final", at, f"round {completed} was complete with {count(world, 'node')}"
            )
        case RunClosed(by=closer, reason=reason, text=text):
            why = how_it_ended(text, reason)
            return made.event("closed", at, f"the run was closed by {closer}: {why}")
        case Joined(node=node):
            return made.event("joined", node.since, f"{_name(node)} joined", node)
        case Waiting(node=node):
            return made.event("waiting", node.since, f"{_name(node)} had to wait", node)
        case Left(node=node):
            return made.event("left", None, f"{_name(node)} was gone", node)
        case Lost(node=node):
            return made.event("lost", None, f"{_name(node)}, rank {node.rank}, was lost", node)
        case LastCall(begun=begun):
            what = "began" if begun else "was withdrawn"
            return made.event("last call", None, f"the last call {what}")
        case Denied(name=name, by=denier, reason=reason):
            denied = {denial.name: denial for denial in view.denied.values()}
            known = denied.get(name)
            who, when = (denied_as(known), known.at) if known is not None else (name, None)
            return made.event("denied", when, f"{who} was denied by {denier}: {reason}")
        case Allowed(name=name):
            return made.event("allowed", None, f"{name} was allowed again")
        case Gone():
            return made.event("gone", None, "nothing of the run was left")
    raise AssertionError(event)


class _Maker:
    def __init__(self, revision: int | None, number: int | None) -> None:
        self._revision, self._round = revision, number

    def event(
        self, kind: str, at: float | None, text: str, node: Node | None = None
    ) -> TimelineEvent:
        return TimelineEvent(
            kind=kind,  # type: ignore[arg-type]
            revision=self._revision,
            at=at,
            earliest=at,
            latest=at,
            round=self._round,
            node=node,
            text=text,
        )


def _name(node: Node) -> str:
    return f"{node.host} (pid {node.pid})"


def _by(name: str | None) -> str:
    return f" by {name}" if name else ""


def _because(why: str | None) -> str:
    return f": {why}" if why else ""


def _before(replayed: _Replayed, present: RunView) -> list[TimelineEvent]:
    """Return what is known of the rounds that were completed before etcd's history begins."""
    events = []
    for past in present.run(0.0).rounds:
        key = f"{present.keys.rdzv}history/{past.round:016x}".encode()
        revision = present.present.get(key, 0)
        if revision < replayed.first:
            events += _of_record(past, revision)
    return events


def _of_record(past: RoundRecord, revision: int) -> list[TimelineEvent]:
    opened = f"round {past.round} was opened{_by(past.opened_by)}{_because(past.why)}"
    final = f"round {past.round} was complete with {count(past.world, 'node')}"
    return [
        _Maker(None, past.round).event("opened", past.opened_at, opened),
        _Maker(revision, past.round).event("final", past.completed_at, final),
    ]


def _placed_in_time(events: list[TimelineEvent]) -> tuple[TimelineEvent, ...]:
    """Say between which times those lie that nobody has noted the time of."""
    placed = []
    earliest: float | None = None
    for event in events:
        if event.at is not None:
            # Clocks of several hosts are not in step; the order of the events is etcd's.
            earliest = event.at if earliest is None else max(earliest, event.at)
            placed.append(event)
        else:
            placed.append(replace(event, earliest=earliest))
    latest: float | None = None
    for index in range(len(placed) - 1, -1, -1):
        event = placed[index]
        if event.at is not None:
            latest = event.at if latest is None else min(latest, event.at)
        else:
            until = latest
            if until is not None and event.earliest is not None:
                until = max(until, event.earliest)
            placed[index] = replace(event, latest=until)
    return tuple(placed)
