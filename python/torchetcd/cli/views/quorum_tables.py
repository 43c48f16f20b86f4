"""The quorum inside a job as a table and as JSON. Pure: made of what was seen."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from torchetcd._phrasing import count, duration, plain
from torchetcd._quorum.asking import Answer, Who
from torchetcd._quorum.seen import Member, Quorum
from torchetcd.cli.output import cell, heading, table

_GOOD, _BUSY, _BAD = "green", "yellow", "red"
#: So many entries without a member are shown.
_MOST = 16
_KIB = 1024


def quorum_table(quorum: Quorum) -> RenderableType:
    """Show the members, and the entries that run none."""
    made = table(
        "ENTRY", "HOST", "MEMBER", "ROLE", "VERSION", "LAG", "DB", "STATE", right=("LAG", "DB")
    )
    for member in quorum.members:
        made.add_row(
            cell(member.entry),
            cell(member.host),
            cell(f"{member.id:016x}"),
            cell(_role(member)),
            cell(member.version),
            cell(member.lag),
            cell(None if member.db_size is None else f"{member.db_size // _KIB} KiB"),
            cell(state_of_member(member), _style(member)),
        )
    for answer in quorum.others[:_MOST]:
        state, style = _state_of_other(answer)
        empty = [cell(None)] * 5
        made.add_row(
            cell(answer.entry.name), cell(answer.says.get("host")), *empty, cell(state, style)
        )
    parts: list[RenderableType] = [Text(), heading(_title(quorum)), made]
    if len(quorum.others) > _MOST:
        parts.append(Text(f"and {len(quorum.others) - _MOST} more without a member", "dim"))
    return Group(*parts)


def _title(quorum: Quorum) -> str:
    voters = len(quorum.voters)
    there = sum(member.is_there for member in quorum.voters)
    changes = f"; {plain(quorum.changer)} changes its members" if quorum.changer else ""
    return f"Quorum ({there} of {count(voters, 'member')} there, {quorum.majority} needed{changes})"


def _role(member: Member) -> str:
    if member.is_learner:
        return "learner"
    return "leader" if member.is_leader else "follower" if member.state == "runs" else ""


def state_of_member(member: Member) -> str:
    """Say how a member is, in a few words."""
    for_s = "" if member.gone_s is None else f" for {duration(member.gone_s)}"
    why = f" ({member.text})" if member.text else ""
    words = {
        "runs": "runs",
        "unreachable": f"runs, but not reached from here{why}",
        "gone": f"gone{for_s}{why}",
        "replaced": f"gone{for_s}, is being replaced{why}",
    }
    return words[member.state]


def _style(member: Member) -> str:
    if member.state == "runs":
        return _BUSY if member.is_learner else _GOOD
    return _BAD if member.state == "gone" else _BUSY


def _state_of_other(answer: Answer) -> tuple[str, str]:
    if answer.who is Who.AGENT:
        return _ROLES.get(str(answer.says.get("role")), "no member"), ""
    style = _BAD if answer.who in (Who.OTHER, Who.UNTRUSTED) else "dim"
    return f"no member: {answer.text or 'an etcd that belongs to no member'}", style


#: What agents say of themselves.
_ROLES = {"candidate": "stands by", "fresh": "waits for the others", "starting": "starts"}


def quorum_document(quorum: Quorum) -> dict[str, Any]:
    """Make what JSON holds of it. Ids are texts, as they are too large for the numbers of many readers."""
    return {
        "endpoint": quorum.entries.typed,
        "size": len(quorum.voters),
        "majority": quorum.majority,
        "decides": quorum.decides,
        "changer": quorum.changer,
        "members": [
            {
                "entry": member.entry,
                "host": member.host,
                "pid": member.pid,
                "id": f"{member.id:016x}",
                "leader": member.is_leader,
                "learner": member.is_learner,
                "version": member.version,
                "lag": member.lag,
                "db_size": member.db_size,
                "state": member.state,
                "gone_s": member.gone_s,
                "text": state_of_member(member),
            }
            for member in quorum.members
        ],
        "others": [
            {
                "entry": answer.entry.name,
                "host": answer.says.get("host"),
                "who": answer.who.name.lower(),
                "text": _state_of_other(answer)[0],
            }
            for answer in quorum.others
        ],
    }
