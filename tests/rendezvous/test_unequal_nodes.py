"""Agents of one run that are configured differently: what is in force, and that nobody restarts for it."""

from __future__ import annotations

import json

from support.processes.nodes import Run, check_agreement, join_all

# As long as an agent asks for nodes that wait, which it does every few tenths of a second.
CALM_S = 2


class TestLimits:
    def test_those_of_the_coordinator_decide(self, run: Run) -> None:
        first = run.node(2, 2)
        first.start("join")
        run.await_joined(1)
        second = run.node(1, 4)
        second.start("join")
        check_agreement([first.finish(), second.finish()])
        assert (run.control()["min"], run.control()["max"]) == (2, 2)

    def test_a_spare_with_more_room_does_not_restart_a_full_world(self, run: Run) -> None:
        """Its own limits would let it in; those of the round do not."""
        members = run.nodes(2, 2, 2)
        join_all(members)
        spare = run.node(2, 3)
        spare.start("join")
        run.await_waiting(1)
        for node in members:
            assert node.call("most_waiting", CALM_S) == 0
        assert spare.busy()
        assert run.control()["round"] == 1

    def test_a_node_with_less_room_joins_a_larger_world_once(self, run: Run) -> None:
        members = run.nodes(2, 1, 3, last_call_timeout=2)
        join_all(members)
        late = run.node(1, 2)
        late.start("join")
        for node in members:
            assert node.call("await_waiting", 30) == 1
            node.start("join")
        places = [node.finish() for node in [*members, late]]
        worlds = {place.world for place in places}
        assert len(worlds) == 1
        for node in [*members, late]:
            assert node.call("most_waiting", CALM_S) == 0
        assert run.control()["round"] == 2


class TestRankOrder:
    def test_that_of_the_coordinator_decides(self, run: Run) -> None:
        first = run.node(3, 3, rank_order="infra", infra_rank=2)
        first.start("join")
        run.await_joined(1)
        others = [run.node(3, 3, infra_rank=1), run.node(3, 3, rank_order="join", infra_rank=0)]
        for node in others:
            node.start("join")
        places = [node.finish() for node in [first, *others]]
        check_agreement(places)
        assert [place.rank for place in places] == [2, 1, 0]
        assert run.control()["rank_order"] == "infra"


class TestLeases:
    def test_the_run_is_kept_as_long_as_its_creator_said(self, run: Run) -> None:
        """The other renews that lease by what it has, and not by its own setting."""
        first = run.node(2, 2, run_ttl=300, keep_alive_ttl=10)
        first.start("join")
        run.await_joined(1)
        second = run.node(2, 2, run_ttl=7200, keep_alive_ttl=20)
        second.start("join")
        check_agreement([first.finish(), second.finish()])
        leaf = run.client.read(f"{run.path}/rdzv/head/control")
        assert json.loads(leaf.value)["run_ttl"] == 300
        assert leaf.ttl <= 300
        for node in (first, second):
            assert node.call("most_waiting", CALM_S) == 0
