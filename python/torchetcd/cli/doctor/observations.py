"""What `torchetcd doctor` saw, and what it says about it."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

from torchetcd._phrasing import plain
from torchetcd._quorum.seen import Quorum

Level: TypeAlias = Literal["ok", "note", "warning", "problem"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    level: Level
    #: What it is about, such as `latency`.
    topic: str
    text: str
    #: What to do about it; empty where nothing needs doing.
    advice: str = ""


@dataclasses.dataclass(frozen=True)
class Status:
    """What a member says of itself."""

    version: str
    cluster: int
    member: int
    leader: int
    is_learner: bool
    lag: int
    db_size: int
    db_size_in_use: int
    #: 0 where it is not known.
    db_quota: int
    errors: tuple[str, ...]
    #: How many leaders the cluster has had, at least.
    term: int = 0


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """What was seen at one endpoint. What could not be looked at is `None` or an error's text."""

    uri: str
    error: str | None = None
    #: It answers, but not this user: unknown, wrong password, or none where one is needed.
    refused: str | None = None
    status: Status | None = None
    status_error: str | None = None
    reads_ms: tuple[float, ...] = ()
    writes_ms: tuple[float, ...] = ()
    read_error: str | None = None
    write_error: str | None = None
    read_denied: bool = False
    write_denied: bool = False
    #: How many leaders the member has seen since it runs, and since when it runs, by the clock here.
    leaders_seen: int | None = None
    running_since: float | None = None
    #: Its term when all had been looked at.
    last_term: int | None = None
    #: When the certificate of the server ends; `None` over http or where it could not be seen.
    certificate_end: float | None = None
    certificate_error: str | None = None


@dataclasses.dataclass(frozen=True)
class Observations:
    """All that was seen."""

    endpoints: tuple[Endpoint, ...]
    #: Where reading and writing was tried.
    path: str
    now: float
    user: str | None = None
    client_certificate: str | None = None
    client_certificate_end: float | None = None
    client_certificate_error: str | None = None
    alarms: tuple[str, ...] | None = None
    alarms_error: str | None = None
    members: tuple[tuple[str, bool], ...] | None = None
    members_error: str | None = None
    runs: int | None = None
    runs_error: str | None = None
    unreadable: tuple[str, ...] = ()
    #: Runs with keys that no lease ends.
    unleased: tuple[str, ...] = ()
    #: How far ahead of this clock the newest record is, and whose it is.
    ahead_s: float | None = None
    ahead_of: str = ""
    #: The quorum inside a job; `None` where etcd is elsewhere.
    quorum: Quorum | None = None


def not_shown(topic: str, what: str, error: str) -> Finding:
    """Say that something could not be looked at."""
    why = f": {clause(error)}" if error else ""
    return Finding("note", topic, f"Not looked at: {what}{why}.")


def clause(error: str | None) -> str:
    """Make a clause of an error's text."""
    text = " ".join(plain(error or "").split()).rstrip(".")
    return text if len(text) <= 300 else f"{text[:300]}..."
