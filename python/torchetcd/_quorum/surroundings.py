"""What the others say to an agent whose entry has no running member."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from torchetcd._quorum.asking import Answer, Who, ask_all
from torchetcd._quorum.decisions import Told
from torchetcd._quorum.seat import Seat
from torchetcd._rendezvous.local_address import host_name
from torchetcd.etcd import EtcdException

if TYPE_CHECKING:
    from torchetcd._torchetcd import Client

#: So many further entries are asked. Silent ones take their time, and there may be thousands.
_FURTHER = 32
#: Clocks that are further apart are worth a warning.
_CLOCKS_S = 60.0


class ConflictError(Exception):
    """Why this agent can have no part in the quorum."""


def look_around(
    seat: Seat, native: Client, tls: ssl.SSLContext | None, warn: Callable[[str], None]
) -> Told:
    """Ask the others what there is.

    Args:
        seat: The entry of this agent.
        native: A client of the quorum.
        tls: What a client uses, if there is a secret.
        warn: Tells people a sentence, once.

    Raises:
        ConflictError: if there can be no quorum with this agent.
    """
    # Any member of a majority knows, wherever it is.
    with contextlib.suppress(EtcdException):
        listed = native.member_list(1.0 if seat.is_first else 5.0)
        # Its first member, and not a learner that was added since: that one has another id.
        first = seat.entries.first_member_id(seat.entry, seat.token)
        return Told(
            seat.is_first,
            has_data=seat.has_data,
            removed=seat.id not in {number for number, *_ in listed},
            quorum=True,
            awaited=any(number == first and not clients for number, _, _, clients, _ in listed),
            knows=seat.knows,
        )
    if seat.has_data:
        return Told(seat.is_first, has_data=True)
    answers = ask_all([entry for entry in seat.entries.first if entry != seat.entry], tls)
    ours, wrong, members = [], [], []
    for answer in (judged(answer, seat.token, seat.cluster) for answer in answers):
        if answer.who is Who.ETCD:
            members.append(answer)
        elif answer.who is Who.AGENT:
            ours.append(answer)
        elif answer.who in (Who.OTHER, Who.UNTRUSTED):
            wrong.append(answer)
    _compare_clocks(ours, warn)
    _judge(seat, wrong, warn, fatal=not members)
    fresh = sum(answer.says.get("role") == "fresh" for answer in ours)
    fresh += sum(member.knows_started is False for member in members)
    fresh += seat.is_first and not seat.knows
    others_know = any(answer.says.get("heard") for answer in ours)
    # One that does not say was started with data, which may be of a quorum.
    others_know = others_know or any(member.knows_started is not False for member in members)
    if seat.is_first and fresh >= seat.entries.majority and not others_know:
        # Before a quorum begins: members may have taken the places of first entries, and their agents and
        # those that stood by may be all that is left of it. Those that the job names first come first.
        further = seat.entries.all[seat.entries.size :][:_FURTHER]
        others_know = any(_knows(answer, seat) for answer in ask_all(further, tls))
    return Told(
        seat.is_first,
        has_data=False,
        knows=seat.knows,
        others_know=others_know,
        fresh=fresh,
        majority=seat.entries.majority,
    )


def judged(answer: Answer, token: str, cluster: int) -> Answer:
    """Return an answer as `Who.OTHER` if an agent or an etcd gave it that does not belong to this quorum."""
    if answer.who is Who.ETCD and answer.cluster != cluster:
        return Answer(answer.entry, Who.OTHER, "an etcd of another job runs there")
    if answer.who is Who.AGENT and answer.says["token"] != token:
        text = "an agent of another job, or one with other first entries, is there"
        return Answer(answer.entry, Who.OTHER, text)
    return answer


def _knows(answer: Answer, seat: Seat) -> bool:
    """Return whether a further entry has a member of this quorum, or an agent that has heard of it."""
    if answer.who is Who.ETCD:
        return answer.cluster == seat.cluster
    return answer.says.get("token") == seat.token and bool(answer.says.get("heard"))


def _judge(seat: Seat, wrong: list[Answer], warn: Callable[[str], None], *, fatal: bool) -> None:
    texts = [f"{answer.entry.name}: {answer.text}" for answer in wrong]
    if fatal and seat.entries.size - len(wrong) < seat.entries.majority:
        endpoint = seat.entries.endpoint
        message = f"There can be no quorum of {endpoint} with this agent. {'; '.join(texts)}."
        raise ConflictError(message)
    for text in texts:
        warn(f"An entry of the quorum is of no use. {text}.")


def _compare_clocks(answers: list[Answer], warn: Callable[[str], None]) -> None:
    for answer in answers:
        now = answer.says.get("now")
        apart = time.time() - now if isinstance(now, (int, float)) else 0.0
        if abs(apart) > _CLOCKS_S:
            warn(
                f"The clocks of {host_name()} and {answer.entry.name} are {abs(apart):.0f} s apart. The "
                "quorum does not need them, but times in logs and in `torchetcd timeline` will be wrong."
            )
