"""Agents of several versions of the protocol in one run: which version it speaks, and who fails by name."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from support.operators import deny, describe, operate, run_lease
from support.processes.nodes import Node, NodeError, Run, join_all
from torchetcd import _torchetcd, aio
from torchetcd.aio import _records

BY_NAME = "RendezvousStateError: This run speaks version 2, this agent 1: update it"


def newer(run: Run, least: int, most: int, **config: Any) -> Node:
    node = run.node(least, most, **config)
    node.call("speak", 2)
    return node


def versions(run: Run) -> dict[str, int]:
    """The version of each record of the run."""
    # In one read: what earlier rounds left is being deleted.
    leaves = run.client.read(f"{run.path}/rdzv", recursive=True).leaves
    return {leaf.key: json.loads(leaf.value)["v"] for leaf in leaves if "/rdzv/v_" not in leaf.key}


def test_operators_know_what_agents_know() -> None:
    assert _torchetcd.protocol_version() == _records.VERSION


class TestNewerAgent:
    def test_it_speaks_the_version_of_the_run(self, run: Run) -> None:
        """It joins those that are there, coordinates them, and writes nothing that they do not know."""
        old = run.nodes(2, 2, 3, node_id=None)
        join_all(old)
        new = newer(run, 2, 3, node_id="new")
        new.start("join")
        for node in old:
            node.call("await_waiting", 30)
            node.start("join")
        places = [node.finish(60) for node in (*old, new)]
        assert [place.world for place in places] == [3, 3, 3]
        deny(run, "somebody")
        assert set(versions(run).values()) == {1}
        new.call("shutdown")
        assert run.control()["v"] == 1

    def test_a_world_of_newer_ones(self, run: Run) -> None:
        new = [newer(run, 2, 2) for _ in range(2)]
        join_all(new)
        assert set(versions(run).values()) == {2}


class TestOlderAgent:
    def test_it_fails_by_name_and_disturbs_nobody(self, run: Run) -> None:
        new = newer(run, 1, 3)
        new.call("join")
        before = run.keys()
        old = run.node(1, 3)
        for _ in range(2):
            with pytest.raises(NodeError, match=f"^{BY_NAME}.*/rdzv/head/control"):
                old.call("join")
        assert new.call("most_waiting", 2) == 0
        assert run.keys() == before

    def test_while_a_round_forms(self, run: Run) -> None:
        new, more = newer(run, 2, 2), newer(run, 2, 2)
        new.start("join")
        run.await_joined(1)
        with pytest.raises(NodeError, match=f"^{BY_NAME}"):
            run.node(2, 2).call("join")
        more.start("join")
        assert new.finish().world == more.finish().world == 2

    @pytest.mark.parametrize("closed", [False, True])
    def test_a_member_whose_run_becomes_newer(self, run: Run, closed: bool) -> None:
        """It does not train on beside a world that it does not see, whatever became of its own."""
        old = run.node(1, 1)
        old.call("join")
        record = run.control() | {"v": 2, "round": 2, "attempt": "9.9"}
        if closed:
            old.call("set_closed")
            assert old.call("is_closed")
        key = f"{run.path}/rdzv/head/control"
        operate(run, ("put", key.encode(), json.dumps(record).encode(), run_lease(run)))
        assert old.call("await_waiting", 30) == 1
        with pytest.raises(NodeError, match=f"^{BY_NAME}"):
            old.call("join")
        assert old.call("shutdown") is False
        assert run.control() == record

    def test_operators(self, run: Run) -> None:
        newer(run, 1, 1).call("join")
        described = asyncio.run(describe(run))
        assert described.state == "unreadable"
        assert "this run speaks version 2, this torchetcd 1: update" in (described.problem or "")

        async def close() -> None:
            async with aio.Client(run.client.base_uri) as client:
                await client.close_run(run.run_id, "x")

        with pytest.raises(aio.RunRecordError, match="speaks version 2"):
            asyncio.run(close())
