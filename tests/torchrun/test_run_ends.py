"""Who ends a run, how it says that it ended, and what agents do that come later."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.operators import describe
from support.processes.agents import PATIENCE_S, Job
from support.processes.nodes import TTL, NodeError, Run, join_all
from torchetcd import aio
from torchetcd.diagnosis import explain

HOST = os.uname().nodename

# Trains until a file is there, and ends as the file says.
WAITS = """
import os, sys, time
print("trains", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
said = open(sys.argv[1]).read()
if said:
    raise ValueError(said)
"""


@pytest.fixture
def job(run: Run, tmp_path: Path) -> Iterator[Job]:
    made = Job(run, tmp_path)
    yield made
    made.end()


def described(run: Run) -> aio.Run:
    return asyncio.run(describe(run))


class TestWhoCloses:
    def test_a_member(self, run: Run) -> None:
        join_all(nodes := run.nodes(2))
        assert nodes[1].call("shutdown") is True
        closed = run.control()
        assert closed["state"] == "closed"
        assert closed["ended"] == {"result": "succeeded", "text": "the job succeeded"}
        assert (closed["last"]["round"], closed["last"]["world"]) == (1, 2)

    def test_a_member_while_another_one_begins_anew(self, run: Run) -> None:
        """Its workers had succeeded when those of the other one failed."""
        join_all(nodes := run.nodes(2))
        nodes[0].start("join")
        nodes[1].call("await_waiting", 30)
        assert nodes[1].call("shutdown") is True
        ended = run.control()["ended"]
        assert ended["result"] == "failed"
        assert f"the workers of {HOST} succeeded, but not all: round 1 is over" in ended["text"]
        with pytest.raises(NodeError, match="RendezvousClosedError"):
            nodes[0].finish()

    def test_an_operator_says_no_ending(self, run: Run) -> None:
        join_all(nodes := run.nodes(2))
        nodes[1].call("set_closed")
        assert "ended" not in run.control()
        assert described(run).closed.result is None

    def test_a_spare_has_no_deadline(self, run: Run) -> None:
        members = run.nodes(2, 2, 2, keep_alive_ttl=TTL)
        join_all(members)
        spare = run.node(2, 2, join_timeout=2)
        spare.start("join")
        run.await_waiting(1)
        time.sleep(4)
        assert spare.busy()
        assert run.control()["state"] == "final"
        # Its time begins when there is a place.
        members[0].kill()
        members[1].call("await_waiting", 30)
        members[1].start("join")
        assert spare.finish().world == members[1].finish().world == 2

    def test_a_node_that_gives_up_leaves_the_run_open(self, run: Run) -> None:
        """A slow start: those that came later wait on in the same round."""
        early, late = run.node(3, 3, join_timeout=2), run.node(3, 3)
        early.start("join")
        run.await_joined(1)
        late.start("join")
        with pytest.raises(NodeError, match="RendezvousTimeoutError"):
            early.finish()
        assert early.call("shutdown") is False
        assert run.control()["state"] == "open"
        assert late.busy()
        more = run.nodes(2, 3, 3)
        for node in more:
            node.start("join")
        assert [node.finish().world for node in (late, *more)] == [3, 3, 3]

    def test_a_member_of_an_earlier_world(self, run: Run) -> None:
        """It froze, was replaced, and ends when it wakes up."""
        nodes = run.nodes(3, 2, 3)
        join_all(nodes)
        (frozen,) = [node for node in described(run).members if node.pid == nodes[2].pid]
        run.client._native.lease_revoke(int(frozen.id, 16))
        for node in nodes[:2]:
            node.call("await_waiting", 30)
        join_all(nodes[:2])
        assert nodes[2].call("shutdown") is False
        assert run.control()["state"] == "final"
        assert nodes[0].call("waiting") == 0


class TestComingToAClosedRun:
    def test_the_error_names_the_ways_on(self, run: Run) -> None:
        (node,) = run.nodes(1, run_ttl=3600)
        node.call("join")
        node.call("shutdown")
        with pytest.raises(
            NodeError, match=r"^RendezvousClosedError: The run .* is closed\."
        ) as raised:
            run.node(1, 1).call("join")
        text = str(raised.value)
        for part in (
            "--rdzv-id", f"`torchetcd reopen {run.run_id} --reason ...`", "if_closed=reopen",
            "1 h after its last agent has gone", f"by {HOST} (pid {node.pid})", "UTC, ", " ago",
            "the job succeeded",
        ):  # fmt: skip
            assert part in text

    def test_reopen(self, run: Run) -> None:
        (node,) = run.nodes(1)
        node.call("join")
        node.call("shutdown")
        assert run.node(1, 1, if_closed="reopen").call("join").world == 1
        control = run.control()
        assert (control["round"], control["state"], control["reopened"]) == (2, "final", 1)

    def test_reopen_waits_for_the_last_world(self, run: Run) -> None:
        join_all(nodes := run.nodes(2, keep_alive_ttl=TTL))
        nodes[0].call("shutdown")
        again = run.node(1, 1, if_closed="reopen")
        again.start("join")
        time.sleep(2)
        assert again.busy()
        assert run.control()["state"] == "closed"
        nodes[1].kill()
        assert again.finish(30).world == 1

    def test_whoever_is_in_it_does_not_reopen(self, run: Run) -> None:
        join_all(nodes := run.nodes(2, if_closed="reopen"))
        nodes[0].call("shutdown")
        with pytest.raises(NodeError, match="RendezvousClosedError"):
            nodes[1].call("join")
        assert run.control()["state"] == "closed"

    def test_a_spare_of_a_job_that_succeeded(self, run: Run) -> None:
        member, spare = run.nodes(2, 1, 1)
        member.call("join")
        spare.start("join")
        run.await_waiting(1)
        member.call("shutdown")
        with pytest.raises(NodeError, match="^RendezvousOverError: .* has succeeded"):
            spare.finish()
        assert spare.call("shutdown") is True

    def test_a_spare_of_a_run_that_was_closed_by_hand(self, run: Run) -> None:
        member, spare = run.nodes(2, 1, 1)
        member.call("join")
        spare.start("join")
        run.await_waiting(1)
        member.call("set_closed")
        with pytest.raises(NodeError, match="^RendezvousClosedError"):
            spare.finish()


class TestTorchrun:
    def test_a_job_that_succeeds(self, job: Job, tmp_path: Path) -> None:
        """Its spare ends well too; the same command again is refused, or goes on where it may."""
        script, stop = job.script(WAITS), tmp_path / "stop"
        member = job.agent("1", script, stop)
        member.await_text("trains")
        spare = job.agent("1", script, stop)
        job.run.await_waiting(1, timeout=PATIENCE_S)
        stop.touch()
        member.end()
        assert "has succeeded, and this node was a spare of it" in spare.end()
        assert ": the job succeeded. Its last complete round" in explain(described(job.run))
        refused = job.agent("1", script, stop).end(code=1)
        assert (
            "the job succeeded (shutdown() was called). To go on: start the job with another --rdzv-id"
            in refused
        )
        assert "trains" in job.agent("1", script, stop, conf=",if_closed=reopen").end()

    def test_a_job_that_fails(self, job: Job, tmp_path: Path) -> None:
        script, stop = job.script(WAITS), tmp_path / "stop"
        member = job.agent("1", script, stop, max_restarts=0)
        member.await_text("trains")
        spare = job.agent("1", script, stop)
        job.run.await_waiting(1, timeout=PATIENCE_S)
        stop.write_text("no")
        member.end(code=1)
        how = f"worker.py failed on host {HOST}, rank 0, exit code 1"
        assert how in spare.end(code=1)
        assert f"{how}. Its last complete round" in explain(described(job.run))

    def test_the_error_of_the_worker(self, job: Job, tmp_path: Path) -> None:
        record = "from torch.distributed.elastic.multiprocessing.errors import record\n"
        body = "".join(f"    {line}\n" for line in WAITS.strip().splitlines())
        script = job.script(f"{record}@record\ndef main():\n{body}main()\n")
        stop = tmp_path / "stop"
        stop.write_text("no such file")
        job.agent("1", script, stop, max_restarts=0).end(code=1)
        text = described(job.run).closed.text
        assert (
            text
            == f"worker.py failed on host {HOST}, rank 0, exit code 1: ValueError: no such file"
        )
