"""`torchetcd.aio.Store`: the operations and errors of `EtcdStore`."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from support.network.proxy import Proxy
from support.records import connected
from torchetcd import aio
from torchetcd.etcd import Client
from torchetcd.etcd_store import (
    EtcdStore,
    QueueEmptyError,
    StoreConnectionError,
    StoreTimeoutError,
)


class TestStore:
    def test_every_operation_is_that_of_the_other_store(self, client: Client, prefix: str) -> None:
        async def use() -> None:
            with EtcdStore(client, prefix) as other:
                async with connected(client) as made:
                    store = aio.Store(made, prefix)
                    await store.set("a", "1")
                    assert other.get("a") == b"1" == await store.get("a")
                    other.set(b"\xff", b"2")
                    assert await store.get(b"\xff") == b"2"
                    assert await store.add("n", 5) == 5
                    assert other.add("n", -2) == 3
                    assert await store.compare_set("a", "1", "3") == b"3"
                    assert await store.compare_set("a", "1", "4") == b"3"
                    await store.append("a", "x")
                    assert await store.multi_get(["a", "n"]) == [b"3x", b"3"]
                    await store.multi_set(["p", "q"], [b"P", memoryview(b"Q")])
                    assert await store.check(["p", "q"])
                    assert not await store.check(["p", "no"])
                    await store.wait(["p", "q"])
                    assert sorted(await store.list_keys()) == sorted(other.list_keys())
                    assert await store.num_keys() == other.num_keys() == 5
                    assert await store.delete_key("p")
                    assert not await store.delete_key("p")
                    await store.queue_push("queue", "first")
                    other.queue_push("queue", "second")
                    assert await store.queue_len("queue") == 2
                    assert await store.queue_pop("queue") == b"first"
                    assert await store.queue_pop("queue", block=False) == b"second"

        asyncio.run(use())

    def test_waits_end_when_the_key_comes(self, client: Client, prefix: str) -> None:
        async def use() -> None:
            async with connected(client) as made:
                store = aio.Store(made, prefix)
                waits = [
                    asyncio.create_task(wait)
                    for wait in (store.get("k"), store.wait(["k"]), store.queue_pop("q"))
                ]
                await store.queue_push("q", "v")
                await store.set("k", "v")
                assert await asyncio.gather(*waits) == [b"v", None, b"v"]

        asyncio.run(use())

    def test_errors(self, client: Client, prefix: str) -> None:
        async def use() -> None:
            async with connected(client) as made:
                store = aio.Store(made, prefix, timeout=timedelta(milliseconds=20))
                with pytest.raises(StoreTimeoutError, match='"never"'):
                    await store.get("never")
                with pytest.raises(LookupError):
                    await store.wait(["never"], 0)
                with pytest.raises(QueueEmptyError):
                    await store.queue_pop("q", block=False)
                with pytest.raises(ValueError, match="etcd takes requests of"):
                    await store.set("k", b"x" * (2 << 20))
                with pytest.raises(TypeError, match="not int"):
                    await store.set("k", 1)  # type: ignore[arg-type]
                with pytest.raises(TypeError, match="in a list"):
                    await store.check("k")
                await store.set("word", "x")
                with pytest.raises(ValueError, match="integer"):
                    await store.add("word", 1)

        asyncio.run(use())

    def test_writes_take_effect_once_although_answers_are_lost(
        self, client: Client, prefix: str
    ) -> None:
        async def use() -> None:
            with Proxy(client.port, every=3) as proxy:
                async with aio.Client(f"127.0.0.1:{proxy.port}") as made:
                    store = aio.Store(made, prefix)
                    for number in range(12):
                        assert await store.add("n", 1) == number + 1
                assert proxy.lost >= 3

        asyncio.run(use())

    def test_nobody_answers(self, client: Client, prefix: str) -> None:
        async def use() -> None:
            with Proxy(client.port) as proxy:
                proxy.cut()
                async with aio.Client(f"127.0.0.1:{proxy.port}", read_timeout=0.5) as made:
                    with pytest.raises(StoreConnectionError):
                        await aio.Store(made, prefix).set("k", "v")

        asyncio.run(use())
