"""An entry as its agent holds it: the folder, and at the port either an etcd or the agent itself."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Sequence
from typing import Any

from torchetcd._quorum.answering import Answerer
from torchetcd._quorum.counts import Counts
from torchetcd._quorum.decisions import Own
from torchetcd._quorum.entries import Entries, Entry
from torchetcd._quorum.folder import Folder
from torchetcd._quorum.material import Material
from torchetcd._quorum.member import Member
from torchetcd._quorum.places import listen
from torchetcd._rendezvous.local_address import host_name


class Seat:
    """The entry of this agent."""

    def __init__(  # noqa: PLR0913, PLR0917 - what an entry has
        self,
        entries: Entries,
        entry: Entry,
        token: str,
        folder: Folder,
        material: Material | None,
        counts: Counts,
    ) -> None:
        """Take what belongs to it; `answer` takes the port.

        Args:
            entries: All entries.
            entry: This one.
            token: The name of the quorum.
            folder: Where the data of its member is.
            material: The certificates, if there is a secret.
            counts: What is counted for metrics.
        """
        self.counts = counts
        self.entries, self.entry, self.token, self._folder = entries, entry, token, folder
        self._tls = material.of_server() if material else None
        self._member = Member(entries, entry, token, material)
        self._answerer: Answerer | None = None
        self.peer_url = entry.peer_url(entries.scheme)
        self.cluster = entries.cluster_id(token)
        #: The member that this agent has data of, or has added.
        self.id = folder.member
        self.started_at = 0.0
        # The keeper's thread may be about to start something when another one gives the entry up.
        self._lock = threading.Lock()
        self._given_up = False
        #: Whether this agent has heard of the quorum. An earlier agent may have been of an earlier job.
        self._heard = False

    @property
    def is_first(self) -> bool:
        """Whether it is an entry of a first member."""
        return self.entry in self.entries.first

    @property
    def has_data(self) -> bool:
        """Whether there is data of its member. One that was added has none before it is started."""
        return self.id is not None and self._folder.member is not None

    @property
    def knows(self) -> bool:
        """Whether it, or an earlier agent here, has heard of the quorum."""
        return self._folder.knows

    def learn(self) -> None:
        """Note that there is a quorum."""
        self._heard = True
        self._folder.learn()

    @property
    def role(self) -> str:
        """What it says of itself while no member runs and nothing is known of others."""
        if self.has_data:
            return "starting"
        return "candidate" if self.knows else "fresh"

    @property
    def runs(self) -> bool:
        """Whether its etcd runs."""
        return self._member.runs

    @property
    def was_started(self) -> bool:
        """Whether its etcd was started, and has not been stopped."""
        return self._member.pid is not None

    @property
    def own(self) -> Own:
        """What decisions know of it."""
        return Own(self.peer_url, self.id, self.runs)

    def check(self) -> None:
        """See whether a member could run here.

        Raises:
            FolderError: if the disk is full.
            PortTakenError: if something else has the port for the other members.
        """
        self._folder.check_space()
        listen(self.entry.host, self.entry.peer_port).close()

    def answer(self, role: str, gone: dict[str, float] | None = None) -> None:
        """Say at the port that there is an agent, in which role, and which members it has seen go.

        Raises:
            PortTakenError: if something else has the port.
        """
        says: dict[str, Any] = {
            "token": self.token,
            "entry": self.entry.name,
            "role": role,
            "host": host_name(),
            "gone": gone or {},
            "heard": self._heard,
        }
        with self._lock:
            if self._given_up:
                return
            if self._answerer is None:
                listening = listen(self.entry.host, self.entry.port)
                self._answerer = Answerer(listening, self._tls, says)
            self._answerer.says = says

    def _stop_answering(self) -> None:
        answerer, self._answerer = self._answerer, None
        if answerer is not None:
            answerer.close()

    def start(self, initial_cluster: Sequence[tuple[str, str]] | None = None) -> None:
        """Start its etcd; the arguments are those of `Member.start`."""
        assert self.id is not None
        with self._lock:
            if self._given_up:
                return
            self._folder.check_space()
            self._folder.keep(self.id)
            self._stop_answering()
            self._member.start(self._folder, initial_cluster)
            self.started_at = time.monotonic()
            self.counts.member_runs(True)

    def start_as_first(self) -> None:
        """Start its etcd as one of the first members."""
        self.forget()
        self.id = self.entries.first_member_id(self.entry, self.token)
        self.start()

    def stop(self, *, kill: bool = False) -> None:
        """End its etcd."""
        self.counts.member_runs(False)
        self._member.stop(kill=kill)

    def forget(self) -> None:
        """Delete data that is of no use any more."""
        with self._lock:
            if not self._given_up:
                self._folder.clear()
        self.id = None

    def in_use(self) -> None:
        """Note that the data is of now."""
        self._folder.in_use()

    def last_words(self) -> str:
        """Return what its etcd has logged last, without the time."""
        last = (self._member.tail().splitlines() or ["it has logged nothing"])[-1]
        with contextlib.suppress(ValueError, AttributeError):
            logged = json.loads(last)
            return ": ".join(str(logged[part]) for part in ("msg", "error") if logged.get(part))
        return last

    def give_up(self, *, remove: bool) -> None:
        """End all of it for good, and delete its data if that is of no more use."""
        with self._lock:
            self._given_up = True
            self.counts.member_runs(False)
            self._stop_answering()
            # In order it would look for another leader first, which the end of a job has no use for.
            self._member.stop(kill=remove)
            self._folder.close(remove=remove)
