"""Keeps the member of one entry: starts it, looks after it, and takes the place of one that is gone.

It runs in a thread of its own. Training never depends on it: whatever fails here is logged and tried again.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from torchetcd._quorum.asking import ask_member
from torchetcd._quorum.changing import Changer
from torchetcd._quorum.decisions import Nothing, Start, start
from torchetcd._quorum.etcd_keys import Keys
from torchetcd._quorum.folder import FolderError
from torchetcd._quorum.material import Material
from torchetcd._quorum.seat import Seat
from torchetcd._quorum.surroundings import ConflictError, look_around
from torchetcd._quorum.view import View
from torchetcd._rendezvous.local_address import host_name
from torchetcd.etcd import Client, EtcdException

_logger = logging.getLogger("torchetcd.quorum")

#: Of what an agent says of its member.
_TTL_S = 6
#: After a failure, the first pause and the longest one.
_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 10.0
#: How often one looks that nothing was missed.
_LOOK_S = 60.0
#: How long a member may not answer its own agent before it is ended and started again.
_HANG_S = 15.0
#: How long the last member serves when all have ended.
_LAST_S = 0.5
#: So many entries stand by for a place. The others look only now and then: thousands would ask at once.
_STANDING_BY, _LOOK_FROM_AFAR_S = 32, 120.0
#: Between the agents that could take the same place.
_TURN_S, _LONGEST_TURN_S = 0.5, 15.0
#: What cannot be right is waited for so long, as an earlier job may be about to end.
_CONFLICT_S = 15.0


class Keeper:
    """Of one entry."""

    def __init__(
        self,
        seat: Seat,
        client: Client,
        material: Material | None,
        replace_after_s: float,
        members_are: Callable[[list[str]], None],
    ) -> None:
        """Take what is fixed; `start` begins.

        Args:
            seat: The entry of this agent.
            client: A client of the quorum.
            material: The certificates, if there is a secret.
            replace_after_s: How long a member is gone before another takes its place.
            members_are: Is told where clients reach the members.
        """
        self._seat = seat
        self._native = client._native
        self._tls = material.of_client() if material else None
        self._replace_after_s = replace_after_s
        self._view = View(self._native, seat.entries, seat.cluster, self._tls)
        self._members_are, self._members_at = members_are, [""]
        self._changer = Changer(seat, self._view, self._native, replace_after_s, self._pause)
        self._lease = 0
        #: What the record of the member says; `None` without one.
        self._said: dict[str, Any] | None = None
        self._answered_at = self._looked_at = self._announced = 0.0
        self._failures = self._crashes = 0
        self._conflict: tuple[str, float] | None = None
        self._stopping = threading.Event()
        self._ending = threading.Event()
        self._wake = threading.Event()
        #: Set when there is a quorum, or there can be none.
        self.settled = threading.Event()
        #: Why there can be none.
        self.failure: str | None = None
        #: What last kept the member from running: a sentence, empty while it runs.
        self.trouble = ""
        self._warned: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="torchetcd-quorum", daemon=True)

    # ------------------------------------------------------------------ from other threads

    def start(self) -> None:
        """Begin.

        Raises:
            FolderError: if the disk is full.
            PortTakenError: if something else has one of the entry's ports.
        """
        self._seat.check()
        self._seat.answer(self._seat.role)
        self._thread.start()

    def end(self, others_are_gone: Callable[[], bool], limit_s: float) -> None:
        """Let the member serve until all agents have ended, then end it and delete its data.

        Args:
            others_are_gone: Whether no other node of the job is left.
            limit_s: How long they are waited for.
        """
        self._ending.set()
        self._wake.set()
        keys = Keys(self._native, 2.0)
        deadline = time.monotonic() + limit_s
        while self._seat.runs and time.monotonic() < deadline:
            try:
                _, records, _ = keys.read()
                if all(each.is_ending for each in records) and others_are_gone():
                    # The others must see it, too, before the first of them takes its member away.
                    time.sleep(_LAST_S)
                    break
            except EtcdException:
                # The majority has ended already.
                break
            time.sleep(0.1)
        self.stop(remove=True)

    def stop(self, *, remove: bool = False) -> None:
        """End the member, and this thread; the data is kept unless it is of no more use."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(2.0)
        self._seat.give_up(remove=remove)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                pause = self._tend() if self._seat.was_started else self._bring_up()
                self._failures = 0
            except ConflictError as exc:
                pause = self._in_conflict(str(exc))
            except EtcdException as exc:
                _logger.debug("The quorum at %s: %s", self._seat.entry.name, exc)
                pause = self._next_pause()
            except (OSError, FolderError) as exc:
                self.trouble = f"No member of the quorum can run at {self._seat.entry.name}: {exc}."
                self._warn(self.trouble)
                pause = self._next_pause()
            except Exception:
                if not threading.main_thread().is_alive():
                    return  # the interpreter ends, and allows no new threads
                _logger.exception("The keeper of the quorum at %s goes on.", self._seat.entry.name)
                pause = _LONGEST_PAUSE_S
            self._pause(pause)

    def _pause(self, seconds: float) -> bool:
        """Wait, unless there is something to do at once; returns whether to go on."""
        self._wake.wait(seconds)
        if self._stopping.is_set():
            return False
        self._wake.clear()
        return True

    def _next_pause(self) -> float:
        self._failures += 1
        return float(min(_PAUSE_S * 2 ** min(self._failures, 6), _LONGEST_PAUSE_S))

    def _in_conflict(self, text: str) -> float:
        self.trouble = text
        self._warn(text)
        now = time.monotonic()
        if self._conflict is None or self._conflict[0] != text:
            self._conflict = (text, now)
        elif now - self._conflict[1] > _CONFLICT_S and not self.settled.is_set():
            self.failure = text
            self.settled.set()
        return 1.0

    def _warn(self, text: str) -> None:
        """Log a sentence once."""
        if text not in self._warned:
            self._warned.add(text)
            _logger.warning("%s", text)

    # ------------------------------------------------------------------ no member

    def _bring_up(self) -> float:
        told = look_around(self._seat, self._native, self._tls, self._warn)
        if told.quorum:
            self.settled.set()
        how = start(told)
        if told.quorum and how is not Start.AS_FIRST:
            # Before data is deleted: without it, this agent must not look like a new one.
            self._seat.learn()
        if how is Start.WAIT:
            if told.others_know:
                self.trouble = (
                    f"The entry {self._seat.entry.name} has no data of the quorum that others know of, and "
                    "only a majority of its members can admit it. If that quorum is of an earlier start of "
                    "this job, delete the data there (`quorum_dir`), or give another run id."
                )
            self._seat.answer(self._seat.role)
            return _PAUSE_S
        if how is Start.BY_CHANGE:
            if told.has_data:
                name = self._seat.entry.name
                self._seat.forget()
                _logger.info("The member of the quorum at %s was replaced while it was away.", name)
            self._seat.answer("candidate", self._view.gone_at())
            self._stand_by()
            return 0.0
        if how is Start.AS_FIRST:
            self._seat.start_as_first()
        else:
            self._seat.start()
        return 0.0

    def _look(self) -> None:
        self._view.look()
        urls = sorted(
            url for _, _, _, clients, learner in self._view.listed for url in clients if not learner
        )
        if urls and urls != self._members_at:
            self._members_at = urls
            self._members_are(urls)

    def _stand_by(self) -> None:
        """Wait until there is a place, and take it."""
        self._look()
        self.settled.set()
        self.trouble = ""
        place = self._seat.entries.all.index(self._seat.entry)
        change = self._changer.next()
        self._seat.answer("candidate", self._view.gone_at())
        if isinstance(change, Nothing) or self._view.changer is not None:
            if place < self._seat.entries.size + _STANDING_BY:
                until = self._view.until(self._replace_after_s, _LOOK_S)
                self._view.keys.watch(self._view.revision, until)
            else:
                self._pause(_LOOK_FROM_AFAR_S * random.uniform(0.5, 1.5))
            return
        # The others see the same. Those that the job names first are first.
        if self._pause(min(place * _TURN_S, _LONGEST_TURN_S)):
            self._changer.make_all()

    # ------------------------------------------------------------------ a member

    def _tend(self) -> float:
        seat = self._seat
        if not seat.runs:
            return self._ended()
        assert seat.id is not None
        seat.in_use()
        if ask_member(seat.entry, self._tls).cluster == seat.cluster:
            self._answered_at = time.monotonic()
            self.trouble = ""
        elif time.monotonic() - max(self._answered_at, seat.started_at) > _HANG_S:
            self._warn(
                f"The member of the quorum at {seat.entry.name} hangs, and is started again."
            )
            seat.counts.restarted()
            seat.stop(kill=True)
            return 0.0
        elif self._answered_at < seat.started_at:
            return 0.05
        self._say_that_it_runs()
        self.settled.set()
        if self._announced < seat.started_at:
            self._announced = time.monotonic()
            _logger.info("A member of the quorum runs at %s.", seat.entry.name)
        if time.monotonic() - self._looked_at > _LOOK_S:
            self._looked_at = time.monotonic()
            self._look()
            if not isinstance(self._changer.next(), Nothing):
                self._changer.make_all()
        return _TTL_S / 3

    def _say_that_it_runs(self) -> None:
        assert self._seat.id is not None
        if self._lease and not self._native.lease_keep_alive_once(self._lease):
            self._lease = 0
        said = {
            "entry": self._seat.entry.name,
            "host": host_name(),
            "pid": os.getpid(),
            "ending": self._ending.is_set(),
            "gone": self._view.gone_at(),
        }
        if self._lease and self._said == said:
            return
        self._lease = self._lease or self._native.lease_grant(_TTL_S)
        self._view.keys.say(self._seat.id, self._lease, said)
        self._said = said

    def _ended(self) -> float:
        """Say why the process has ended, and wait longer each time."""
        seat = self._seat
        last = seat.last_words()
        seat.stop()
        self._lease, self._said = 0, None
        if time.monotonic() - seat.started_at > _LONGEST_PAUSE_S:
            self._crashes = 0
        self._crashes += 1
        seat.counts.restarted()
        seat.answer("starting")
        self.trouble = f"The member of the quorum at {seat.entry.name} has ended: {last}"
        self._warn(
            f"The member of the quorum at {seat.entry.name} has ended, and is started again: {last}"
        )
        return float(min(_PAUSE_S * 2**self._crashes, _LONGEST_PAUSE_S))
