"""What an operator does to a run: each has its effect once, and nodes notice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from support.network.proxy import Proxy
from support.processes.nodes import NodeError, join_all
from support.processes.nodes import Run as Processes
from support.records import Written, connected
from support.waiting import eventually
from torchetcd import aio
from torchetcd.etcd import Client


@pytest.fixture
def opened(written: Written) -> Written:
    written.put("head/control", written.control(1, "open"))
    return written


def control(written: Written) -> dict[str, Any]:
    found = written.client._native.txn([], [("get", written.keys.control, None, 0, False, 0)], [])
    kv = found[2][0][0][0]
    assert kv[5] == written.lease
    return dict(json.loads(kv[1]))


def paths(written: Written) -> list[str]:
    base = written.keys.base.encode()
    found = written.client._native.txn([], [("get", base, base[:-1] + b"0", 0, True, 0)], [])
    return [kv[0][len(base) :].decode() for kv in found[2][0][0]]


class TestClose:
    def test_close_and_reopen(self, written: Written) -> None:
        async def use() -> None:
            nodes = [written.join(1, host) for host in "ab"]
            written.complete(1, nodes)
            written.put("head/loss", {"round": 1, "member": "b"})
            written.put("v_2/9.9/kv/left", b"from an earlier round 2")
            async with connected(written.client) as client:
                assert not await client.reopen_run(written.run_id, "it is not closed")
                assert await client.close_run(written.run_id, "a disk\nfull", by="ann")
                told = control(written)
                assert told.pop("at") > 1e9
                assert told == {
                    "v": 1, "round": 1, "state": "closed", "by": "ann", "reason": "a disk\ufffdfull",
                    "run_ttl": 7200, "last": {"round": 1, "attempt": "1.1", "world": 2},
                }  # fmt: skip
                assert not await client.close_run(written.run_id, "again", by="bob")
                assert control(written)["by"] == "ann"
                assert await client.reopen_run(written.run_id, "replaced", by="ann")
                told = control(written)
                assert told.pop("at") > 1e9
                assert told == {
                    "v": 1, "round": 2, "state": "open", "by": "ann", "run_ttl": 7200, "reopened": 1,
                    "previous": {"round": 1, "attempt": "1.1", "world": 2},
                    "why": "reopened by ann: replaced",
                }  # fmt: skip
                assert not {"rdzv/head/loss", "rdzv/v_2/9.9/kv/left"} & set(paths(written))
                # The members that are to come back are known.
                assert len((await client.describe(written.run_id)).missing) == 2

        asyncio.run(use())

    def test_a_round_that_was_never_complete_is_not_the_one_before(self, written: Written) -> None:
        async def use() -> None:
            nodes = [written.join(1, "a")]
            written.complete(1, nodes)
            written.reopen(2, 1)
            # An attempt that was given up.
            written.write(written.membership(2, nodes, "9.9"))
            async with connected(written.client) as client:
                assert await client.close_run(written.run_id, "x")
                assert await client.reopen_run(written.run_id, "y")
            assert control(written)["previous"] == {"round": 1, "attempt": "1.1", "world": 1}

        asyncio.run(use())

    def test_a_close_keeps_what_the_next_world_needs(self, written: Written) -> None:
        """Closed while a round formed: the last world, the run's TTL, and how often it was opened again."""

        async def use() -> None:
            written.complete(1, [written.join(1, host) for host in "ab"])
            written.reopen(2, 1, run_ttl=60, reopened=4)
            async with connected(written.client) as client:
                assert await client.close_run(written.run_id, "x")
                told = control(written)
                assert (told["run_ttl"], told["reopened"]) == (60, 4)
                assert told["last"] == {"round": 1, "attempt": "1.1", "world": 2}
                assert await client.reopen_run(written.run_id, "y")
                told = control(written)
                assert (told["round"], told["run_ttl"], told["reopened"]) == (3, 60, 5)
                assert told["previous"] == {"round": 1, "attempt": "1.1", "world": 2}

        asyncio.run(use())

    def test_a_run_without_a_complete_round(self, opened: Written) -> None:
        async def use() -> None:
            async with connected(opened.client) as client:
                assert await client.close_run(opened.run_id, "x")
                assert control(opened)["last"] is None
                assert await client.reopen_run(opened.run_id, "y")
            assert control(opened)["previous"] is None

        asyncio.run(use())

    def test_without_a_run(self, client: Client, run_id: str) -> None:
        async def use() -> None:
            async with connected(client) as made:
                for call in (made.close_run, made.reopen_run):
                    with pytest.raises(aio.RunNotFoundError):
                        await call(run_id, "x")
                with pytest.raises(aio.RunNotFoundError):
                    await made.evict(run_id, "a", "x")
                with pytest.raises(aio.RunNotFoundError):
                    await made.purge(run_id)
                assert not await made.allow(run_id, "a")

        asyncio.run(use())

    def test_a_record_that_cannot_be_read_is_left_alone(self, written: Written) -> None:
        async def use() -> None:
            written.put("head/control", {"v": 2, "round": 1, "state": "half open"})
            async with connected(written.client) as client:
                for call in (client.close_run, client.reopen_run):
                    with pytest.raises(aio.RunRecordError, match="version 2"):
                        await call(written.run_id, "x")
                with pytest.raises(aio.RunRecordError):
                    await client.evict(written.run_id, "a", "x")
                assert await client.purge(written.run_id) == 1

        asyncio.run(use())

    def test_bad_arguments(self, opened: Written) -> None:
        async def use() -> None:
            async with connected(opened.client) as client:
                for reason in ("", " "):
                    with pytest.raises(ValueError, match="The reason must be"):
                        await client.close_run(opened.run_id, reason)
                for name in ("", "x" * 1025, "\ud800"):
                    with pytest.raises(ValueError, match="The node must be"):
                        await client.evict(opened.run_id, name, "x")

        asyncio.run(use())


