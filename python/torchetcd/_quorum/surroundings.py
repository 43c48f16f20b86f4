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
        return Told(
            seat.is_first,
            has_data=seat.id is not None,
            removed=seat.id not in {number for number, *_ in listed},
            quorum=True,
            awaited=any(seat.peer_url in urls and not clients for _, _, urls, clients, _ in listed),
        )
    if seat.id is not None:
        return Told(seat.is_first, has_data=True)
    answers = ask_all([entry for entry in seat.entries.first if entry != seat.entry], tls)
    ours, wrong, members = [], [], []
    for answer in answers:
        if answer.who is Who.ETCD and answer.cluster != seat.cluster:
            wrong.append(Answer(answer.entry, Who.OTHER, "an etcd of another job runs there"))
        elif answer.who is Who.ETCD:
            members.append(answer)
        elif answer.who is Who.AGENT and answer.says["token"] != seat.token:
            text = "an agent of another job, or one with other first entries, is there"
            wrong.append(Answer(answer.entry, Who.OTHER, text))
        elif answer.who is Who.AGENT:
            ours.append(answer)
        elif answer.who in (Who.OTHER, Who.UNTRUSTED):
            wrong.append(answer)
    _compare_clocks(ours, warn)
    _judge(seat, wrong, warn, fatal=not members)
    return Told(
        seat.is_first,
        has_data=False,
        quorum=bool(members),
        awaited=any(seat.peer_url in member.awaited for member in members),
        fresh=sum(answer.says.get("role") == "fresh" for answer in ours) + seat.is_first,
        majority=seat.entries.majority,
    )


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
