"""A quorum as one who is no agent of its job sees it: its members, its entries, and what it lacks."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torchetcd._phrasing import count, listed, plain, some
from torchetcd._quorum.asking import Answer, Who, ask_all
from torchetcd._quorum.clients import Access
from torchetcd._quorum.entries import Entries, Entry
from torchetcd._quorum.etcd_keys import Keys, Record
from torchetcd.etcd import EtcdException

if TYPE_CHECKING:
    from torchetcd._torchetcd import Client, Status
    from torchetcd._torchetcd import Member as ListedMember

#: How long a majority may take to answer, and how long one member may.
_MAJORITY_S, _MEMBER_S = 3.0, 2.0
#: So many entries are asked. There may be thousands, and those that the job names first are what counts.
_ASKED = 64
_AT_ONCE = 16
#: Enough for the members of any quorum: one who is no agent does not know which entries have them.
_ASKED_FOR_LACK = 8
#: So many members are named at most.
_NAMED = 6


@dataclass(frozen=True)
class Member:
    """A member of the list of etcd."""

    #: As the job names it; the URL of a member that belongs to no entry.
    entry: str
    id: int
    #: `runs`; `unreachable`: its agent says that it runs, and it does not answer here; `gone`; `replaced`: it
    #: is gone, and an agent is about to take its place.
    state: str
    #: For people: what is wrong there.
    text: str = ""
    #: Whose agent says that it runs.
    host: str | None = None
    pid: int | None = None
    is_leader: bool = False
    is_learner: bool = False
    version: str | None = None
    #: Entries of the log that it is behind the leader.
    lag: int | None = None
    db_size: int | None = None
    #: For how long an agent has seen it gone, where one says so.
    gone_s: float | None = None

    @property
    def is_there(self) -> bool:
        """Whether it has a part in decisions, as far as one can see."""
        return self.state in ("runs", "unreachable")


@dataclass(frozen=True)
class Quorum:
    """All that was seen."""

    entries: Entries
    #: Whether a majority answered.
    decides: bool
    #: As a majority lists them, or else any member that answers; none where nobody does.
    members: tuple[Member, ...]
    #: Entries that run no member, as far as they were asked.
    others: tuple[Answer, ...]
    #: When the entries had answered.
    at: float
    #: The agent that changes the list of members just now.
    changer: str | None = None

    @property
    def voters(self) -> list[Member]:
        """The members that decide."""
        return [member for member in self.members if not member.is_learner]

    @property
    def reached(self) -> list[str]:
        """Where members answer, and other etcds; nowhere without a majority, as each would only say so."""
        if not self.decides:
            return []
        of_members = {member.entry for member in self.members if member.state == "runs"}
        of_members |= {answer.entry.name for answer in self.others if answer.who is Who.ETCD}
        scheme = self.entries.scheme
        return [each.client_url(scheme) for each in self.entries.all if each.name in of_members]

    @property
    def majority(self) -> int:
        """How many of them make a majority."""
        return (len(self.voters) or self.entries.size) // 2 + 1


def look_at(
    native: Client, entries: Entries, tls: ssl.SSLContext | None, most: int = _ASKED
) -> Quorum:
    """Ask a quorum, its members, and its entries. It takes some seconds at most.

    Args:
        native: A client of the quorum.
        entries: Its entries.
        tls: What a client uses, if there is a secret.
        most: How many entries without a member are asked.
    """
    of_majority = _list_of_majority(native)
    answers = ask_all(_to_ask(entries, of_majority or [], most), tls)
    return _look_at(native, entries, answers, of_majority)


def _list_of_majority(native: Client) -> list[ListedMember] | None:
    try:
        return native.member_list(_MAJORITY_S)
    except EtcdException:
        return None


def _look_at(
    native: Client,
    entries: Entries,
    answers: Sequence[Answer],
    of_majority: list[ListedMember] | None,
) -> Quorum:
    decides = of_majority is not None
    at = time.time()
    listed_ = _any_list(native, entries, answers) if of_majority is None else of_majority
    records: list[Record] = []
    changer = None
    if decides:
        with contextlib.suppress(EtcdException):
            _, records, changer = Keys(native, _MAJORITY_S).read()
    told = _statuses(native, entries, listed_, answers)
    members = _Members(entries, answers, records, changes=changer is not None).of(listed_, told)
    taken = {member.entry for member in members}
    others = tuple(answer for answer in answers if answer.entry.name not in taken)
    return Quorum(entries, decides, members, others, at, changer)


def _to_ask(entries: Entries, members: Iterable[ListedMember], most: int) -> list[Entry]:
    """Return the entries of members, and the first of the others."""
    of_members = [entry for member in members if (entry := _entry(entries, member)) is not None]
    others = [entry for entry in entries.all[: most + len(of_members)] if entry not in of_members]
    return of_members + others[:most]


def _entry(entries: Entries, member: ListedMember) -> Entry | None:
    _, name, peer_urls, client_urls, _ = member
    for entry in entries.all:
        if entry.client_url(entries.scheme) in client_urls or entry.name == name:
            return entry
    # One that was never started has no name. This is a guess: the job may have another port for members.
    return next(filter(None, map(entries.of_peer_url, peer_urls)), None)


def _any_list(native: Client, entries: Entries, answers: Iterable[Answer]) -> list[ListedMember]:
    """Ask the members one by one, as a list needs no majority: it may be an old one."""
    for answer in answers:
        if answer.who is Who.ETCD:
            at = answer.entry.client_url(entries.scheme)
            with contextlib.suppress(EtcdException):
                return native.member_list(_MEMBER_S, linearizable=False, endpoint=at)
    return []


class _Members:
    """Puts together what etcd, the agents and the members themselves say of the members."""

    def __init__(
        self, entries: Entries, answers: Iterable[Answer], records: list[Record], *, changes: bool
    ) -> None:
        self._entries, self._changes = entries, changes
        self._at_entry = {answer.entry.name: answer for answer in answers}
        self._said = {record.member: record.said for record in records}
        self._gone_at: dict[int, float] = {}
        for said in (*self._said.values(), *(answer.says for answer in self._at_entry.values())):
            self._take_gone(said.get("gone"))

    def _take_gone(self, gone: object) -> None:
        """Note since when agents have seen members gone; the first one has noticed it first."""
        for number, at in gone.items() if isinstance(gone, dict) else ():
            with contextlib.suppress(ValueError, TypeError):
                member, since = int(number, 16), float(at)
                self._gone_at[member] = min(since, self._gone_at.get(member, since))

    def of(
        self, members: Sequence[ListedMember], told: Sequence[Status | None]
    ) -> tuple[Member, ...]:
        """Return them in the order of their entries."""
        reached = [status for status in told if status is not None]
        ahead = max((status[1][1] for status in reached), default=0)
        leader = next((status[0][4] for status in reached if status[0][4]), 0)
        made = [
            self._one(member, status, ahead, leader)
            for member, status in zip(members, told, strict=True)
        ]
        places = {entry.name: place for place, entry in enumerate(self._entries.all)}
        return tuple(sorted(made, key=lambda member: places.get(member.entry, len(places))))

    def _one(self, member: ListedMember, status: Status | None, ahead: int, leader: int) -> Member:
        number, name, peer_urls, _, is_learner = member
        entry = _entry(self._entries, member)
        where = entry.name if entry is not None else name or (peer_urls or ["?"])[0]
        said = self._said.get(number, {})
        host, pid = said.get("host"), said.get("pid")
        made = Member(
            where,
            number,
            "runs" if status is not None else "unreachable" if said else "gone",
            _why(self._at_entry.get(where)) if status is None else "",
            host if isinstance(host, str) else None,
            pid if isinstance(pid, int) else None,
            is_leader=number == leader,
            is_learner=is_learner,
        )
        if status is not None:
            (version, *_), (_, index, _), (size, *_), _ = status
            return replace(made, version=version, lag=max(ahead - index, 0), db_size=size)
        if made.state == "gone":
            at = self._gone_at.get(number)
            return replace(
                made,
                state="replaced" if self._changes else "gone",
                gone_s=None if at is None else max(time.time() - at, 0.0),
            )
        return made


def _statuses(
    native: Client,
    entries: Entries,
    members: Sequence[ListedMember],
    answers: Iterable[Answer],
) -> list[Status | None]:
    if not members:
        return []
    # Where no etcd is, a client would try for the whole time.
    without = {
        answer.entry.client_url(entries.scheme) for answer in answers if answer.who is not Who.ETCD
    }
    with ThreadPoolExecutor(min(len(members), _AT_ONCE), "torchetcd-status") as pool:
        return list(pool.map(lambda member: _status(native, entries, member, without), members))


def _status(
    native: Client, entries: Entries, member: ListedMember, without: Container[str]
) -> Status | None:
    """Return what a member says of itself; `None` if it does not answer, or another one does."""
    number, _, _, client_urls, _ = member
    entry = _entry(entries, member)
    urls = client_urls or ([entry.client_url(entries.scheme)] if entry is not None else [])
    for url in urls:
        if url in without:
            continue
        with contextlib.suppress(EtcdException):
            status = native.status(url, _MEMBER_S)
            if status[0][2] == number:
                return status
    return None


def _why(answer: Answer | None) -> str:
    if answer is None:
        return ""
    if answer.who is Who.AGENT:
        return "its agent runs, its member does not"
    return answer.text or "it does not say that it is this member"


# ------------------------------------------------------------------ no majority


def without_majority(
    native: Client,
    entries: Entries,
    tls: ssl.SSLContext | None,
    asked: Sequence[Entry] = (),
    judge: Callable[[Answer], Answer] = lambda answer: answer,
) -> Quorum | None:
    """Look at a quorum that does not answer; `None` if it does.

    Args:
        native: A client of the quorum.
        entries: Its entries.
        tls: What a client uses, if there is a secret.
        asked: Where its members are, if that is known.
        judge: Tells answers of this quorum from those of another one.
    """
    if _list_of_majority(native) is not None:
        return None
    answers = ask_all(asked or entries.all[:_ASKED_FOR_LACK], tls)
    return _look_at(native, entries, [judge(answer) for answer in answers], None)


def gone_of(quorum: Quorum) -> list[str]:
    """Name the members that are gone, each with what is at its entry."""
    if quorum.voters:
        return [
            f"{member.entry} ({member.text})" if member.text else member.entry
            for member in quorum.voters
            if not member.is_there
        ]
    others = [answer for answer in quorum.others if answer.who is not Who.ETCD]
    return [f"{answer.entry.name} ({_why(answer)})" for answer in others]


def lack(access: Access) -> str:
    """Say which members are gone, in a sentence, if that is why a quorum does not answer; else nothing."""
    with access.client(_MAJORITY_S) as client:
        seen = without_majority(client._native, access.entries, access.tls())
    return lack_of(seen) if seen is not None else ""


def lack_of(quorum: Quorum) -> str:
    """Say what a quorum lacks that does not answer."""
    if quorum.decides:
        return ""
    endpoint, voters, gone = quorum.entries.typed, quorum.voters, gone_of(quorum)
    if not voters:
        there = any(answer.who is Who.AGENT for answer in quorum.others)
        does = "runs" if there else "answers"
        return f"No member of the quorum of {endpoint} {does}: {plain(_named(gone))}."
    if len(voters) - len(gone) >= quorum.majority:
        return f"The members of the quorum of {endpoint} answer, but have no leader yet."
    return (
        f"The quorum of {endpoint} has no majority, {quorum.majority} of {count(len(voters), 'member')}, "
        f"because {plain(_named(gone))} {'is' if len(gone) == 1 else 'are'} gone, so no new round can form "
        "while training goes on."
    )


def _named(parts: Sequence[str]) -> str:
    return listed(some(list(parts), _NAMED))
