"""An entry that its agent has given up stays so, whatever its keeper was about to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.quorum import free_ports
from torchetcd._quorum.counts import Counts
from torchetcd._quorum.entries import parse_entries
from torchetcd._quorum.folder import open_folder, private_folder
from torchetcd._quorum.places import listen
from torchetcd._quorum.seat import Seat

pytestmark = pytest.mark.needs_etcd


def test_nothing_is_started_afterwards(tmp_path: Path) -> None:
    """The keeper's thread may wait for an answer while the agent ends."""
    (port,) = free_ports(1)
    entries = parse_entries(f"job://127.0.0.1:{port}", 1)
    folder = open_folder(private_folder(str(tmp_path)), "entry")
    assert folder is not None
    seat = Seat(entries, entries.all[0], "token", folder, None, Counts("run", 1))
    seat.answer("fresh")
    seat.give_up(remove=False)
    seat.start_as_first()
    seat.answer("starting")
    runs = seat.runs
    seat.stop(kill=True)
    assert not runs
    listen("127.0.0.1", port).close()
