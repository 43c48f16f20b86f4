"""What happens to the quorum inside a job, for whoever follows a run."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Literal, TypeAlias

from torchetcd._phrasing import count, listed, plain
from torchetcd._quorum.entries import Entries
from torchetcd._quorum.etcd_keys import END, PREFIX, Record, member_of
from torchetcd.aio import Event, RawClient
from torchetcd.aio import Member as ListedMember
from torchetcd.cli.target import Target
from torchetcd.etcd import EtcdException

Kind: TypeAlias = Literal["MemberRuns", "MemberGone", "MajorityLost", "MajorityBack"]

#: That a majority is lost is no event of etcd, which falls silent then. So it is asked.
_ASK_S, _PATIENCE_S = 5.0, 3.0
_AGAIN_S = 1.0


@dataclasses.dataclass(frozen=True)
class News:
    """One thing that happened to a quorum."""

    kind: Kind
    at: float
    text: str
    #: Of the member, where it is about one.
    entry: str | None = None
    #: Whether nothing is wrong after it.
    is_whole: bool = False


async def with_news(
    events: AsyncGenerator[Event, None], target: Target
) -> AsyncGenerator[Event | News, None]:
    """Give the events of a run, and between them what happens to the quorum of its job, if it has one."""
    if target.quorum is None:
        async for event in events:
            yield event
        return
    told: asyncio.Queue[Event | News | None] = asyncio.Queue()

    async def forward(source: AsyncIterator[Event] | AsyncIterator[News]) -> None:
        async for event in source:
            told.put_nowait(event)

    async with target.client() as client:
        follower = Follower(client.raw, target.quorum.entries)
        tasks = [asyncio.create_task(forward(each)) for each in (events, follower.news())]
        for task in tasks:
            task.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (each := await told.get()) is not None:
                yield each
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Follower:
    """Follows one quorum."""

    def __init__(self, raw: RawClient, entries: Entries) -> None:
        """Take a client of it, and its entries."""
        self._raw, self._entries = raw, entries
        self._members: dict[int, ListedMember] = {}
        self._said: dict[int, Record] = {}
        self._there: dict[int, bool] = {}
        #: Whether all of this is known; `None` before the first answer.
        self._decides: bool | None = None

    async def news(self) -> AsyncGenerator[News, None]:
        """Tell what happens, for ever; at first, which members are gone already."""
        changed = asyncio.Event()
        watching = asyncio.create_task(self._watch(changed))
        try:
            while True:
                changed.clear()
                for each in await self._look():
                    yield each
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(changed.wait(), _ASK_S)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self, changed: asyncio.Event) -> None:
        while True:
            with contextlib.suppress(EtcdException), self._raw.watch(PREFIX, END) as watch:
                async for _ in watch:
                    changed.set()
            await asyncio.sleep(_AGAIN_S)

    async def _look(self) -> list[News]:
        try:
            members = await self._raw.members(_PATIENCE_S)
            found = await self._raw.range(PREFIX, END, timeout=_PATIENCE_S)
        except EtcdException:
            return await self._lost()
        now = time.time()
        back, first = self._decides is False, self._decides is None
        before, ending = self._there, {n for n, record in self._said.items() if record.is_ending}
        self._decides, self._members = True, {member.id: member for member in members}
        self._said = {
            number: Record(number, kv.value)
            for kv in found.kvs
            if (number := member_of(kv.key)) is not None
        }
        # An agent may be slow, or have begun just now: what counts is whether its member answers.
        unsaid = [member for member in members if member.id not in self._said]
        silent = await asyncio.gather(*map(self._is_silent, unsaid))
        gone = {member.id for member, is_silent in zip(unsaid, silent, strict=True) if is_silent}
        self._there = {member.id: member.id not in gone for member in members}
        told = []
        if back:
            told.append(self._news("MajorityBack", now, "the quorum has a majority again"))
        for member in self._members:
            entry, was_there = self._name(member), before.get(member, first)
            if self._there[member] and not was_there:
                text = f"a member of the quorum runs at {entry}{self._how_many()}"
                told.append(self._news("MemberRuns", now, text, entry))
            elif not self._there[member] and was_there and member not in ending:
                has_come = bool(self._members[member].client_urls)
                what = "is gone" if has_come else "has not come yet"
                text = f"the member of the quorum at {entry} {what}{self._how_many()}"
                told.append(self._news("MemberGone", now, text, entry))
        return told

    def _news(self, kind: Kind, at: float, text: str, entry: str | None = None) -> News:
        return News(kind, at, text, entry, all(self._there.values()))

    def _how_many(self) -> str:
        voters = [member.id for member in self._members.values() if not member.is_learner]
        there = sum(self._there[member] for member in voters)
        return f" ({there} of {count(len(voters), 'member')} there, {len(voters) // 2 + 1} needed)"

    def _name(self, member: int) -> str:
        said = self._said.get(member)
        if said is not None and isinstance(entry := said.said.get("entry"), str):
            return plain(entry)
        found = self._members[member]
        return plain(found.name or (found.peer_urls or ["?"])[0])

    async def _lost(self) -> list[News]:
        if not self._decides:
            # At the start that nobody answers is an error, which whoever reads the run raises.
            return []
        self._decides = False
        silent = await asyncio.gather(*map(self._is_silent, self._members.values()))
        gone = [
            self._name(member)
            for member, is_silent in zip(self._members, silent, strict=True)
            if is_silent
        ]
        why = f", because {listed(gone)} {'is' if len(gone) == 1 else 'are'} gone" if gone else ""
        text = f"the quorum has no majority{why}, so no new round can form while training goes on"
        return [News("MajorityLost", time.time(), text)]

    async def _is_silent(self, member: ListedMember) -> bool:
        for url in member.client_urls:
            with contextlib.suppress(EtcdException):
                if (await self._raw.status(url, timeout=_PATIENCE_S)).member_id == member.id:
                    return False
        return True
