"""What lies in etcd for people: when, by whom and why; who the members were; how rounds came about."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from support.processes.nodes import TTL, Run, join_all

HOST = os.uname().nodename


def _records(run: Run, path: str) -> list[dict[str, Any]]:
    return [json.loads(run.client.read(key).value) for key in run.keys(path)]


def _is_now(at: int) -> bool:
    return time.time() - 120 < at <= time.time() + 1


class TestRecords:
    def test_of_a_round(self, run: Run) -> None:
        labels = {"node_id": "n/1", "domain": "rack 1", "infra_rank": 4}
        first, second = run.node(2, 3, **labels, join_timeout=500), run.node(2, 3)
        first.start("join")
        run.await_joined(1)
        opened = run.control()
        assert opened["state"] == "open"
        assert (opened["by"], opened["why"]) == (f"{HOST} (pid {first.pid})", "the first round")
        assert _is_now(opened["at"])
        (join,) = _records(run, "/rdzv/round/1/join")
        assert join.items() >= labels.items()
        assert join["until"] == join["at"] + 500
        (coordinator,) = _records(run, "/rdzv/head/coordinator")
        assert (coordinator["min"], coordinator["max"]) == (2, 3)
        assert _is_now(coordinator["at"])
        second.start("join")
        first.finish(60)
        second.finish(60)
        final = run.control()
        assert (final["min"], final["max"], final["world"]) == (2, 3, 2)
        assert (final["opened_at"], final["opened_by"]) == (opened["at"], opened["by"])
        assert final["by"] == opened["by"]
        assert final["at"] >= final["opened_at"]
        (roster,) = _records(run, "/rdzv/round/1/roster")
        keys = run.keys("/rdzv/round/1/member")
        nodes = {key.rsplit("/", 1)[1] for key in keys}
        assert [entry["rank"] for entry in roster["members"]] == [0, 1]
        assert {entry["node"] for entry in roster["members"]} == nodes
        assert [entry["pid"] for entry in roster["members"]] == [first.pid, second.pid]
        assert roster["members"][0]["node_id"] == "n/1"
        assert {entry["addr"] for entry in roster["members"]} == {"127.0.0.1"}
        ((holder),) = run.keys("/rdzv/node")
        assert holder.endswith("/rdzv/node/n%2F1")
        late = run.node(2, 2, domain="rack 1")
        late.start("join")
        run.await_waiting(1)
        (waiting,) = _records(run, "/rdzv/round/1/waiting")
        assert (waiting["pid"], waiting["domain"]) == (late.pid, "rack 1")
        assert _is_now(waiting["at"])
        assert waiting["until"] == waiting["at"] + 60

    def test_why_rounds_were_opened(self, run: Run) -> None:
        nodes = run.nodes(3, 1, 3, keep_alive_ttl=TTL, last_call_timeout=0)
        join_all(nodes[:1])
        asked = f"{HOST} (pid {nodes[0].pid}) asked for a new round"
        nodes[0].call("join")
        for node in nodes[1:]:
            node.start("join")
        run.await_waiting(2, 2)
        assert nodes[0].call("await_waiting", 30) in {1, 2}
        # With this last call it need not be with both of them.
        nodes[0].call("join")
        rounds = sorted(_records(run, "/rdzv/history"), key=lambda record: record["round"])
        assert [record["round"] for record in rounds] == list(range(1, len(rounds) + 1))
        assert [record["why"] for record in rounds[:2]] == ["the first round", asked]
        assert "waiting" in rounds[2]["why"]
        assert all(_is_now(record["at"]) for record in rounds)
        assert [record["world"] for record in rounds[:2]] == [1, 1]

    def test_a_loss_is_why(self, run: Run) -> None:
        nodes = run.nodes(2, 1, 2, keep_alive_ttl=TTL, last_call_timeout=1)
        places = join_all(nodes)
        nodes[1].kill()
        nodes[0].call("await_waiting", 30)
        nodes[0].call("join")
        lost = f"rank {places[1].rank} on {HOST} (pid {nodes[1].pid}) is gone"
        assert run.control()["why"] == lost

    def test_the_last_64_rounds_are_remembered(self, run: Run) -> None:
        node = run.node(1, 1)
        for _ in range(66):
            node.call("join")
        kept = [int(key.rsplit("/", 1)[1], 16) for key in run.keys("/rdzv/history")]
        assert sorted(kept) == list(range(3, 67))
