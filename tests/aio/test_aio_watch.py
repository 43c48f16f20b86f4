"""`watch_run`: each thing that happens in a run is told once, and the run after it is right."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from support.etcd.cluster import Cluster
from support.network.proxy import Proxy
from support.processes.nodes import Run as Processes
from support.processes.nodes import join_all
from support.records import SOON_S, Written, connected, watching
from support.stores import compact
from torchetcd import aio
from torchetcd.etcd import Client


def same(one: aio.Run, other: aio.Run) -> bool:
    """Whether two runs differ in nothing but when they were seen."""
    times: dict[str, Any] = {"observed_at": 0.0, "revision": 0, "last_call_left_s": None}
    return dataclasses.replace(one, **times) == dataclasses.replace(other, **times)


class TestEvents:
    def test_the_life_of_a_run(self, written: Written) -> None:
        async def use() -> None:
            async with (
                connected(written.client) as client,
                watching(client, written.run_id) as seen,
            ):
                first = await seen.next(aio.Snapshot)
                assert first.run.state == "none"
                assert first.run.joined == ()

                a, joining = written.joining(1, "a")
                revision = written.write({"head/control": written.control(1, "open"), **joining})
                opened = await seen.next(aio.Opened)
                assert (opened.round, opened.why, opened.revision) == (
                    1,
                    "the first round",
                    revision,
                )
                assert opened.at == pytest.approx(time.time(), abs=SOON_S)
                joined = await seen.next(aio.Joined)
                assert joined.node.id == a
                assert joined.revision == revision
                assert joined.run.joined == (joined.node,)
                assert joined.run.revision == revision

                b = written.join(1, "b")
                assert (await seen.next(aio.Joined)).node.id == b
                clock = written.client._native.lease_grant(40)
                written.put("round/1/last_call", {"lease": clock})
                call = await seen.next(aio.LastCall)
                assert call.begun
                assert call.run.last_call_left_s is not None
                assert 10 < call.run.last_call_left_s <= 41
                written.end(b)
                left = await seen.next(aio.Left)
                assert left.node.id == b
                assert not left.node.alive
                assert len(left.run.joined) == 1
                written.write({"round/1/last_call": None})
                assert not (await seen.next(aio.LastCall)).begun

                c = written.join(1, "c")
                await seen.next(aio.Joined)
                written.complete(1, [a, c])
                final = await seen.next(aio.Final)
                assert (final.round, final.world) == (1, 2)
                assert [node.id for node in final.run.members] == [a, c]
                d = written.wait(1, "d")
                waiting = await seen.next(aio.Waiting)
                assert waiting.node.id == d
                assert waiting.node.state == "spare"

                written.end(c)
                lost = await seen.next(aio.Lost)
                assert lost.node.id == c
                assert lost.node.rank == 1
                assert [node.id for node in lost.run.missing] == [c]
                written.reopen(2, 1, why="c is gone")
                assert (await seen.next(aio.Opened)).why == "c is gone"
                written.write(
                    {
                        f"round/2/join/{d}": {"v": 1, **written.nodes[d]},
                        f"round/1/waiting/{d}": None,
                    }
                )
                assert (await seen.next(aio.Joined)).node.id == d

                written.put("head/denied/bad", {"by": "ann", "reason": "disk"})
                denied = await seen.next(aio.Denied)
                assert (denied.name, denied.by, denied.reason) == ("bad", "ann", "disk")
                written.write({"head/denied/bad": None})
                assert (await seen.next(aio.Allowed)).name == "bad"

                written.put("head/control", written.control(2, "closed", by="ann", reason="enough"))
                closed = await seen.next(aio.RunClosed)
                assert (closed.by, closed.reason, closed.run.state) == ("ann", "enough", "closed")
                # Nobody needs those who leave a run that is closed.
                written.end(d)
                assert (await seen.next(aio.Left)).node.id == d
                written.put("head/control", written.control(3, "open", why="reopened by ann"))
                reopened = await seen.next(aio.Reopened)
                assert (reopened.round, reopened.why) == (3, "reopened by ann")
                written.end(f"{written.lease:016x}")
                written.end(a)
                gone = await seen.until(aio.Gone)
                assert gone.run.state == "none"

        asyncio.run(use())

    def test_a_member_that_leaves_a_round_that_is_over_is_no_loss(self, written: Written) -> None:
        async def use() -> None:
            a, b = written.join(1, "a"), written.join(1, "b")
            written.complete(1, [a, b])
            async with (
                connected(written.client) as client,
                watching(client, written.run_id) as seen,
            ):
                assert len((await seen.next(aio.Snapshot)).run.members) == 2
                written.reopen(2, 1)
                await seen.next(aio.Opened)
                written.end(b)
                left = await seen.next(aio.Left)
                assert left.node.id == b
                assert left.node.rank == 1
                # What the completion of a round deletes is nobody's departure.
                c = written.join(2, "c")
                await seen.next(aio.Joined)
                before: dict[str, object] = {
                    f"round/1/{kind}/{a}": None for kind in ("member/1.1", "join")
                }
                written.write(written.membership(2, [c]))
                written.write({"head/control": written.control(2, "final"), **before})
                await seen.next(aio.Final)
                # One that joined and was not chosen.
                written.join(2, "d")
                assert (await seen.next(aio.Waiting)).node.host == "d"

        asyncio.run(use())

    def test_what_comes_in_between_is_not_told_twice_nor_left_out(self, written: Written) -> None:
        """The watch begins before what is there is read."""

        async def use() -> None:
            written.put("head/control", written.control(1, "open"))
            stop = False

            def join() -> None:
                number = 0
                while not stop:
                    written.join(1, f"host-{number}")
                    number += 1

            async with connected(written.client) as client:
                joining = asyncio.create_task(asyncio.to_thread(join))
                try:
                    for _ in range(5):
                        async with watching(client, written.run_id) as seen:
                            first = await seen.next(aio.Snapshot)
                            names = [node.host for node in first.run.joined]
                            for _ in range(10):
                                event = await seen.next(aio.Joined)
                                names.append(event.node.host)
                                assert [node.host for node in event.run.joined] == names
                            assert names == [f"host-{number}" for number in range(len(names))]
                finally:
                    stop = True
                    await joining

        asyncio.run(use())

    def test_what_was_read_already_is_not_told_again(self, written: Written) -> None:
        """A node that comes and goes between the beginning of the watch and the reading."""

        async def use() -> None:
            written.put("head/control", written.control(1, "open"))
            with Proxy(written.client.port) as proxy:
                async with (
                    aio.Client(f"127.0.0.1:{proxy.port}") as client,
                    watching(client, written.run_id) as seen,
                ):
                    await client.raw.version()
                    # The second request with this key is the one that reads: it is sent again.
                    between = _Later(lambda: written.end(written.join(1, "a")))
                    proxy.break_at(written.keys.start, forward=False, skip=1, then=between)
                    assert (await seen.next(aio.Snapshot)).run.joined == ()
                    assert between.done
                    written.join(1, "b")
                    assert (await seen.next(aio.Joined)).node.host == "b"

        asyncio.run(use())

    def test_members_leave_a_run_that_is_closed(self, written: Written) -> None:
        async def use() -> None:
            a = written.join(1, "a")
            written.complete(1, [a])
            async with (
                connected(written.client) as client,
                watching(client, written.run_id) as seen,
            ):
                await seen.next(aio.Snapshot)
                last = {"round": 1, "attempt": "1.1", "world": 1}
                written.put("head/control", written.control(1, "closed", reason="done", last=last))
                await seen.next(aio.RunClosed)
                written.end(a)
                assert (await seen.next(aio.Left)).node.rank == 0

        asyncio.run(use())

    def test_a_run_followed_is_the_run_read(self, written: Written) -> None:
        """Whatever is written, in whatever order, by whomever."""
        seed = random.randrange(1 << 30)
        print(f"seed {seed}")  # shown where it fails
        rng = random.Random(seed)

        async def use() -> None:
            written.put("head/control", written.control(1, "open"))
            async with (
                connected(written.client) as client,
                watching(client, written.run_id) as seen,
            ):
                await seen.next(aio.Snapshot)
                for part in range(12):
                    for _ in range(12):
                        _change(rng, written)
                    written.put(f"head/denied/{part}", {})
                    while (await seen.until(aio.Denied)).name != str(part):
                        pass
                    assert same(seen.seen[-1].run, await client.describe(written.run_id))

        asyncio.run(use())


class _Later:
    """Something that is to be done once, and whether it was."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self.done = False

    def __call__(self) -> None:
        self._work()
        self.done = True