class TestLostAnswers:
    @pytest.mark.parametrize("forward", [True, False])
    @pytest.mark.parametrize("operation", ["close", "reopen", "evict", "allow", "purge"])
    def test_an_answer_or_a_request_that_is_lost(
        self, opened: Written, operation: str, forward: bool
    ) -> None:
        """Each takes effect once, and says so."""
        run_id = opened.run_id
        if operation == "reopen":
            opened.put("head/control", opened.control(1, "closed", reason="x"))
        if operation == "allow":
            opened.put("head/denied/bad", {"by": "a"})
        # What only the request that writes holds.
        needle = {
            "close": b'"closed"', "reopen": b'"reopened by', "evict": b'"disk"',
            "allow": b"", "purge": b"",
        }[operation]  # fmt: skip
        calls: dict[str, Callable[[aio.Client], Any]] = {
            "close": lambda client: client.close_run(run_id, "x"),
            "reopen": lambda client: client.reopen_run(run_id, "x"),
            "evict": lambda client: client.evict(run_id, "bad", "disk"),
            "allow": lambda client: client.allow(run_id, "bad"),
            "purge": lambda client: client.purge(run_id),
        }

        async def use() -> None:
            with Proxy(opened.client.port) as proxy:
                async with aio.Client(f"127.0.0.1:{proxy.port}") as client:
                    await client.raw.version()
                    path = (
                        opened.key("head/denied/bad")
                        if operation == "allow"
                        else opened.keys.base.encode()
                    )
                    # The first requests read.
                    skip = 2 if operation == "purge" else 0
                    proxy.break_at(needle or path, forward=forward, skip=skip)
                    answer = await calls[operation](client)
                    assert proxy.broken == 1
            expected = {"evict": (), "purge": 1, "allow": ("bad",)}
            assert answer == expected.get(operation, True)

        asyncio.run(use())
        if operation == "purge":
            assert paths(opened) == []
        elif operation == "allow":
            assert "rdzv/head/denied/bad" not in paths(opened)
        elif operation == "evict":
            assert "rdzv/head/denied/bad" in paths(opened)
        else:
            assert control(opened)["state"] == {"close": "closed", "reopen": "open"}[operation]

    def test_a_record_that_others_change_meanwhile(self, opened: Written) -> None:
        """The guard fails, and what is done is decided anew."""

        async def use(then: Callable[[], object]) -> bool:
            with Proxy(opened.client.port) as proxy:
                async with aio.Client(f"127.0.0.1:{proxy.port}") as client:
                    await client.raw.version()
                    # The request never arrives; when it is sent again the record is another one.
                    proxy.break_at(b'"closed"', forward=False, then=then)
                    return await client.close_run(opened.run_id, "x", by="ann")

        assert asyncio.run(use(lambda: opened.put("head/control", opened.control(7, "open"))))
        assert control(opened)["round"] == 7
        assert control(opened)["by"] == "ann"
        opened.put("head/control", opened.control(8, "open"))
        theirs = opened.control(8, "closed", by="bob", reason="y")
        assert not asyncio.run(use(lambda: opened.put("head/control", theirs)))
        assert control(opened)["by"] == "bob"


