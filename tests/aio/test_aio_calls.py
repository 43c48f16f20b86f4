"""Calls by asyncio: cancelled ones end, none blocks a thread, errors are those of the other clients."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from support.etcd.metrics import watchers, watchers_left
from support.network.proxy import Proxy
from support.records import SOON_S, connected, eventually
from support.stores import compact
from torchetcd import aio
from torchetcd._torchetcd import AsyncClient
from torchetcd.etcd import (
    Client,
    EtcdAmbiguous,
    EtcdConnectionFailed,
    EtcdEventIndexCleared,
    EtcdException,
)
from torchetcd.etcd_server import EtcdServer, find_free_port


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


class TestCalls:
    def test_what_etcd_answers(self, client: Client, prefix: str) -> None:
        async def use() -> None:
            key = f"{prefix}/k".encode()
            async with connected(client) as made:
                raw = made.raw
                put = await raw.txn([], [("put", key, b"v", 0)])
                assert put.succeeded
                assert put.answers == [None]
                found = await raw.range(key)
                assert found.kvs == [aio.KeyValue(key, b"v", put.revision, put.revision, 1, 0)]
                assert found.total == 1
                assert not found.more
                assert found.revision >= put.revision
                assert (await raw.range(key, keys_only=True)).kvs[0].value == b""
                counted = await raw.range(key, key + b"\xff", count_only=True)
                assert counted.total == 1
                assert counted.kvs == []
                refused = await raw.txn(
                    [("value", key, "=", b"w")],
                    [("delete", key, None)],
                    [("get", key, None, 0, False, 0)],
                )
                assert not refused.succeeded
                assert refused.keys(0)[0].value == b"v"
                lease = await raw.lease_grant(60)
                left = await raw.lease_time_to_live(lease)
                assert left is not None
                assert left.granted_s == 60
                assert 0 < left.left_s <= 60
                assert await raw.lease_keep_alive_once(lease)
                await raw.lease_revoke(lease)
                assert await raw.lease_time_to_live(lease) is None
                assert not await raw.lease_keep_alive_once(lease)

        asyncio.run(use())

    def test_what_a_member_says_of_itself(self, client: Client) -> None:
        async def use() -> None:
            async with connected(client) as made:
                raw = made.raw
                any_status = await raw.status()
                status = await raw.status(client.base_uri)
                assert status.version == await raw.version() == any_status.version
                (member,) = await raw.members()
                assert status.member_id == member.id == status.leader_id
                assert member.client_urls
                assert member.peer_urls
                assert not member.is_learner
                assert 0 < status.db_size_in_use <= status.db_size
                assert status.errors == []
                assert await raw.alarms() == []
                with pytest.raises(EtcdConnectionFailed):
                    await raw.status(f"127.0.0.1:{_free_port()}", timeout=0.5)
                with pytest.raises(ValueError, match="endpoint"):
                    await raw.status("h:port")

        asyncio.run(use())

    def test_several_loops_one_after_the_other_and_in_threads(self, client: Client) -> None:
        made = aio.Client(client.base_uri)
        for _ in range(3):
            asyncio.run(_version(made))
        told: list[str] = []
        workers = [
            threading.Thread(target=lambda: told.append(asyncio.run(_version(made))))
            for _ in range(3)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(SOON_S)
        assert len(told) == 3
        made.close()

    def test_without_a_loop(self, client: Client) -> None:
        with pytest.raises(RuntimeError, match="no running event loop"):
            AsyncClient(client._native).version()

    def test_a_thousand_waits_need_no_thread(self, client: Client, prefix: str) -> None:
        async def use() -> None:
            async with connected(client) as made:
                store = aio.Store(made, prefix)
                await store.set("there", "v")
                before = threads()
                waits = [asyncio.create_task(store.get(f"k{number}")) for number in range(1000)]
                # All of them are under way.
                await eventually(lambda: all(_is_waiting(task) for task in waits))
                assert await store.get("there") == b"v"
                assert threads() == before
                await store.multi_set([f"k{n}" for n in range(1000)], [str(n) for n in range(1000)])
                assert await asyncio.gather(*waits) == [str(n).encode() for n in range(1000)]

        asyncio.run(use())

    def test_importing_it_imports_no_torch(self) -> None:
        code = "import sys, torchetcd.aio; sys.exit('torch' in sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestCancellation:
    def test_a_watch_that_is_cancelled_ends_at_etcd(
        self, etcd_server: EtcdServer, client: Client, prefix: str
    ) -> None:
        async def use() -> None:
            async with connected(client) as made:
                await made.raw.version()
                before = await asyncio.to_thread(watchers_left, etcd_server)
                tasks = [asyncio.create_task(_watch_for_ever(made, prefix)) for _ in range(5)]
                await eventually(lambda: watchers(etcd_server) == before + 5)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                assert all(task.cancelled() for task in tasks)
                await eventually(lambda: watchers(etcd_server) == before)

        asyncio.run(use())

    def test_a_wait_of_the_store_that_is_cancelled_ends_at_etcd(
        self, etcd_server: EtcdServer, client: Client, prefix: str
    ) -> None:
        async def use() -> None:
            async with connected(client) as made:
                store = aio.Store(made, prefix)
                before = await asyncio.to_thread(watchers_left, etcd_server)
                wait = asyncio.create_task(store.get("never"))
                await eventually(lambda: watchers(etcd_server) > before)
                wait.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await wait
                await eventually(lambda: watchers(etcd_server) == before)
                # The store goes on.
                await store.set("k", "v")
                assert await store.get("k") == b"v"

        asyncio.run(use())

    def test_a_watch_loses_nothing_to_a_wait_that_is_cancelled(
        self, client: Client, prefix: str
    ) -> None:
        async def use() -> None:
            key = f"{prefix}/k".encode()
            async with connected(client) as made:
                watch = made.raw.watch(key)
                await anext(watch)
                seen = []
                for number in range(50):
                    wait = asyncio.create_task(_next(watch))
                    await asyncio.sleep(0)
                    put = asyncio.create_task(made.raw.txn([], [("put", key, b"%d" % number, 0)]))
                    # At every moment of the way from etcd to here.
                    for _ in range(number):
                        await asyncio.sleep(0)
                    wait.cancel()
                    done = (await asyncio.gather(wait, return_exceptions=True))[0]
                    if not isinstance(done, BaseException):
                        seen += done.events
                    await put
                while len(seen) < 50:
                    seen += (await asyncio.wait_for(anext(watch), SOON_S)).events
                assert [event.kv.value for event in seen] == [b"%d" % n for n in range(50)]
                rest = asyncio.create_task(_all(watch))
                await asyncio.sleep(0)
                watch.close()
                assert await rest == []

        asyncio.run(use())


class TestErrors:
    def test_nobody_answers(self) -> None:
        async def use() -> None:
            async with aio.Client(f"127.0.0.1:{_free_port()}", read_timeout=0.5) as made:
                with pytest.raises(EtcdConnectionFailed, match="127.0.0.1"):
                    await made.list_runs()

        asyncio.run(use())

    def test_an_answer_that_is_lost(self, client: Client, prefix: str) -> None:
        async def use() -> None:
            key = f"{prefix}/k".encode()
            with Proxy(client.port) as proxy:
                async with aio.Client(f"127.0.0.1:{proxy.port}") as made:
                    await made.raw.version()
                    proxy.break_at(key, forward=True)
                    with pytest.raises(EtcdAmbiguous):
                        await made.raw.txn([], [("put", key, b"v", 0)])
                    # Under a guard it may be sent again. Whether the first one had taken effect is etcd's
                    # affair: newer versions drop a request whose connection breaks. It happens once.
                    other = f"{prefix}/other".encode()
                    proxy.break_at(other, forward=True)
                    guard = [("version", other, "=", 0)]
                    await made.raw.txn(guard, [("put", other, b"w", 0)], safely=True)
                    found = (await made.raw.range(other)).kvs
                    assert [(kv.value, kv.version) for kv in found] == [(b"w", 1)]

        asyncio.run(use())

    def test_what_etcd_refuses(self, client: Client, prefix: str) -> None:
        async def use() -> None:
            key = f"{prefix}/k".encode()
            async with connected(client) as made:
                with pytest.raises(EtcdException, match="future revision"):
                    await made.raw.range(key, revision=1 << 60)
                old = (await made.raw.txn([], [("put", key, b"v", 0)])).revision
                await made.raw.txn([], [("put", key, b"w", 0)])
                compact(client)
                with pytest.raises(EtcdEventIndexCleared):
                    await made.raw.range(key, revision=old)
                watch = made.raw.watch(key, None, old)
                with pytest.raises(EtcdEventIndexCleared):
                    await anext(watch)
                assert watch.compacted is not None
                assert watch.compacted > old
                with pytest.raises(StopAsyncIteration):
                    await anext(watch)

        asyncio.run(use())

    def test_a_client_that_is_closed(self, client: Client) -> None:
        async def use() -> None:
            async with connected(client) as made:
                waits = asyncio.create_task(_watch_for_ever(made, "/x"))
                await made.raw.version()
            with pytest.raises(RuntimeError, match="closed"):
                await waits
            with pytest.raises(RuntimeError, match="closed"):
                await made.raw.version()

        asyncio.run(use())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"endpoint": ""}, "endpoint"),
            ({"endpoint": "h:port"}, "'h:port' is not valid"),
            ({"endpoint": "h", "protocol": "ftp"}, "http or https, not 'ftp'"),
            ({"endpoint": "h", "username": "u"}, "'u' was given without a password"),
            ({"endpoint": "h", "password": "p"}, "without a user"),
            ({"endpoint": "u:p@h"}, "must not hold a user"),
        ],
    )
    def test_bad_arguments(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            aio.Client(**arguments)

    def test_no_password_is_shown(self) -> None:
        made = aio.Client("h", username="u", password="secret")
        assert "secret" not in repr(made) + repr(vars(made))
        assert "h:2379" in repr(made)


async def _version(client: aio.Client) -> str:
    return await client.raw.version()


async def _next(watch: aio.Watch) -> aio.WatchBatch:
    return await anext(watch)


async def _all(watch: aio.Watch) -> list[aio.WatchBatch]:
    return [batch async for batch in watch]


async def _watch_for_ever(client: aio.Client, prefix: str) -> None:
    with client.raw.watch(prefix.encode()) as watch:
        async for _ in watch:
            pass


def _is_waiting(task: asyncio.Task[bytes]) -> bool:
    return task.get_stack() != [] and getattr(task, "_fut_waiter", None) is not None


def _free_port() -> int:
    with find_free_port() as sock:
        return int(sock.getsockname()[1])
