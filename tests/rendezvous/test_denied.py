"""Nodes that an operator does not want in a run, and a closed run that an operator opens again."""

from __future__ import annotations

import json
import os

import pytest

from support.operators import BY, REASON, allow, deny, members, operate, reopen, run_lease
from support.processes.nodes import Node, NodeError, Run, check_agreement, join_all
from support.waiting import eventually

HOST = os.uname().nodename


def _is_denied(node: Node, *names: str) -> None:
    """The node's barrier ends with an error that says by whom, why and how to undo it."""
    with pytest.raises(NodeError, match="RendezvousDeniedError") as raised:
        node.finish(60)
    text = str(raised.value)
    assert all(
        part in text for part in [*names, BY, REASON, f"(pid {node.pid})", "/rdzv/head/denied/"]
    )


def _leaves_without_closing(run: Run, node: Node) -> None:
    assert node.call("shutdown") is False
    assert run.control()["state"] != "closed"


class TestMembers:
    @pytest.mark.parametrize("kind", ["host", "node_id", "node"])
    def test_a_member_is_told_and_let_in_again(self, run: Run, kind: str) -> None:
        node = run.node(1, 1, keep_alive_ttl=60, node_id="left")
        join_all([node])
        name = {"host": HOST, "node_id": "left", "node": members(run)[node.pid]}[kind]
        deny(run, name)
        assert node.call("await_waiting", 30) == 1
        node.start("join")
        _is_denied(node, f"'{name}'")
        # It has given its place up.
        eventually(lambda: not run.keys("/rdzv/round/1/member"), 30)
        # It stays out for as long as it is denied.
        node.start("join")
        _is_denied(node, f"'{name}'")
        _leaves_without_closing(run, node)
        allow(run, name)
        assert node.call("join", timeout=60).world == 1
        assert node.call("shutdown") is True
        assert run.control()["state"] == "closed"

    def test_the_others_go_on_without_it(self, run: Run) -> None:
        nodes = run.nodes(3, 2, 3, keep_alive_ttl=60)
        join_all(nodes)
        *others, denied = nodes
        deny(run, members(run)[denied.pid])
        assert denied.call("await_waiting", 30) == 1
        assert others[0].call("waiting") == 0
        denied.start("join")
        _is_denied(denied)
        for node in others:
            assert node.call("await_waiting", 30) == 1
        check_agreement(join_all(others))
        _leaves_without_closing(run, denied)

    def test_a_node_whose_lease_is_taken_as_well(self, run: Run) -> None:
        """What `evict` does: it does not come back as another node."""
        node = run.node(1, 1, keep_alive_ttl=3)
        join_all([node])
        name = members(run)[node.pid]
        deny(run, name)
        run.client._native.lease_revoke(int(name, 16))
        assert node.call("await_waiting", 30) == 1
        node.start("join")
        _is_denied(node, name)


class TestBarrier:
    def test_a_node_that_joins_is_told_at_once(self, run: Run) -> None:
        node = run.node(2, 2, keep_alive_ttl=60, node_id="left")
        node.start("join")
        run.await_joined(1)
        deny(run, "left")
        _is_denied(node, "its node_id 'left'")
        eventually(lambda: not run.keys("/rdzv/round/1/join"), 30)
        _leaves_without_closing(run, node)

    def test_a_spare_is_told_at_once(self, run: Run) -> None:
        join_all([run.node(1, 1)])
        spare = run.node(1, 1, keep_alive_ttl=60, node_id="spare")
        spare.start("join")
        run.await_waiting(1)
        deny(run, "spare")
        _is_denied(spare, "spare")
        eventually(lambda: not run.keys("/rdzv/round/1/waiting"), 30)

    def test_the_coordinator_does_not_count_it(self, run: Run) -> None:
        """Also where it does not look itself, as an older version does not."""
        first, second = run.nodes(2, 2, 2, last_call_timeout=300)
        first.start("join")
        run.await_joined(1)
        deny(run, "bad")
        lease = run.client._native.lease_grant(600)
        join = {"v": 1, "host": "bad", "pid": 1, "master_addr": "x", "master_port": 1}
        key = f"{run.path}/rdzv/round/1/join/{lease:016x}".encode()
        operate(run, ("put", key, json.dumps(join).encode(), lease))
        second.start("join")
        check_agreement([first.finish(60), second.finish(60)])
        run.client._native.lease_revoke(lease)

    def test_what_cannot_be_read_denies_nobody(self, run: Run) -> None:
        nodes = run.nodes(2, 2, 2)
        nodes[0].start("join")
        run.await_joined(1)
        lease = run_lease(run)
        for name in (HOST, "%", "%zz", "a/b", "x" * 5000):
            operate(run, ("put", f"{run.path}/rdzv/head/denied/{name}".encode(), b"no JSON", lease))
        nodes[1].start("join")
        check_agreement([node.finish(60) for node in nodes])
        # Without who and why it counts.
        operate(run, ("put", f"{run.path}/rdzv/head/denied/{HOST}".encode(), b"{}", lease))
        for node in nodes:
            assert node.call("await_waiting", 30) == 1
        with pytest.raises(NodeError, match="was denied by somebody unknown: no reason given"):
            nodes[0].call("join")


class TestReopen:
    def test_members_of_the_closed_world_form_the_next_one(self, run: Run) -> None:
        nodes = run.nodes(3, keep_alive_ttl=60)
        join_all(nodes)
        nodes[0].call("store_set", "key", "value")
        nodes[1].call("set_closed")
        for node in nodes:
            eventually(lambda node=node: node.call("is_closed"), 30)
            assert node.call("waiting") == 0
        with pytest.raises(NodeError, match="RendezvousClosedError"):
            nodes[0].call("join")
        assert reopen(run)
        for node in nodes:
            eventually(lambda node=node: not node.call("is_closed"), 30)
        # Who was told that it was closed has left.
        for node in nodes[1:]:
            assert node.call("waiting") == 1
        places = join_all(nodes)
        assert [place.world for place in places] == [3] * 3
        control = run.control()
        assert (control["round"], control["state"]) == (2, "final")
        assert control["why"] == f"reopened by {BY}: {REASON}"
        assert control["opened_by"] == BY
        # As after any other round: the coordinator tidies up when all have their ranks.
        eventually(lambda: not run.keys("/rdzv/round/1") and not run.keys("/rdzv/v_1"), 30)
        assert len(run.keys("/rdzv/history")) == 2

    def test_a_round_that_was_never_complete(self, run: Run) -> None:
        nodes = run.nodes(2, keep_alive_ttl=60)
        nodes[0].start("join")
        run.await_joined(1)
        nodes[1].call("set_closed")
        with pytest.raises(NodeError, match="RendezvousClosedError"):
            nodes[0].finish()
        for round_ in (2, 3):
            assert reopen(run)
            for node in nodes:
                eventually(lambda node=node: not node.call("is_closed"), 30)
            join_all(nodes)
            assert run.control()["round"] == round_
            nodes[1].call("set_closed")
            eventually(lambda: nodes[0].call("is_closed"), 30)
        with pytest.raises(NodeError, match="RendezvousClosedError"):
            nodes[0].call("join")

    def test_closing_again_closes_it(self, run: Run) -> None:
        nodes = run.nodes(2, keep_alive_ttl=60)
        join_all(nodes)
        nodes[0].call("set_closed")
        assert reopen(run)
        eventually(lambda: not nodes[0].call("is_closed"), 30)
        nodes[0].call("set_closed")
        assert run.control()["state"] == "closed"
        assert run.control()["round"] == 2
