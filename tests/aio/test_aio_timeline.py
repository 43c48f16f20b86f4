"""`timeline`: what happened in a run, as far as etcd's history tells."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest

from support.records import Written, connected
from support.stores import compact
from torchetcd import aio


def timeline(written: Written) -> aio.Timeline:
    async def ask() -> aio.Timeline:
        async with connected(written.client) as client:
            return await client.timeline(written.run_id)

    found = asyncio.run(ask())
    json.dumps(dataclasses.asdict(found))
    return found


def first_rounds(written: Written) -> None:
    """A first round of two nodes, of which one is lost, and the second, which is not complete."""
    written.put("head/control", written.control(1, "open", at=50))
    a, b = written.join(1, "a", at=55), written.join(1, "b", at=60)
    written.complete(1, [a, b])
    written.end(b)
    written.reopen(2, 1, why="b is gone", at=120)


class TestTimeline:
    def test_what_happened_and_when(self, written: Written) -> None:
        first_rounds(written)
        found = timeline(written)
        assert found.complete
        assert found.problem is None
        assert [(event.kind, event.at) for event in found.events] == [
            ("opened", 50), ("joined", 55), ("joined", 60), ("final", 100), ("lost", None), ("opened", 120),
        ]  # fmt: skip
        lost = found.events[4]
        assert (lost.earliest, lost.latest, lost.round) == (100, 120, 1)
        assert lost.node is not None
        assert (lost.node.host, lost.node.rank) == ("b", 1)
        assert found.events[-1].text == "round 2 was opened by a (pid 1): b is gone"
        revisions = [event.revision or 0 for event in found.events]
        assert 0 not in revisions
        assert revisions == sorted(revisions)
        assert found.run is not None
        assert (found.run.state, found.run.round) == ("open", 2)

    def test_what_is_compacted_is_told_by_the_records(self, written: Written) -> None:
        first_rounds(written)
        compact(written.client)
        last = written.join(2, "c", at=130)
        found = timeline(written)
        assert not found.complete
        assert f"before revision {found.complete_from} is compacted" in (found.problem or "")
        assert [(event.kind, event.at, event.round) for event in found.events] == [
            ("opened", 50, 1), ("final", 100, 1), ("joined", 130, 2),
        ]  # fmt: skip
        assert found.events[0].revision is None
        assert found.events[2].node is not None
        assert found.events[2].node.id == last
        # Of what goes that was there already it is known what it was.
        written.end(last)
        compact(written.client)
        written.reopen(3, 1)
        written.put("head/control", written.control(3, "closed", by="ann", reason="x", at=300))
        assert [event.kind for event in timeline(written).events] == [
            "opened",
            "final",
            "opened",
            "closed",
        ]

    def test_a_run_that_began_after_the_compaction_is_complete(self, written: Written) -> None:
        compact(written.client)
        first_rounds(written)
        found = timeline(written)
        assert found.complete
        assert len(found.events) == 6

    def test_a_run_of_which_nothing_is_left(self, written: Written) -> None:
        async def purge() -> None:
            async with connected(written.client) as client:
                await client.purge(written.run_id, force=True)

        first_rounds(written)
        asyncio.run(purge())
        found = timeline(written)
        assert found.run is None
        assert found.events[-1].kind == "gone"
        compact(written.client)
        with pytest.raises(aio.RunNotFoundError):
            timeline(written)

    def test_a_long_history(self, written: Written) -> None:
        """More revisions than etcd sends at once, the last of which leave nothing."""
        written.put("head/control", written.control(1, "open"))
        node = written.join(1, "a")
        for _ in range(1200):
            written.put(f"round/1/join/{node}", {"v": 1, **written.nodes[node]})
        written.end(written.join(1, "b"))
        kinds = [event.kind for event in timeline(written).events]
        assert kinds == ["opened", "joined", "joined", "left"]

    def test_every_kind_of_event(self, written: Written) -> None:
        first_rounds(written)
        written.wait(1, "w")
        clock = written.client._native.lease_grant(60)
        written.put("round/2/last_call", {"lease": clock})
        written.write({"round/2/last_call": None})
        written.put("head/denied/x", {"by": "ann", "reason": "disk", "at": 130})
        written.write({"head/denied/x": None})
        written.end(written.join(2, "d"))
        written.put("head/control", written.control(2, "closed", by="ann", reason="enough", at=140))
        written.put(
            "head/control", written.control(3, "open", by="ann", why="reopened by ann: x", at=150)
        )
        events = timeline(written).events[6:]
        assert [event.kind for event in events] == [
            "waiting", "last call", "last call", "denied", "allowed", "joined", "left", "closed", "reopened",
        ]  # fmt: skip
        assert [event.text for event in events][-2:] == [
            "the run was closed by ann: enough",
            "round 3 was reopened by ann: x",
        ]
