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
        back = self._decides is False
        said = {
            number: Record(number, kv.value)
            for kv in found.kvs
            if (number := member_of(kv.key)) is not None
        }
        before, self._said = self._said, said
        self._members = {member.id: member for member in members}
        first, self._decides = self._decides is None, True
        told = [News("MajorityBack", now, "the quorum has a majority again")] if back else []
        for member in members:
            entry = self._name(member.id)
            was_there = member.id in before or (first and member.id not in said)
            if member.id in said and not was_there and not first:
                text = f"a member of the quorum runs at {entry}{self._there()}"
                told.append(News("MemberRuns", now, text, entry))
            elif member.id not in said and was_there and not _is_ending(before.get(member.id)):
                host = before[member.id].said.get("host") if member.id in before else None
                where = f"{entry} (host {plain(host)})" if host else entry
                text = f"the member of the quorum at {where} is gone{self._there()}"
                told.append(News("MemberGone", now, text, entry))
        return told

    def _there(self) -> str:
        voters = [member.id for member in self._members.values() if not member.is_learner]
        there = sum(member in self._said for member in voters)
        return f" ({there} of {count(len(voters), 'member')} there, {len(voters) // 2 + 1} needed)"

    def _name(self, member: int) -> str:
        said = self._said.get(member)
        if said is not None and isinstance(entry := said.said.get("entry"), str):
            return plain(entry)
        found = self._members[member]
        return plain(found.name or (found.peer_urls or ["?"])[0])

    async def _lost(self) -> list[News]:
        if self._decides is False:
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


def _is_ending(record: Record | None) -> bool:
    return record is not None and record.is_ending
