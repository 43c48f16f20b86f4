"""The wait for a place in a round, what is logged of it, and what its end by a close means."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousError

from torchetcd._closed import Closed, closed_text

if TYPE_CHECKING:
    from torchetcd._torchetcd import Rendezvous

_logger = logging.getLogger("torchetcd.etcd_rendezvous")

# The first line about a wait, then twice as long until the next one, and so on.
_FIRST_NOTE_S = 5.0
_LAST_NOTE_S = 300.0


def wait_for_place(
    node: Rendezvous, run_id: str, least: int, most: int
) -> tuple[int, int, int, str, int]:
    """Wait until the node that has begun to join has a place in a complete round.

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
    while (joined := node.wait_joined(pause)) is None:
        _note(node, run_id, least, time.monotonic() - started)
        pause = min(pause * 2, _LAST_NOTE_S)
    return joined


def _note(node: Rendezvous, run_id: str, least: int, waited_s: float) -> None:
    round_, joined, last_call, spare = node.progress()
    if spare:
        _logger.info(
            "Run '%s': round %d is complete; waiting for a place in the next one for %.0f s.",
            run_id,
            round_,
            waited_s,
        )
        return
    _logger.info(
        "Run '%s': round %d, %d of at least %d nodes have joined%s; waiting for %.0f s.",
        run_id,
        round_,
        joined,
        least,
        ", last call for more" if last_call else "",
        waited_s,
    )


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
