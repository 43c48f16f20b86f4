"""What agents write into their quorum, under leases: who runs a member, and who changes the list."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchetcd._torchetcd import Client

#: No run has this prefix: a quorum serves one job.
PREFIX = b"/torchetcd/quorum/"
_MEMBERS = PREFIX + b"members/"
_CHANGE = PREFIX + b"change"
END = b"/torchetcd/quorum0"


class Record:
    """What one agent says of its member."""

    def __init__(self, member: int, value: bytes) -> None:
        self.member = member
        try:
            said = json.loads(value)
        except ValueError:
            said = {}
        self.said: dict[str, Any] = said if isinstance(said, dict) else {}

    @property
    def is_ending(self) -> bool:
        """Whether that agent's job has ended, so that it waits for the others only."""
        return bool(self.said.get("ending"))


def member_of(key: bytes) -> int | None:
    """Return of which member a key is the record; `None` for another key."""
    with contextlib.suppress(ValueError):
        return int(key[len(_MEMBERS) :], 16) if key.startswith(_MEMBERS) else None
    return None


class Keys:
    """The keys, by a client of the quorum."""

    def __init__(self, native: Client, timeout_s: float) -> None:
        """Take the client, and how long a call may take."""
        self._native, self._timeout_s = native, timeout_s

    def read(self) -> tuple[int, list[Record], str | None]:
        """Return the revision, what agents say of their members, and who changes the list."""
        _, revision, replies = self._native.txn(
            [], [("get", PREFIX, END, 0, False, 0)], [], self._timeout_s
        )
        records, changer = [], None
        for key, value, *_ in replies[0][0]:
            if key == _CHANGE:
                changer = value.decode(errors="replace")
            elif (member := member_of(key)) is not None:
                records.append(Record(member, value))
        return revision, records, changer

    def say(self, member: int, lease: int, said: dict[str, Any]) -> None:
        """Say that a member runs, for as long as the lease lives."""
        key = _MEMBERS + f"{member:016x}".encode()
        value = json.dumps(said, sort_keys=True).encode()
        self._native.txn([], [("put", key, value, lease)], [], self._timeout_s)

    def claim_change(self, lease: int, who: str) -> bool:
        """Ask for the key that says who changes the list; `False` if another agent has it."""
        absent = [("create", _CHANGE, "=", 0)]
        done, _, _ = self._native.txn(
            absent, [("put", _CHANGE, who.encode(), lease)], [], self._timeout_s
        )
        return done

    def watch(self, after: int, timeout_s: float) -> None:
        """Wait until something of this changes, at most for the time given."""
        self._native.watch(PREFIX, END, after + 1, timeout_s)
