"""An agent that is started again with the same `node_id` takes its own place, at once."""

from __future__ import annotations

import asyncio

import pytest

from support.operators import describe, members
from support.processes.nodes import Node, NodeError, Run, check_agreement, join_all
from support.waiting import eventually

# Nothing in these tests may wait for a lease to run out.
LONG = {"keep_alive_ttl": 90, "last_call_timeout": 300}
IDS = ("a", "b", "c")


def _node(run: Run, count: int, node_id: str) -> Node:
    return run.node(count, count, node_id=node_id, **LONG)


def _holders(run: Run) -> list[str]:
    return [key.rsplit("/", 1)[1] for key in run.keys("/rdzv/node")]


def _is_replaced(node: Node, command: str, by: Node) -> None:
    with pytest.raises(NodeError, match="RendezvousStateError") as raised:
        node.call(command, timeout=60)
    text = str(raised.value)
    assert f"(pid {by.pid}), has taken its node_id" in text
    assert f"(pid {node.pid}) is not in the run any more" in text


class TestRestart:
    def test_a_member_that_was_killed_is_back_at_once(self, run: Run) -> None:
        nodes = [_node(run, 3, node_id) for node_id in IDS]
        ranks = [place.rank for place in join_all(nodes)]
        assert sorted(_holders(run)) == list(IDS)
        nodes[1].kill()
        again = _node(run, 3, IDS[1])
        again.start("join")
        for node in (nodes[0], nodes[2]):
            assert node.call("await_waiting", 60) >= 1
            node.start("join")
        places = [nodes[0].finish(60), again.finish(60), nodes[2].finish(60)]
        check_agreement(places)
        assert [place.rank for place in places] == ranks
        assert sorted(_holders(run)) == list(IDS)
        # The name's own key tells the one that was replaced: operators find no key that they do not know.
        described = asyncio.run(describe(run))
        assert described.problem is None
        assert {node.node_id: node.rank for node in described.members} == dict(
            zip(IDS, ranks, strict=True)
        )

    def test_two_that_were_killed_have_their_own_ranks(self, run: Run) -> None:
        nodes = [_node(run, 3, node_id) for node_id in IDS]
        ranks = [place.rank for place in join_all(nodes)]
        for node in nodes[1:]:
            node.kill()
        # In the other order.
        others = [_node(run, 3, node_id) for node_id in (IDS[2], IDS[1])]
        for count, node in enumerate(others, 1):
            node.start("join")
            run.await_waiting(count)
        assert nodes[0].call("await_waiting", 60) >= 1
        places = [nodes[0].call("join", timeout=60), others[1].finish(60), others[0].finish(60)]
        assert [place.rank for place in places] == ranks

    def test_one_that_was_killed_in_the_barrier_is_not_counted(self, run: Run) -> None:
        killed = _node(run, 2, "a")
        killed.start("join")
        run.await_joined(1)
        (join,) = run.keys("/rdzv/round/1/join")
        killed.kill()
        again, other = _node(run, 2, "a"), _node(run, 2, "b")
        again.start("join")
        eventually(lambda: run.keys("/rdzv/round/1/join") not in ([], [join]), 30)
        eventually(lambda: len(run.keys("/rdzv/round/1/join")) == 1, 30)
        assert again.busy()
        other.start("join")
        check_agreement([again.finish(60), other.finish(60)])

    def test_who_only_lost_its_lease_goes_on(self, run: Run) -> None:
        node = run.node(1, 1, node_id="a", keep_alive_ttl=3)
        join_all([node])
        run.client._native.lease_revoke(int(members(run)[node.pid], 16))
        assert node.call("await_waiting", 30) == 1
        assert node.call("join", timeout=60).world == 1
        assert _holders(run) == ["a"]
        assert node.call("shutdown") is True
        assert run.control()["state"] == "closed"


class TestTwoAgents:
    def test_the_one_that_was_there_fails_and_does_not_close_the_run(self, run: Run) -> None:
        old, new = _node(run, 1, "a"), _node(run, 1, "a")
        join_all([old])
        new.start("join")
        assert old.call("await_waiting", 60) == 1
        _is_replaced(old, "set_closed", new)
        _is_replaced(old, "join", new)
        assert new.finish(60).rank == 0
        # It does not fight back, however often its agent tries.
        _is_replaced(old, "join", new)
        assert old.call("shutdown") is False
        assert run.control()["state"] == "final"
        assert new.call("waiting") == 0
        assert new.call("shutdown") is True

    def test_in_the_barrier(self, run: Run) -> None:
        old, new, other = _node(run, 2, "a"), _node(run, 2, "a"), _node(run, 2, "b")
        old.start("join")
        run.await_joined(1)
        new.start("join")
        with pytest.raises(NodeError, match=f"RendezvousStateError.*pid {new.pid}"):
            old.finish(60)
        other.start("join")
        check_agreement([new.finish(60), other.finish(60)])

    def test_the_place_is_free_when_the_other_one_has_gone(self, run: Run) -> None:
        old, new = _node(run, 1, "a"), _node(run, 1, "a")
        join_all([old])
        new.start("join")
        assert old.call("await_waiting", 60) == 1
        _is_replaced(old, "join", new)
        new.finish(60)
        new.kill()
        run.client._native.lease_revoke(int(members(run, 2)[new.pid], 16))
        assert not _holders(run)
        assert old.call("join", timeout=60).rank == 0