def _change(rng: random.Random, written: Written) -> None:
    """Do one of the things that could be done to a run."""
    number = rng.randrange(1, 4)
    before = {"round": rng.randrange(1, 4), "attempt": "1.1"}
    choice = rng.randrange(10)
    if choice == 0:
        written.put("head/control", written.control(number, "open", previous=before))
    elif choice == 1:
        written.put("head/control", written.control(number, rng.choice(["final", "closed"])))
    elif choice == 2:
        # What is there must not count any more.
        nodes = [f"round/{number}/join/{node}" for node in written.nodes]
        paths = ["head/control", "head/loss", f"history/{number:016x}", "head/coordinator", *nodes]
        written.put(rng.choice(paths), rng.choice([b"no", {"v": 7}]))
    elif choice == 3:
        written.put("head/loss", {"round": number, "member": "x"})
        written.put(f"history/{number:016x}", {"round": number, "world": 1})
        told = {"host": "a", "pid": 1, "min": number}
        written.put("head/coordinator", told, written.client._native.lease_grant(60))
    elif choice <= 5 or not written.nodes:
        written.join(number, rng.choice("abc"))
    elif choice == 6:
        written.wait(number, rng.choice("abc"))
    else:
        node = rng.choice(list(written.nodes))
        if choice == 7:
            written.end(node)
            del written.nodes[node]
        elif choice == 8:
            written.write(written.membership(number, [node]))
        else:
            paths = [f"round/{number}/join/{node}", "head/control", f"round/{number}/roster/1.1/0"]
            written.write({rng.choice(paths): None})