class TestEvict:
    def test_by_each_of_its_names(self, opened: Written) -> None:
        async def use() -> None:
            nodes = {
                name: opened.join(1, host, node_id=node_id)
                for name, host, node_id in (
                    ("one", "h/1", "x"), ("two", "h/1", "y"), ("three", "h3", "z"), ("four", "h4", "w")
                )
            }  # fmt: skip
            async with connected(opened.client) as client:
                evicted = await client.evict(opened.run_id, nodes["three"], "disk", by="ann")
                assert [node.host for node in evicted] == ["h3"]
                assert [
                    node.node_id for node in await client.evict(opened.run_id, "w", "disk")
                ] == ["w"]
                evicted = await client.evict(opened.run_id, "h/1", "disk", deny=False)
                assert {node.node_id for node in evicted} == {"x", "y"}
                assert await client.evict(opened.run_id, "nobody", "to come") == ()
                run = await client.describe(opened.run_id)
                assert run.joined == ()
                assert {denial.name for denial in run.denied} == {nodes["three"], "w", "nobody"}
                assert await client.allow(opened.run_id, "w")
                assert not await client.allow(opened.run_id, "w")

        asyncio.run(use())


class TestPurge:
    def test_all_of_it_and_nothing_else(self, opened: Written) -> None:
        async def use() -> None:
            node = opened.join(1, "a")
            for number in range(150):
                opened.put(f"v_1/kv/{number}", b"")
            other = Written(opened.client, f"{opened.run_id}0")
            other.put("head/control", other.control(1, "open"))
            async with connected(opened.client) as client:
                with pytest.raises(aio.RunInUseError, match=r"a \(pid 1\)") as raised:
                    await client.purge(opened.run_id)
                assert [found.id for found in raised.value.nodes] == [node]
                assert len(paths(opened)) == 152
                opened.end(node)
                assert await client.purge(opened.run_id) == 151
                assert paths(opened) == []
                assert await client.raw.lease_time_to_live(opened.lease) is None
                assert (await client.describe(other.run_id)).state == "open"

        asyncio.run(use())

    def test_by_force(self, opened: Written) -> None:
        async def use() -> None:
            node = opened.join(1, "a")
            async with connected(opened.client) as client:
                await client.purge(opened.run_id, force=True)
                assert await client.raw.lease_time_to_live(int(node, 16)) is None
            assert paths(opened) == []

        asyncio.run(use())

    def test_a_node_that_joins_meanwhile_is_seen(self, opened: Written) -> None:
        async def use() -> None:
            with Proxy(opened.client.port) as proxy:
                async with aio.Client(f"127.0.0.1:{proxy.port}") as client:
                    await client.raw.version()
                    base = opened.keys.base.encode()
                    proxy.break_at(base, forward=False, skip=2, then=lambda: opened.join(1, "late"))
                    with pytest.raises(aio.RunInUseError, match="late"):
                        await client.purge(opened.run_id)
            assert len(paths(opened)) == 2

        asyncio.run(use())


class TestRealNodes:
    def test_nodes_are_told_of_the_close_and_go_on_after_the_reopening(
        self, client: Client, run_id: str
    ) -> None:
        async def use(run: Processes) -> None:
            async with connected(client) as made:
                first = run.nodes(2, 2, 2)
                await asyncio.to_thread(join_all, first)
                assert await made.close_run(run_id, "maintenance", by="ann")
                with pytest.raises(NodeError, match=r"RendezvousClosedError.*ann.*maintenance"):
                    await asyncio.to_thread(lambda: first[0].call("join"))
                for node in first:
                    node.kill()
                    node.reap()
                assert await made.reopen_run(run_id, "done", by="ann")
                second = run.nodes(2, 2, 2)
                places = await asyncio.to_thread(join_all, second)
                assert sorted(place.rank for place in places) == [0, 1]
                described = await made.describe(run_id)
                assert (described.state, described.round) == ("final", 2)
                assert described.why == "reopened by ann: done"
                # The coordinator tidies up what was there of the round before.
                await asyncio.to_thread(eventually, lambda: run.keys("/rdzv/round/1") == [])

        with Processes(f"127.0.0.1:{client.port}", client, run_id) as run:
            asyncio.run(use(run))
