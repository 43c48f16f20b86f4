"""Runs as `describe` and `list_runs` see them, whatever is written there."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import uuid
from typing import Any

import pytest

from support.etcd.metrics import metric
from support.records import Written, connected
from torchetcd import aio
from torchetcd.etcd import Client
from torchetcd.etcd_server import EtcdServer


def describe(written: Written, **options: Any) -> aio.Run:
    async def ask() -> aio.Run:
        async with connected(written.client) as client:
            return await client.describe(written.run_id, written.prefix, **options)

    run = asyncio.run(ask())
    # What it holds goes into JSON.
    json.dumps(dataclasses.asdict(run))
    return run


def hosts(nodes: tuple[aio.Node, ...]) -> list[str]:
    return [node.host for node in nodes]


class TestStates:
    def test_a_run_that_is_not_there(self, client: Client, run_id: str) -> None:
        async def use() -> None:
            async with connected(client) as made:
                with pytest.raises(aio.RunNotFoundError, match=run_id):
                    await made.describe(run_id)
                with pytest.raises(ValueError, match="run id"):
                    await made.describe("")

        asyncio.run(use())

    def test_an_open_round(self, written: Written) -> None:
        first = written.join(1, "a", node_id="n-a", domain="rack 1")
        written.put("head/control", written.control(1, "open", by="a (pid 1)", at=7))
        told = {"joined": 1, "last_call": False, "min": 2, "max": 3}
        written.put("head/coordinator", written.nodes[first] | told, int(first, 16))
        written.join(1, "b")
        run = describe(written)
        assert (run.state, run.round, run.world, run.min_nodes, run.max_nodes) == (
            "open",
            1,
            None,
            2,
            3,
        )
        assert (run.opened_at, run.opened_by, run.why) == (7, "a (pid 1)", "the first round")
        assert hosts(run.joined) == ["a", "b"]
        assert run.joined[0] == aio.Node(
            id=first, host="a", pid=1, node_id="n-a", domain="rack 1", rank=None, address="a",
            since=10, until=20, lease_left_s=None, lease_ttl_s=None, state="joined",
        )  # fmt: skip
        assert run.coordinator == run.joined[0]
        assert run.last_call_left_s is None
        assert run.problem is None
        assert not run.members + run.waiting + run.spares + run.missing

    def test_the_last_call(self, written: Written) -> None:
        written.put("head/control", written.control(1, "open"))
        clock = written.client._native.lease_grant(40)
        written.put("round/1/last_call", {"lease": clock})
        run = describe(written)
        assert run.last_call_left_s is not None
        assert 10 < run.last_call_left_s <= 40

    def test_a_complete_round(self, written: Written) -> None:
        nodes = [written.join(1, host) for host in "abc"]
        written.complete(1, nodes[::-1], max=4)
        for host in "xyz":
            written.wait(1, host)
        run = describe(written)
        assert (run.state, run.round, run.world) == ("final", 1, 3)
        assert [(node.rank, node.host) for node in run.members] == [(0, "c"), (1, "b"), (2, "a")]
        assert [node.since for node in run.members] == [10, 10, 10]
        # There is room for one more.
        assert hosts(run.waiting) == ["x"]
        assert hosts(run.spares) == ["y", "z"]
        assert {node.state for node in run.spares} == {"spare"}
        assert (run.master_addr, run.master_port, run.completed_at) == ("h", 29500, 100)
        (past,) = run.rounds
        assert past == aio.RoundRecord(1, 3, "the first round", 50, "a (pid 1)", 100)
        assert run.joined == ()
        assert run.missing == ()

    def test_members_that_are_gone_are_named(self, written: Written) -> None:
        nodes = [written.join(1, host) for host in "abc"]
        written.complete(1, nodes)
        written.end(nodes[1])
        written.put("head/loss", {"round": 1, "member": "rank 1 on b (pid 2)"})
        run = describe(written)
        assert run.loss == "rank 1 on b (pid 2)"
        (gone,) = run.missing
        assert (gone.id, gone.host, gone.rank, gone.state, gone.alive) == (
            nodes[1],
            "b",
            1,
            "missing",
            False,
        )
        # And in the barrier that follows, also those that are alive and not back.
        written.reopen(2, 1)
        written.write({f"round/2/join/{nodes[2]}": {"v": 1, **written.nodes[nodes[2]]}})
        run = describe(written)
        assert [(node.host, node.rank, node.alive) for node in run.missing] == [
            ("a", 0, True),
            ("b", 1, False),
        ]
        assert hosts(run.joined) == ["c"]
        assert run.loss is None

    def test_an_agent_that_was_started_anew_stands_for_the_one_before(
        self, written: Written
    ) -> None:
        members = [written.join(1, "a", node_id="x"), written.join(1, "b"), written.join(1, "b")]
        written.complete(1, members)
        for node in members:
            written.end(node)
        written.reopen(2, 1)
        written.join(2, "other", node_id="x")
        written.join(2, "b")
        (gone,) = describe(written).missing
        assert (gone.host, gone.rank) == ("b", 2)

    def test_a_run_that_was_closed(self, written: Written) -> None:
        nodes = [written.join(1, host) for host in "ab"]
        written.complete(1, nodes)
        last = {"round": 1, "attempt": "1.1", "world": 2}
        written.put("head/control", written.control(1, "closed", reason="done", at=9, last=last))
        run = describe(written)
        assert run.state == "closed"
        assert run.closed == aio.Closed("a (pid 1)", "done", 9, round=1, world=2)
        assert hosts(run.members) == ["a", "b"]
        assert run.world == 2
        assert run.why == "the first round"

    def test_how_a_job_ended(self, written: Written) -> None:
        text = "train.py failed on host gpu-3, rank 5, exit code 7: ValueError: no"
        ended = {"result": "failed", "text": text}
        written.put("head/control", written.control(1, "closed", reason="x", ended=ended))
        closed = describe(written).closed
        assert closed is not None
        assert (closed.result, closed.text) == ("failed", text)
        assert (closed.round, closed.world) == (None, None)

    @pytest.mark.parametrize("ended", [None, [], "failed", {"result": 1, "text": {}}, {"v": 1}])
    def test_an_ending_that_cannot_be_read(self, written: Written, ended: object) -> None:
        more = {"ended": ended, "last": ended, "run_ttl": ended, "reopened": ended}
        written.put("head/control", written.control(1, "closed", reason="x", **more))
        run = describe(written)
        assert run.closed == aio.Closed("a (pid 1)", "x", 100)
        assert (run.run_ttl, run.reopened) == (None, 0)

    def test_a_run_that_was_closed_while_a_round_formed(self, written: Written) -> None:
        """The larger attempt was given up: only the record says which one was the last world."""
        nodes = [written.join(1, host) for host in "abc"]
        written.write(written.membership(1, nodes, "9.9"))
        written.complete(1, nodes[:2])
        written.reopen(2, 1)
        written.put(
            f"round/2/join/{nodes[0]}", {"v": 1, "at": 10, "until": 20} | written.nodes[nodes[0]]
        )
        last = {"round": 1, "attempt": "1.1", "world": None}
        written.put("head/control", written.control(2, "closed", reason="x", last=last))
        run = describe(written)
        assert hosts(run.joined) == ["a"]
        assert hosts(run.members) == ["b"]
        assert run.world is None
        assert run.closed == aio.Closed("a (pid 1)", "x", 200, round=1, world=2)

    def test_what_is_in_force(self, written: Written) -> None:
        nodes = [written.join(1, host) for host in "ab"]
        more = {"rank_order": "topology", "segment": 2, "run_ttl": 60, "reopened": 3}
        written.complete(1, nodes, **more)
        run = describe(written)
        assert (run.rank_order, run.segment, run.run_ttl, run.reopened) == ("topology", 2, 60, 3)

    def test_a_loss_is_of_one_attempt(self, written: Written) -> None:
        written.complete(1, [written.join(1, host) for host in "ab"])
        written.put("head/loss", {"v": 1, "round": 1, "attempt": "0.9", "member": "b"})
        assert describe(written).loss is None
        written.put("head/loss", {"v": 1, "round": 1, "attempt": "1.1", "member": "b"})
        assert describe(written).loss == "b"

    def test_who_counts_those_that_wait(self, written: Written) -> None:
        written.complete(1, [written.join(1, "a")])
        node = written.wait(1, "b")
        record = {"v": 1, "host": "b", "pid": 2, "round": 1, "attempt": "1.1", "count": 1, "at": 5}
        written.put("head/waiting", record, int(node, 16))
        run = describe(written)
        assert run.problem is None
        assert hosts(run.waiting) == ["b"]
        written.put("head/waiting", record | {"count": -1}, int(node, 16))
        assert "is not a count of the waiting nodes" in (describe(written).problem or "")

    def test_denials(self, written: Written) -> None:
        written.put("head/control", written.control(1, "open"))
        written.put("head/denied/h%2F1", {"by": "ann", "reason": "disk", "at": 5})
        assert describe(written).denied == (aio.Denial("h/1", "ann", "disk", 5),)

    def test_leases(self, written: Written) -> None:
        nodes = [written.join(1, host) for host in "ab"]
        written.complete(1, nodes)
        assert describe(written).members[0].lease_left_s is None
        for node in describe(written, leases=True).members:
            assert node.lease_ttl_s == 60
            assert 0 < (node.lease_left_s or 0) <= 60

    def test_records_of_versions_that_told_less(self, written: Written) -> None:
        node = written.node("a")
        written.put(
            f"round/1/join/{node}",
            {"v": 1, "host": "a", "pid": 1, "master_addr": "a", "master_port": 1},
        )
        control = {"v": 1, "round": 1, "state": "open", "previous": None, "by": "a (pid 1)"}
        written.put("head/control", control)
        run = describe(written)
        assert run.problem is None
        assert run.why is None
        assert run.opened_at is None
        assert run.joined[0].since is None
        assert run.joined[0].until is None
        written.put(f"round/1/member/1/{node}", {"rank": 0, "next": 0, "host": "a", "pid": 1})
        final = {"world": 1, "attempt": "1", "since": 3, "master_addr": "a", "master_port": 1}
        written.put("head/control", {"v": 1, "round": 1, "state": "final"} | final)
        other = written.node("b")
        written.put(f"round/1/waiting/{other}", {"host": "b", "pid": 2})
        run = describe(written)
        assert run.problem is None
        assert run.max_nodes is None
        assert run.rounds == ()
        assert hosts(run.members) == ["a"]
        assert hosts(run.waiting) == ["b"]
        assert run.missing == ()


GARBAGE: list[object] = [
    b"", b"\xff\x00", b"null", b"[]", b"7", b'"x"', b"{", b"{}", b"[" * 5000, b'{"v":1e999}',
    {"v": 1}, {"v": -1, "round": 1, "state": "open"},
    {"v": 1, "round": -1, "state": "open"}, {"v": 1, "round": 1 << 70, "state": "final"},
    {"v": True, "round": 1, "state": "open"}, {"v": 1, "round": 1, "state": ["open"]},
    {"v": 1, "round": 1, "state": "final", "world": 0, "attempt": 3},
    {"host": 1, "pid": "x"}, {"members": 1}, {"members": [{"node": []}]}, {"lease": {}},
]  # fmt: skip


class TestGarbage:
    def test_a_control_record_that_cannot_be_read(self, written: Written) -> None:
        for value in GARBAGE:
            written.put("head/control", value)
            run = describe(written)
            assert run.state == "unreadable"
            assert run.problem is not None
            assert "head/control" in run.problem

    def test_a_control_record_of_a_newer_version(self, written: Written) -> None:
        written.put("head/control", {"v": 2, "round": 1, "state": "open"})
        run = describe(written)
        assert run.state == "unreadable"
        assert "this run speaks version 2, this torchetcd 1: update" in (run.problem or "")

    def test_a_record_of_a_newer_version(self, written: Written) -> None:
        """Each is refused by name; what it would say counts for nothing."""
        written.complete(1, [written.join(1, "a")])
        node = written.wait(1, "b")
        of_this_version: dict[str, dict[str, object]] = {
            "head/loss": {"round": 1, "member": "a"},
            "head/denied/h": {"by": "ann", "reason": "x"},
            "head/waiting": {"count": 1},
            "round/1/last_call": {"lease": 5},
            "round/1/roster/1.1/1": {"members": []},
            "history/0000000000000009": {"round": 9, "world": 1},
            f"round/1/waiting/{node}": {"host": "b", "pid": 1},
        }
        for path, record in of_this_version.items():
            written.put(path, record | {"v": 2}, int(node, 16))
            problem = describe(written).problem or ""
            assert path in problem
            assert "this run speaks version 2, this torchetcd 1: update" in problem
            written.put(path, record, int(node, 16))
            assert describe(written).problem is None

    def test_keys_that_nobody_of_ours_wrote(self, written: Written) -> None:
        written.put(
            "head/control", written.control(1, "open", previous={"round": [], "attempt": 1})
        )
        node = written.join(1, "a")
        paths = [
            "head/coordinator", "head/loss", "head/denied/x", "head/denied/%FF", "head/what",
            "head/control/below", "history/1", "history/zz", "node/x", "round/1/last_call",
            "round/1/join/zz", f"round/1/join/{'f' * 16}", "round/1/waiting/zz", "round/1/member/1/zz",
            "round/1/roster/1/0", "round/x/join/y", "round/1", f"round/{'9' * 30}/last_call",
            f"round/1/waiting/{node}", f"round/1/member/1/{node}",
        ]  # fmt: skip
        for value in GARBAGE:
            written.write(dict.fromkeys(paths, value), written.lease)
            run = describe(written)
            assert run.state == "open"
            assert hosts(run.joined) == ["a"]
            assert run.coordinator is None
            assert run.loss is None
            assert run.rounds == ()
            assert run.waiting == run.members == run.missing == ()
            assert run.problem is not None
            assert "more do not count" in run.problem

    def test_a_record_under_the_lease_of_another(self, written: Written) -> None:
        written.put("head/control", written.control(1, "open"))
        node, records = written.joining(1, "a")
        written.write(records, written.lease)
        run = describe(written)
        assert run.joined == ()
        assert "not under the lease" in (run.problem or "")
        assert node in (run.problem or "")

    def test_text_of_others_is_one_short_line(self, written: Written) -> None:
        written.put("head/control", written.control(1, "open", why="a\nb\x1b[2J" + "x" * 1000))
        why = describe(written).why
        assert why is not None
        assert why.isprintable()
        assert len(why) == 201
        written.put("head/control", written.control(1, "open", at=1e300, why=""))
        run = describe(written)
        assert run.opened_at is None
        assert run.why is None


class TestMany:
    def test_all_runs_of_a_prefix(self, client: Client, prefix: str) -> None:
        names = ["a", "a b", "a/b", "a-1", "ab", "100%", "größe", "z~"]
        for name in names:
            run = Written(client, name, prefix)
            run.put("head/control", run.control(1, "open"))
            run.join(1, f"host of {name}")
        # Not a run's, or not of this prefix.
        Written(client, "elsewhere", f"{prefix}x").put("head/control", {})
        client._native.txn([], [("put", f"{prefix}/run_%2".encode(), b"", 0)], [])
        client._native.txn([], [("put", f"{prefix}/run_x%y/k".encode(), b"", 0)], [])

        async def use() -> list[aio.Run]:
            async with connected(client) as made:
                assert await made.list_runs(f"{prefix}nothing") == []
                return await made.list_runs(prefix)

        runs = asyncio.run(use())
        assert sorted(run.id for run in runs) == sorted(names)
        for found in runs:
            assert found.state == "open"
            assert hosts(found.joined) == [f"host of {found.id}"]
        assert len({run.revision for run in runs}) == 1

    def test_few_calls_however_large_they_are(
        self, etcd_server: EtcdServer, client: Client, prefix: str
    ) -> None:
        for number in range(70):
            run = Written(client, f"run {number:03}", prefix)
            run.put("head/control", run.control(1, "open"))
        large = Written(client, "run 035", prefix)
        # More than are read at once, and a store of more keys than names are looked for in.
        shared: dict[str, object] = {f"v_1/kv/{number}": b"" for number in range(100)}
        for part in range(6):
            large.write({f"{path}-{part}": value for path, value in shared.items()})
        for _ in range(150):
            large.join(1, uuid.uuid4().hex)

        async def use() -> list[aio.Run]:
            async with connected(client) as made:
                return await made.list_runs(prefix)

        calls = 'grpc_server_handled_total{.*grpc_service="etcdserverpb.KV".*}'
        before = metric(etcd_server, calls)
        runs = asyncio.run(use())
        # Names in pages of 200 keys and one jump, three of 32 runs, and one more of the large one.
        assert metric(etcd_server, calls) - before <= 6
        assert [run.id for run in runs] == [f"run {number:03}" for number in range(70)]
        assert len(runs[35].joined) == 150
        assert runs[35].joined == describe(large).joined