class TestReconnects:
    def test_a_connection_that_breaks(self, written: Written) -> None:
        async def use() -> None:
            written.put("head/control", written.control(1, "open"))
            with Proxy(written.client.port) as proxy:
                async with (
                    aio.Client(f"127.0.0.1:{proxy.port}") as client,
                    watching(client, written.run_id) as seen,
                ):
                    await seen.next(aio.Snapshot)
                    for number in range(3):
                        proxy.cut()
                        proxy.mend()
                        written.join(1, f"host-{number}")
                        assert (await seen.next(aio.Joined)).node.host == f"host-{number}"

        asyncio.run(use())

    def test_events_that_are_compacted_while_it_is_away(self, written: Written) -> None:
        async def use() -> None:
            written.put("head/control", written.control(1, "open"))
            with Proxy(written.client.port) as proxy:
                async with (
                    aio.Client(f"127.0.0.1:{proxy.port}") as client,
                    watching(client, written.run_id) as seen,
                ):
                    await seen.next(aio.Snapshot)
                    proxy.cut()
                    a, b = written.join(1, "a"), written.join(1, "b")
                    written.end(a)
                    compact(written.client)
                    proxy.mend()
                    again = await seen.next(aio.Snapshot)
                    assert [node.id for node in again.run.joined] == [b]
                    written.join(1, "c")
                    assert (await seen.next(aio.Joined)).node.host == "c"

        asyncio.run(use())

    @pytest.mark.needs_etcd
    def test_an_etcd_that_was_restored_from_a_backup(self, run_id: str) -> None:
        async def use(etcd: Cluster) -> None:
            with Client(etcd.endpoints) as client:
                written = Written(client, run_id)
                written.put("head/control", written.control(1, "open"))
                written.join(1, "a")
                etcd.save()
                written.join(1, "b")
            async with aio.Client(etcd.endpoints) as watcher, watching(watcher, run_id) as seen:
                assert len((await seen.next(aio.Snapshot)).run.joined) == 2
                etcd.restore()
                again = await seen.next(aio.Snapshot)
                assert [node.host for node in again.run.joined] == ["a"]

        with Cluster(1) as etcd:
            asyncio.run(use(etcd))


class TestFork:
    def test_a_watch_is_of_the_process_that_began_it(self, client: Client, prefix: str) -> None:
        """In a child nothing would ever come."""
        key = prefix.encode()

        async def begin() -> None:
            async with connected(client) as made:
                with made.raw.watch(key) as watch:
                    assert (await anext(watch)).events == []
                    with warnings.catch_warnings():
                        # This process has threads.
                        warnings.simplefilter("ignore", DeprecationWarning)
                        child = os.fork()
                    if child == 0:
                        os._exit(_code_of(watch))
                    ended = await asyncio.to_thread(os.waitpid, child, 0)
                    assert os.waitstatus_to_exitcode(ended[1]) == 0
                    await made.raw.txn([], [("put", key, b"x", 0)])
                    assert len((await anext(watch)).events) == 1

        asyncio.run(begin())


def _code_of(watch: aio.Watch) -> int:
    """Await the watch in a loop of this process's own, and return 0 where that is refused."""
    asyncio.events._set_running_loop(None)
    try:
        asyncio.run(asyncio.wait_for(anext(watch), 20))
    except RuntimeError as exc:
        return 0 if "forked" in str(exc) else 2
    except BaseException:
        return 3
    return 1


class TestRealNodes:
    def test_a_world_that_loses_a_node_and_gets_another(self, client: Client, run_id: str) -> None:
        async def use(run: Processes) -> None:
            async with connected(client) as made, watching(made, run_id) as seen:
                await seen.next(aio.Snapshot)
                nodes = run.nodes(2, 2, 2, keep_alive_ttl=5)
                places = await asyncio.to_thread(join_all, nodes)
                final = await seen.until(aio.Final)
                kinds = [type(event) for event in seen.seen]
                assert kinds.count(aio.Joined) == 2
                assert kinds.count(aio.Opened) == 1
                assert [node.rank for node in final.run.members] == [0, 1]
                described = await made.describe(run_id, leases=True)
                assert [node.lease_ttl_s for node in described.members] == [5, 5]
                nodes[1].kill()
                lost = await seen.until(aio.Lost)
                assert lost.node.rank == places[1].rank
                assert [node.rank for node in lost.run.missing] == [places[1].rank]
                assert [run.id for run in await made.list_runs() if run.id == run_id] == [run_id]

        with Processes(f"127.0.0.1:{client.port}", client, run_id) as run:
            asyncio.run(use(run))
