"""What `torchetcd doctor` makes of a quorum inside a job. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from torchetcd._phrasing import count, duration, plain
from torchetcd._quorum.asking import Answer, Who
from torchetcd._quorum.places import is_loopback
from torchetcd._quorum.seen import Member, Quorum, lack_of
from torchetcd.cli.doctor.observations import Finding

_TOPIC = "quorum"
#: The entries are asked within seconds, so less than this may be no difference.
_CLOCK_S = 5.0

_AGENT = "Start the agent of that entry again, or name more hosts than members in the endpoint."
_PLACE = (
    "Start its agent again. Where an agent stands by, it takes the place once the member has been gone for "
    "quorum_replace_after seconds."
)
_SECRET = (
    "Give what the job has: --quorum-secret-file or TORCHETCD_QUORUM_SECRET_FILE, the same secret on all "
    "hosts."
)
_OTHER = "End that program, or give other ports to the entries of the job."


def quorum(seen: Quorum) -> Iterator[Finding]:
    """Judge what was seen of a quorum."""
    yield _majority(seen)
    for member in seen.members:
        yield from _member(member)
    for answer in seen.others:
        # Where nobody is, that has been said already.
        if seen.members or answer.who not in (Who.NOBODY, Who.SILENT):
            yield _other(answer, seen)
    yield from _size(seen)
    yield _secret(seen)
    yield from _clocks(seen)


def _majority(seen: Quorum) -> Finding:
    voters, there = seen.voters, sum(member.is_there for member in seen.voters)
    if not seen.decides:
        return Finding(
            "problem",
            _TOPIC,
            lack_of(seen),
            "Start the agents of these entries again: a member resumes with its data. A quorum that has lost "
            "the data of most members is gone, and the job must be started again.",
        )
    text = f"{there} of {count(len(voters), 'member')} are there, and {seen.majority} are needed."
    if there == len(voters):
        return Finding("ok", _TOPIC, text)
    if there > seen.majority:
        return Finding("warning", _TOPIC, text, _PLACE)
    return Finding("warning", _TOPIC, f"{text} No more may be lost.", _PLACE)


def _member(member: Member) -> Iterator[Finding]:
    why = f": {plain(member.text)}" if member.text else ""
    if member.state == "unreachable":
        yield Finding(
            "warning",
            _TOPIC,
            f"{member.entry} runs a member, as its agent says, but it does not answer here{why}.",
            "Check firewalls and names between here and there; all hosts of the job must reach it.",
        )
    elif member.state != "runs":
        for_s = "" if member.gone_s is None else f" for {duration(member.gone_s)}"
        replaced = ", and another agent takes its place" if member.state == "replaced" else ""
        yield Finding(
            "warning",
            _TOPIC,
            f"The member at {member.entry} is gone{for_s}{replaced}{why}.",
            _PLACE,
        )
    elif member.is_learner:
        yield Finding(
            "note",
            _TOPIC,
            f"The member at {member.entry} is a learner, which has no vote yet.",
            "Its agent gives it one once it has all data. If that takes minutes, see the agent's log.",
        )


def _other(answer: Answer, seen: Quorum) -> Finding:
    entry = answer.entry.name
    if answer.who is Who.AGENT:
        host = plain(answer.says.get("host") or "?")
        if answer.says.get("role") == "candidate":
            return Finding("ok", _TOPIC, f"{entry} runs no member; the agent of {host} stands by.")
        return Finding(
            "note",
            _TOPIC,
            f"{entry} runs no member yet; the agent of {host} is about to start it.",
            "If that takes more than seconds, see the agent's log.",
        )
    if answer.who is Who.ETCD:
        text = f"{entry} runs an etcd that belongs to another one."
        return Finding("problem", _TOPIC, text, _OTHER)
    text = f"{entry} runs no member: {plain(answer.text)}."
    if answer.who is Who.UNTRUSTED:
        return Finding("problem", _TOPIC, text, _SECRET)
    if answer.who is Who.OTHER:
        return Finding("problem", _TOPIC, text, _OTHER)
    # It is of no use, and needed only if a member is lost.
    return Finding("note", _TOPIC, text, _AGENT if seen.decides else "")


def _size(seen: Quorum) -> Iterator[Finding]:
    voters = len(seen.voters)
    if voters > 2 and voters % 2 == 0:
        yield Finding(
            "note",
            _TOPIC,
            f"There are {voters} members, which survive no more losses than {voters - 1} would.",
            "So it is for a moment while one takes the place of another; do not leave it so.",
        )
    stand_by = any(answer.who is Who.AGENT for answer in seen.others)
    if seen.decides and voters > 1 and not stand_by:
        yield Finding(
            "note",
            _TOPIC,
            "No agent stands by: nobody takes the place of a member whose host is lost for good.",
            "Name more hosts than members in the endpoint job://...",
        )


def _secret(seen: Quorum) -> Finding:
    if seen.entries.scheme == "https":
        return Finding("ok", "tls", "The ports of the quorum admit only who has its secret.")
    if all(is_loopback(entry.host) for entry in seen.entries.all):
        return Finding("ok", "tls", "The quorum has no secret, and is reached on this host only.")
    return Finding(
        "warning",
        "tls",
        "The quorum has no secret: whoever reaches its ports can read and change all of it.",
        "Write one into a file on all hosts (openssl rand -hex 32), and give that as the rendezvous "
        "parameter quorum_secret_file, or by TORCHETCD_QUORUM_SECRET_FILE.",
    )


def _clocks(seen: Quorum) -> Iterator[Finding]:
    for answer in seen.others:
        now = answer.says.get("now")
        apart = now - seen.at if isinstance(now, (int, float)) else 0.0
        if abs(apart) > _CLOCK_S:
            yield Finding(
                "note",
                "clock",
                f"The clock of {answer.entry.name} is {duration(abs(apart))} "
                f"{'ahead of' if apart > 0 else 'behind'} the clock here.",
                "Set both clocks (NTP). The quorum needs none, but times that are shown are wrong.",
            )
