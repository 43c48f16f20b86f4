"""A node's waits for etcd and for a place in a round, what is logged of them, and what their ends mean."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousTimeoutError,
)

from torchetcd import _defaults
from torchetcd._closed_run import Closed, closed_text
from torchetcd._endpoints import is_job, parse_addresses
from torchetcd._environment import PREFIX, QUORUM_SECRET_FILE, endpoint_or_default
from torchetcd._key_names import prefix_path
from torchetcd.etcd import EtcdConnectionFailed, EtcdException

if TYPE_CHECKING:
    from torchetcd._torchetcd import Rendezvous
    from torchetcd.etcd import Client

_logger = logging.getLogger("torchetcd.etcd_rendezvous")

# The first line about a wait, then twice as long until the next one, and so on.
_FIRST_NOTE_S = 5.0
_LAST_NOTE_S = 300.0
# What nobody has to ask for: when it is said first, and how often then.
_FIRST_WARNING_S = 60.0
_NEXT_WARNING_S = 300.0
# How often it is said that there is no etcd.
_NO_ETCD_S = 30.0


def wait_for_etcd(
    look: Callable[[], object],
    look_s: float,
    read: Callable[[float], object],
    run_id: str,
    patience_s: float,
) -> None:
    """Take the first look at a run, and wait for an etcd that is not reachable yet.

    etcd may be started with the job, or may be moving from one host to another. What waiting cannot solve
    ends the wait at once: TLS or a log-in that is refused, files that cannot be used.

    Args:
        look: Looks at the run.
        look_s: How long that tries.
        read: Asks etcd for anything, for as long as it is told; for when a look would try for too long.
        run_id: The run.
        patience_s: How long etcd is waited for.

    Raises:
        RendezvousError: if nothing comes of it.
    """
    started = time.monotonic()
    warn_at = started + _NO_ETCD_S
    while True:
        limit = max(min(_NO_ETCD_S, started + patience_s - time.monotonic()), 0.0)
        failure: Exception | None = None
        if limit < look_s:
            failure = _no_answer(read, limit)
        if failure is None:
            failure = _no_answer_to_look(look, look_s)
        if failure is None:
            return
        now = time.monotonic()
        if now - started >= patience_s:
            raise RendezvousConnectionError(
                f"{str(failure).rstrip('.')} (etcd was waited for {now - started:.0f} s in all)"
            ) from (failure.__cause__ or failure)
        if now >= warn_at:
            warn_at = now + _NO_ETCD_S
            _logger.warning(
                "Run '%s': etcd has not answered for %.0f s. The wait ends after %.0f s in all. %s",
                run_id,
                now - started,
                patience_s,
                failure,
            )


def _no_answer(read: Callable[[float], object], limit_s: float) -> Exception | None:
    """Return why etcd gave no answer in time; `None` if it did, or would never: the look says why."""
    began = time.monotonic()
    try:
        read(limit_s)
    except EtcdConnectionFailed as exc:
        # It is asked until the time is up, unless that is of no use.
        return exc if time.monotonic() - began >= limit_s else None
    except (EtcdException, ValueError, RuntimeError):
        return None
    return None


def _no_answer_to_look(look: Callable[[], object], limit_s: float) -> Exception | None:
    """Return why etcd gave no answer in time; `None` if it did.

    Raises:
        RendezvousError: if it would never.
    """
    began = time.monotonic()
    try:
        look()
    except (RendezvousTimeoutError, RendezvousConnectionError) as exc:
        failure: Exception = exc
        if time.monotonic() - began < limit_s:
            raise
        return failure
    return None


def wait_for_place(
    node: Rendezvous, run_id: str, least: int, most: int, why: str
) -> tuple[int, int, int, str, int]:
    """Wait until the node that has begun to join has a place in a complete round.

    Args:
        node: The node.
        run_id: The run.
        least: How many nodes a world has at least.
        most: How many it has at most.
        why: The command that tells more of a wait.

    Returns:
        The round, the rank, the number of nodes, and where rank 0 is.

    Raises:
        RendezvousError: if none comes of it.
    """
    started = time.monotonic()
    _logger.info(
        "Run '%s': joining the next round of at least %d and at most %d nodes.", run_id, least, most
    )
    pause = _FIRST_NOTE_S
    note_at, warn_at = started + pause, started + _FIRST_WARNING_S
    try:
        while True:
            now = time.monotonic()
            joined = node.wait_joined(max(min(note_at, warn_at) - now, 0.0))
            if joined is not None:
                return joined
            now = time.monotonic()
            if now >= warn_at:
                waited = _waited_for(node, run_id, least, now - started)
                _logger.warning("%s. `%s` tells more.", waited, why)
                warn_at = now + _NEXT_WARNING_S
            if now >= note_at:
                _logger.info("%s.", _waited_for(node, run_id, least, now - started))
                pause = min(pause * 2, _LAST_NOTE_S)
                note_at = now + pause
    except RendezvousTimeoutError as exc:
        message = f"{str(exc).rstrip('.')}. `{why}` tells more."
        raise RendezvousTimeoutError(message) from None


def _waited_for(node: Rendezvous, run_id: str, least: int, waited_s: float) -> str:
    round_, joined, last_call, spare = node.progress()
    if spare:
        return (
            f"Run '{run_id}': round {round_} is complete; waiting for a place in the next one for "
            f"{waited_s:.0f} s"
        )
    call = ", last call for more" if last_call else ""
    return (
        f"Run '{run_id}': round {round_}, {joined} of at least {least} nodes have joined{call}; waiting for "
        f"{waited_s:.0f} s"
    )


def why_command(run_id: str, client: Client, prefix: str) -> str:
    """Return the command that tells why a run waits, as it can be typed on this host."""
    command = ["torchetcd", "why", run_id]
    endpoint, secret_file = client._typed or (",".join(client.endpoints), None)
    if endpoint != _usual_endpoint():
        command += ["--endpoint", endpoint]
    if secret_file is not None and secret_file != QUORUM_SECRET_FILE.get():
        command += ["--quorum-secret-file", secret_file]
    if prefix_path(prefix) != prefix_path(PREFIX.get() or _defaults.PREFIX):
        command += ["--prefix", prefix]
    return shlex.join(command)


def _usual_endpoint() -> str:
    """Return the endpoint of a command that is given none."""
    usual, _ = endpoint_or_default(None)
    if is_job(usual):
        return usual.strip()
    try:
        return ",".join(address.uri for address in parse_addresses(usual, _defaults.PORT, "http"))
    except ValueError:
        return ""


def closed_error(
    node: Rendezvous, run_id: str, told: RendezvousClosedError
) -> RendezvousClosedError:
    """Return the error for a barrier that a close has ended, with all that is known of the close."""
    closed = _closed(node)
    # Without a record the run has been opened again meanwhile.
    return (
        told if closed is None else RendezvousClosedError(closed_text(run_id, closed, time.time()))
    )


def stood_by_to_the_end(node: Rendezvous) -> bool:
    """Whether the last barrier ended because the job succeeded for which this node was a spare."""
    if not node.parked():
        return False
    closed = _closed(node)
    return closed is not None and closed.result == "succeeded"


def _closed(node: Rendezvous) -> Closed | None:
    try:
        told = node.closed()
    except RendezvousError:
        return None
    return None if told is None else Closed(told)
