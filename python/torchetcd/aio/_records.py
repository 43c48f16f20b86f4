"""The values of a run's keys, whoever wrote them.

Anybody with rights to the run's prefix can write anything there, and versions differ in what they
write. A value that is not a record gives `None`; a field that is missing or cannot be right is `None`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from torchetcd._run_model import RESULTS, Denial, Node, NodeState, Result, RoundRecord

#: The newest version of records that is understood.
VERSION = 1
_LONGEST_TEXT = 200
_LAST_NUMBER = 2**63 - 1
#: The year 5138: what is later is no time in seconds.
_LAST_TIME = 1e11
_NODE_DIGITS = 16


def read_record(value: bytes) -> dict[str, Any] | str:
    """Return the record that a value holds, or in one clause why it holds none.

    One rule for all records: without a version it is of version 1, and one of a newer version is not
    looked into.
    """
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return "is no JSON object"
    version = number_field(found, "v") if "v" in found else 1
    if version is None:
        return "has no version that there can be"
    if version > VERSION:
        return f"is newer: this run speaks version {version}, this torchetcd {VERSION}: update torchetcd"
    return found


def text_field(record: dict[str, Any], name: str) -> str | None:
    """Return a field for people, in one line that is not too long; `None` for an empty one."""
    found = record.get(name)
    if not isinstance(found, str) or not found:
        return None
    return one_line(found)


def one_line(given: str) -> str:
    """Return text of others in one line that is not too long."""
    shown = "".join(sign if sign.isprintable() else "\ufffd" for sign in given[:_LONGEST_TEXT])
    return shown + "\u2026" if len(given) > _LONGEST_TEXT else shown


def number_field(record: dict[str, Any], name: str) -> int | None:
    """Return a count or a number, which is never negative."""
    found = record.get(name)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= _LAST_NUMBER:
        return None
    return found


def positive_field(record: dict[str, Any], name: str) -> int | None:
    """Return a number of which 0 says that it is not known."""
    return number_field(record, name) or None


def time_field(record: dict[str, Any], name: str) -> float | None:
    """Return a Unix time; 0 says that it is not known."""
    found = record.get(name)
    if not isinstance(found, (int, float)) or isinstance(found, bool):
        return None
    return float(found) if math.isfinite(found) and 0 < found < _LAST_TIME else None


def node_name(segment: str) -> str | None:
    """Return the node that a part of a key names."""
    try:
        lease = int(segment, 16) if len(segment) == _NODE_DIGITS else 0
    except ValueError:
        lease = 0
    return segment if 0 < lease <= _LAST_NUMBER and f"{lease:016x}" == segment else None


def escaped_name(segment: str) -> str | None:
    """Return the name that is escaped in a part of a key."""
    try:
        return unquote(segment, errors="strict") or None
    except UnicodeDecodeError:
        return None


@dataclass(frozen=True, slots=True)
class Control:
    """The record that says which round is current; see `docs/protocol.md`."""

    #: The version that the run speaks.
    version: int
    round: int
    state: str
    previous: tuple[int, str] | None
    world: int | None
    attempt: str
    master_addr: str | None
    master_port: int | None
    by: str | None
    at: float | None
    opened_at: float | None
    opened_by: str | None
    why: str | None
    reason: str | None
    min_nodes: int | None
    max_nodes: int | None
    #: How ranks were given in a complete round, and of how many nodes its segments are.
    rank_order: str | None
    segment: int | None
    #: The last round that was completed, and its number of nodes where that is known.
    last: tuple[int, str, int | None] | None
    #: How the job ended, and in one clause for people; `None` where somebody closed the run by hand.
    result: Result | None
    ending: str | None
    #: The TTL of the run's lease, and how often the run was opened again.
    run_ttl: int | None
    reopened: int


def control_record(value: bytes) -> Control | str:
    """Return the control record, or in one clause why there is none."""
    record = read_record(value)
    if isinstance(record, str):
        return record
    round_, state = number_field(record, "round"), record.get("state")
    if round_ is None or state not in ("open", "final", "closed"):
        return "has no round or state that there can be"
    world = positive_field(record, "world")
    if state == "final" and (world is None or not isinstance(record.get("attempt"), str)):
        return "is of a complete round and does not say of how many nodes"
    return Control(
        version=number_field(record, "v") or 1,
        round=round_,
        state=state,
        previous=_previous(record.get("previous")),
        world=world,
        attempt=record.get("attempt", "") if state == "final" else "",
        master_addr=text_field(record, "master_addr"),
        master_port=number_field(record, "master_port"),
        by=text_field(record, "by"),
        at=time_field(record, "at"),
        opened_at=time_field(record, "opened_at") if state == "final" else time_field(record, "at"),
        opened_by=text_field(record, "opened_by" if state == "final" else "by"),
        why=text_field(record, "why"),
        reason=text_field(record, "reason"),
        min_nodes=positive_field(record, "min"),
        max_nodes=positive_field(record, "max"),
        rank_order=text_field(record, "rank_order"),
        segment=(positive_field(record, "segment") or 1) if state == "final" else None,
        last=_last(record, state),
        result=_result(_part(record, "ended")),
        ending=text_field(_part(record, "ended"), "text"),
        run_ttl=positive_field(record, "run_ttl"),
        reopened=number_field(record, "reopened") or 0,
    )


def _part(record: dict[str, Any], name: str) -> dict[str, Any]:
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def _previous(found: object) -> tuple[int, str] | None:
    if not isinstance(found, dict):
        return None
    round_, attempt = number_field(found, "round"), found.get("attempt")
    return (round_, attempt) if round_ is not None and isinstance(attempt, str) else None


def _last(record: dict[str, Any], state: str) -> tuple[int, str, int | None] | None:
    name = {"open": "previous", "closed": "last"}.get(state)
    found = record if name is None else _part(record, name)
    completed = _previous(found)
    return None if completed is None else (*completed, positive_field(found, "world"))


def _result(ended: dict[str, Any]) -> Result | None:
    for known in RESULTS:
        if ended.get("result") == known:
            return known
    return None


def node_record(record: dict[str, Any], node_id: str, state: NodeState) -> Node | None:
    """Return the node of a join, waiting or member record, of the coordinator's or of a roster."""
    host, pid = record.get("host"), number_field(record, "pid")
    if not isinstance(host, str) or pid is None:
        return None
    return Node(
        id=node_id,
        host=one_line(host),
        pid=pid,
        node_id=text_field(record, "node_id"),
        domain=text_field(record, "domain"),
        rank=number_field(record, "rank") if state in {"member", "missing"} else None,
        address=text_field(record, "addr") or text_field(record, "master_addr"),
        since=time_field(record, "at"),
        until=time_field(record, "until"),
        lease_left_s=None,
        lease_ttl_s=None,
        state=state,
        infra_rank=number_field(record, "infra_rank"),
    )


