"""Changes the list of members, one step after another: an agent takes the place of a member that is gone."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from torchetcd._quorum.decisions import (
    AddLearner,
    Change,
    Nothing,
    Promote,
    Remove,
    StartLearner,
    next_change,
)
from torchetcd._quorum.seat import Seat
from torchetcd._quorum.view import View
from torchetcd.etcd import EtcdAmbiguous, EtcdException

if TYPE_CHECKING:
    from torchetcd._torchetcd import Client
    from torchetcd._torchetcd import Member as ListedMember

_logger = logging.getLogger("torchetcd.quorum")

#: Of the key that says who changes the list of members.
_TTL_S = 10
#: Within which one place must be taken, else the next agent tries.
_LIMIT_S = 90.0
_PAUSE_S = 0.25
#: What etcd refuses for now, or because another agent was faster.
_LATER = (
    "unhealthy_cluster",
    "learner_not_ready",
    "not_learner",
    "too_many_learners",
    "member_not_found",
    "member_exists",
    "peer_url_exists",
)


class Changer:
    """What one agent changes."""

    def __init__(
        self,
        seat: Seat,
        view: View,
        native: Client,
        replace_after_s: float,
        pause: Callable[[float], bool],
    ) -> None:
        """Take what it works with.

        Args:
            seat: The entry of this agent.
            view: What it knows of the members.
            native: A client of the quorum.
            replace_after_s: How long a member is gone before another takes its place.
            pause: Waits, and returns whether to go on.
        """
        self._seat, self._view, self._native, self._pause = seat, view, native, pause
        self._replace_after_s = replace_after_s

    def next(self) -> Change:
        """Return the next change, by what was last seen."""
        size = self._seat.entries.size
        seen = self._view.seen()
        self._seat.counts.members_seen(
            sum(member.gone_s == 0 and not member.is_learner for member in seen)
        )
        return next_change(seen, self._seat.own, size, self._replace_after_s)

    def make_all(self) -> None:
        """Make all changes, while no other agent does."""
        with self._as_changer() as holds:
            deadline = time.monotonic() + _LIMIT_S
            while holds() and time.monotonic() < deadline:
                self._view.look()
                change = self.next()
                if isinstance(change, Nothing):
                    return
                try:
                    pause = self._make(change)
                except EtcdAmbiguous:
                    pause = _PAUSE_S  # the list tells
                except EtcdException as exc:
                    if exc.refusal not in _LATER:
                        raise
                    _logger.debug("%s: %s", change, exc)
                    pause = 2 * _PAUSE_S
                if not self._pause(pause):
                    return

    def _make(self, change: Change) -> float:
        """Make one change; returns how long to wait until the next."""
        if isinstance(change, Remove):
            return self._remove(change.id)
        if isinstance(change, AddLearner):
            # One that was removed may not have heard of it yet.
            self._seat.stop()
            self._seat.forget()
            self._seat.id, _ = self._native.member_add([self._seat.peer_url], is_learner=True)
        elif isinstance(change, StartLearner):
            self._seat.start([self._as_initial(member) for member in self._view.listed])
            # A learner that ends at once is not started without a pause.
            return 2 * _PAUSE_S
        elif isinstance(change, Promote):
            self._native.member_promote(change.id)
            self._seat.counts.replaced()
            name = self._seat.entry.name
            _logger.info(
                "The member of the quorum at %s has taken the place of one that is gone.", name
            )
        return 0.0

    def _remove(self, member: int) -> float:
        """Remove a member; returns how long to wait until the next change."""
        place = self._view.place_of(member)
        if place != self._seat.peer_url:
            # Nobody is removed for an agent that cannot take the place.
            self._seat.check()
            # A learner may run still: its agent has lost the key, and it has no vote.
            if not self._view.is_learner(member) and not self._view.confirm_gone(member):
                return _PAUSE_S
        self._native.member_remove(member)
        _logger.info("A member of the quorum that is gone was removed: %s.", place)
        if member == self._seat.id:
            self._seat.stop()
            self._seat.forget()
        return 0.0

    def _as_initial(self, member: ListedMember) -> tuple[str, str]:
        _, name, urls, _, _ = member
        entry = self._seat.entries.of_peer_url(urls[0])
        return (entry.name if entry is not None else name or urls[0], urls[0])

    @contextlib.contextmanager
    def _as_changer(self) -> Iterator[Callable[[], bool]]:
        """Hold the key that says who changes the list; what is given says whether it is held still."""
        lease = self._native.lease_grant(_TTL_S)
        renewed = time.monotonic()
        holding = False

        def holds() -> bool:
            nonlocal renewed, holding
            if holding and time.monotonic() - renewed > _TTL_S / 5:
                renewed = time.monotonic()
                holding = self._native.lease_keep_alive_once(lease)
            return holding

        try:
            name = f"{self._seat.entry.name} (pid {os.getpid()})"
            holding = self._view.keys.claim_change(lease, name)
            yield holds
        finally:
            with contextlib.suppress(EtcdException):
                self._native.lease_revoke(lease)
