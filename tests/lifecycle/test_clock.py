"""The wall clock may jump: only what people read is taken from it."""

from __future__ import annotations

import re
import uuid

import pytest

from support import ROOT
from support.processes.programs import PRELUDE, check_errors
from support.processes.zygote import Program, Zygote
from torchetcd.etcd import Client

#: Where the wall clock may be asked: for a time that is only shown.
SHOWN = {
    "src/python/rendezvous.rs": 1,  # when a run was closed
    "src/rendezvous/driver.rs": 1,  # `at` and `until` in records
    "python/torchetcd/tracing.py": 2,  # spans
    # What is known of a run is as of a time, and records that operators write have one.
    "python/torchetcd/aio/_changes.py": 2,
    "python/torchetcd/aio/_operations.py": 3,
    "python/torchetcd/aio/_reading.py": 3,
    "python/torchetcd/_rendezvous/waits.py": 1,
    "python/torchetcd/aio/_history.py": 1,
    "python/torchetcd/aio/_watching.py": 1,
    # Of a quorum: clocks that are compared, since when a member is gone, and data of an earlier job.
    "python/torchetcd/_quorum/answering.py": 1,
    "python/torchetcd/_quorum/folder.py": 2,
    "python/torchetcd/_quorum/seen.py": 2,
    "python/torchetcd/_quorum/surroundings.py": 1,
    "python/torchetcd/_quorum/view.py": 1,
    "python/torchetcd/cli/quorum_news.py": 2,  # when something was seen
    "python/torchetcd/cli/doctor/probes.py": 1,  # whether records are from the future
    "python/torchetcd/etcd/_results.py": 1,  # when a key will expire
}
WALL_CLOCK = re.compile(
    r"SystemTime::now|\bOffsetDateTime\b|\bUtc::now|CLOCK_REALTIME"
    r"|\btime\.time(_ns)?\(|\bdatetime\.(now|utcnow|today)\(|\btime\.(gmtime|localtime|ctime)\("
)


def test_nothing_is_timed_by_it() -> None:
    found: dict[str, int] = {}
    for folder, kind in (("src", "*.rs"), ("python", "*.py")):
        for path in sorted(ROOT.joinpath(folder).rglob(kind)):
            # The simulator takes new seeds from it, which no node runs.
            if "sim" in path.parts:
                continue
            if count := len(WALL_CLOCK.findall(path.read_text())):
                found[path.relative_to(ROOT).as_posix()] = count
    assert found == SHOWN


@pytest.mark.slow(15)
@pytest.mark.parametrize("hours", [-24, 24])
def test_a_node_whose_clock_jumps(hours: int, zygote: Zygote, client: Client) -> None:
    """Python's clock: in the barrier, as a member for longer than its lease, and in waits."""
    source = f"""{PRELUDE}
import datetime
real, jumped = time.time, 0
time.time = lambda: real() + jumped
handler = new_handler(1)
for turn in range(2):
    jumped = turn * {hours} * 3600
    began = time.monotonic()
    info = handler.next_rendezvous()
    assert (info.rank, info.world_size) == (0, 1)
    began = time.monotonic()
    try:
        info.store.wait(["never"], timedelta(seconds=0.3))
    except LookupError:
        assert 0.25 < time.monotonic() - began < 30
    else:
        raise AssertionError("a key that nobody wrote")
jumped = 0
# Longer than its lease of two seconds.
ends = time.monotonic() + 3
while time.monotonic() < ends:
    jumped = {hours} * 3600 - jumped
    assert handler.num_nodes_waiting() == 0
    time.sleep(0.05)
assert handler.shutdown()
say("done")
"""
    program = Program(zygote, source, client.port, uuid.uuid4().hex, 2)
    assert program.line() == "done"
    code, errors = program.end()
    assert code == 0, errors
    check_errors(errors)
