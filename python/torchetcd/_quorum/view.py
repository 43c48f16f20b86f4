"""What one agent knows of the members of its quorum: etcd's list, who runs, and since when one is gone."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING

from torchetcd._quorum.asking import ask_member
from torchetcd._quorum.decisions import Seen
from torchetcd._quorum.entries import Entries
from torchetcd._quorum.etcd_keys import Keys, Record

if TYPE_CHECKING:
    from torchetcd._torchetcd import Client
    from torchetcd._torchetcd import Member as ListedMember

#: Of members that are gone, and of those that nobody has spoken for.
_ASK_AGAIN_S = 5.0


class View:
    """What is known. It is read again by `look`."""

    def __init__(
        self, native: Client, entries: Entries, cluster: int, tls: ssl.SSLContext | None
    ) -> None:
        """Take a client of the quorum, and what is needed to ask its members."""
        self._native, self._entries, self._cluster, self._tls = native, entries, cluster, tls
        self.keys = Keys(native, 10.0)
        self.revision = 0
        self.listed: list[ListedMember] = []
        self.records: list[Record] = []
        #: The agent that changes the list of members.
        self.changer: str | None = None
        self._gone_since: dict[int, float] = {}
        #: The same by the clock, for people.
        self._gone_at: dict[int, float] = {}
        self._ask_at: dict[int, float] = {}

    def look(self, timeout_s: float = 10.0) -> None:
        """Ask the quorum.

        Raises:
            EtcdException: if there is no majority of members.
        """
        self.listed = self._native.member_list(timeout_s)
        self.revision, self.records, self.changer = self.keys.read()

    def seen(self) -> list[Seen]:
        """Return the members, and since when those are gone of whom nobody says that they run."""
        spoken_for = {record.member for record in self.records}
        now = time.monotonic()
        found = []
        for number, _, peer_urls, _, is_learner in self.listed:
            peer_url = peer_urls[0] if peer_urls else ""
            if number in spoken_for or self._answers(number, peer_url, now):
                self._gone_since.pop(number, None)
                self._gone_at.pop(number, None)
                gone_s = 0.0
            else:
                gone_s = now - self._gone_since.setdefault(number, now) + 0.001
                self._gone_at.setdefault(number, time.time())
            found.append(Seen(number, peer_url, is_learner, gone_s))
        present = {member.id for member in found}
        for forgotten in self._gone_since.keys() - present:
            del self._gone_since[forgotten], self._gone_at[forgotten]
        return found

    def gone_at(self) -> dict[str, float]:
        """Return the ids of members that are gone, and at what time that was noticed."""
        return {f"{number:016x}": self._gone_at[number] for number in self._gone_since}

    def _answers(self, number: int, peer_url: str, now: float) -> bool:
        """Ask a member itself, now and then: its agent may be slow, or not be connected."""
        if now < self._ask_at.get(number, 0.0):
            return False
        entry = self._entries.of_peer_url(peer_url)
        if entry is not None and ask_member(entry, self._tls).cluster == self._cluster:
            return True
        self._ask_at[number] = time.monotonic() + _ASK_AGAIN_S
        return False

    def until(self, replace_after_s: float, longest_s: float) -> float:
        """Return the seconds after which something may have to be done, if nothing changes."""
        now = time.monotonic()
        due = [since + replace_after_s - now for since in self._gone_since.values()]
        return min([longest_s, *(max(seconds, 0.5) for seconds in due)])

    def place_of(self, member: int) -> str:
        """Return the peer URL of a member."""
        return next((urls[0] for number, _, urls, _, _ in self.listed if number == member), "")

    def is_learner(self, member: int) -> bool:
        """Return whether a member has no vote yet, as far as is known."""
        return any(number == member and learner for number, *_, learner in self.listed)

    def confirm_gone(self, number: int) -> bool:
        """Ask a member once more, before it is removed."""
        self._ask_at.pop(number, None)
        return any(member.id == number and member.gone_s > 0 for member in self.seen())