def roster_record(value: bytes) -> list[Node] | str:
    """Return the members that a part of a roster names, in its order, or why it names none."""
    record = read_record(value)
    if isinstance(record, str):
        return record
    entries, problem = record.get("members"), "is no list of members"
    if not isinstance(entries, list):
        return problem
    found = []
    for entry in entries:
        named = entry.get("node") if isinstance(entry, dict) else None
        name = node_name(named) if isinstance(named, str) else None
        made = node_record(entry, name, "missing") if name else None
        if made is None or made.rank is None:
            return problem
        found.append(made)
    return found


def round_record(value: bytes) -> RoundRecord | str:
    """Return a round of the history, or why it is none."""
    record = read_record(value)
    if isinstance(record, str):
        return record
    round_, world = number_field(record, "round"), positive_field(record, "world")
    if round_ is None or world is None:
        return "is not a record of a round"
    return RoundRecord(
        round=round_,
        world=world,
        why=text_field(record, "why"),
        opened_at=time_field(record, "opened_at"),
        opened_by=text_field(record, "opened_by"),
        completed_at=time_field(record, "at"),
    )


def denial_record(name: str, value: bytes) -> Denial | str:
    """Return who may not join, or why that is not said."""
    record = read_record(value)
    if isinstance(record, str):
        return record
    return Denial(
        name=one_line(name),
        by=text_field(record, "by") or "?",
        reason=text_field(record, "reason") or "?",
        at=time_field(record, "at"),
        **_whose(record),
    )


def _whose(record: dict[str, Any]) -> dict[str, Any]:
    host, pid = text_field(record, "host"), number_field(record, "pid")
    return {} if host is None or pid is None else {"host": host, "pid": pid}
