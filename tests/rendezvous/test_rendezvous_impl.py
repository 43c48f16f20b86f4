"""A handler with a rendezvous of the caller's: a subclass, something around one, and what torch has."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.distributed import HashStore, Store
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousError

from torchetcd.etcd import Client, EtcdKeyNotFound
from torchetcd.etcd_rendezvous import EtcdRendezvous, EtcdRendezvousHandler

ADDRESS = "192.0.2.77"


class Checked(EtcdRendezvous):
    """Does something of its own at each of torch's methods."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.done: list[str] = []

    def rendezvous_barrier(self) -> tuple[int, int, int]:
        self.done.append("barrier")
        return super().rendezvous_barrier()

    def setup_kv_store(self, rdzv_version: int) -> Store:
        self.done.append("store")
        return super().setup_kv_store(rdzv_version)

    def set_closed(self, reason: str = "the check said so") -> None:
        self.done.append("closed")
        super().set_closed(reason)


class Around:
    """Has torch's methods, and a rendezvous inside."""

    def __init__(self, inner: EtcdRendezvous) -> None:
        self.inner = inner
        self._run_id = inner._run_id
        self.done: list[str] = []

    def rendezvous_barrier(self) -> tuple[int, int, int]:
        self.done.append("barrier")
        return self.inner.rendezvous_barrier()

    def setup_kv_store(self, rdzv_version: int) -> Store:
        self.done.append("store")
        return self.inner.setup_kv_store(rdzv_version)

    def set_closed(self) -> None:
        self.done.append("closed")
        self.inner.set_closed()


class Foreign:
    """torch's methods, on no etcd at all."""

    _run_id = "foreign"

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def rendezvous_barrier(self) -> tuple[int, int, int]:
        self.state = {"status": "final", "num_workers_waiting": 0}
        return 3, 0, 1

    def setup_kv_store(self, rdzv_version: int) -> Store:
        return HashStore()

    def set_closed(self) -> None:
        self.state = {"status": "closed"}

    def get_rdzv_state(self) -> tuple[object, dict[str, Any]]:
        if not self.state:
            raise EtcdKeyNotFound
        return object(), self.state


@pytest.fixture
def inner(client: Client, prefix: str) -> Iterator[EtcdRendezvous]:
    rdzv = EtcdRendezvous(client, prefix, "run", 1, 1, 30, 0)
    yield rdzv
    rdzv.leave()


@pytest.fixture
def another(client: Client, prefix: str) -> Iterator[Callable[[], EtcdRendezvous]]:
    """Makes more nodes of the run."""
    made: list[EtcdRendezvous] = []

    def make() -> EtcdRendezvous:
        made.append(EtcdRendezvous(client, prefix, "run", 1, 1, 30, 0))
        return made[-1]

    yield make
    for rdzv in made:
        rdzv.leave()


class TestOverrides:
    def test_each_of_torchs_methods_is_called(self, client: Client, prefix: str) -> None:
        rdzv = Checked(client, prefix, "run", 1, 1, 30, 0)
        handler = EtcdRendezvousHandler(rdzv, ADDRESS)
        info = handler.next_rendezvous()
        assert rdzv.done == ["barrier", "store"]
        assert (info.rank, info.world_size) == (0, 1)
        assert info.bootstrap_store_info.master_addr == ADDRESS
        assert handler.shutdown()
        assert rdzv.done == ["barrier", "store", "closed"]
        # As a member, which says how the job has ended.
        closed = rdzv._node.closed()
        assert closed is not None
        assert closed[3] == "succeeded"

    def test_closing_on_purpose(self, client: Client, prefix: str) -> None:
        rdzv = Checked(client, prefix, "run", 1, 1, 30, 0)
        EtcdRendezvousHandler(rdzv).set_closed()
        closed = rdzv._node.closed()
        assert closed is not None
        assert closed[1] == "the check said so"
        with pytest.raises(RendezvousClosedError):
            EtcdRendezvousHandler(rdzv).next_rendezvous()
        assert rdzv.done == ["closed", "barrier"]

    def test_a_node_that_is_not_well(
        self, client: Client, prefix: str, another: Callable[[], EtcdRendezvous]
    ) -> None:
        """Its own error goes on, it joins nothing, and the run goes on without it."""

        class Sick(Checked):
            def rendezvous_barrier(self) -> tuple[int, int, int]:
                raise RuntimeError("ECC error on GPU 3")

        handler = EtcdRendezvousHandler(Sick(client, prefix, "run", 1, 1, 30, 0))
        with pytest.raises(RuntimeError, match="ECC error on GPU 3"):
            handler.next_rendezvous()
        assert another().rendezvous_barrier() == (1, 0, 1)
        assert handler.shutdown() is False
        assert not another().is_closed()

    def test_a_barrier_of_its_own_in_another_thread(
        self, client: Client, prefix: str, inner: EtcdRendezvous
    ) -> None:
        class Threaded(Around):
            def rendezvous_barrier(self) -> tuple[int, int, int]:
                with ThreadPoolExecutor(1) as pool:
                    return pool.submit(self.inner.rendezvous_barrier).result()

        info = EtcdRendezvousHandler(Threaded(inner)).next_rendezvous()  # type: ignore[arg-type]
        master = info.bootstrap_store_info
        assert info.store.get("MASTER_ADDR").decode() == master.master_addr
        assert info.store.get("MASTER_PORT").decode() == str(master.master_port)


class TestObjects:
    def test_around_one_of_ours(
        self, inner: EtcdRendezvous, another: Callable[[], EtcdRendezvous]
    ) -> None:
        around = Around(inner)
        handler = EtcdRendezvousHandler(around, ADDRESS)  # type: ignore[arg-type]
        assert not handler.is_closed()
        info = handler.next_rendezvous()
        assert around.done == ["barrier", "store"]
        master = info.bootstrap_store_info
        assert master.master_addr == ADDRESS
        assert info.store.get("MASTER_PORT").decode() == str(master.master_port)
        assert handler.num_nodes_waiting() == 0
        assert not handler.is_closed()
        assert handler.shutdown()
        assert around.done == ["barrier", "store", "closed"]
        assert handler.is_closed()
        assert another().is_closed()

    def test_a_spare_leaves_the_run_open(
        self,
        inner: EtcdRendezvous,
        another: Callable[[], EtcdRendezvous],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        member = another()
        member.rendezvous_barrier()
        handler = EtcdRendezvousHandler(Around(inner))  # type: ignore[arg-type]
        assert handler.shutdown() is False
        assert "is left open" in caplog.text
        assert not member.is_closed()

    def test_what_is_torchs(self) -> None:
        foreign = Foreign()
        handler = EtcdRendezvousHandler(foreign, ADDRESS)  # type: ignore[arg-type]
        assert handler.get_run_id() == "foreign"
        assert not handler.is_closed()
        assert handler.num_nodes_waiting() == 0
        info = handler.next_rendezvous()
        assert (info.rank, info.world_size) == (0, 1)
        master = info.bootstrap_store_info
        assert master.master_addr == ADDRESS
        assert info.store.get("MASTER_PORT").decode() == str(master.master_port)
        foreign.state["num_workers_waiting"] = 2
        assert handler.num_nodes_waiting() == 2
        assert handler.shutdown()
        assert handler.is_closed()
        assert handler.num_nodes_waiting() == 0


class TestShutdown:
    """It returns a bool, whatever happens: torch calls it while the job's own error goes on."""

    @pytest.mark.parametrize(
        "error", [RuntimeError("no"), RendezvousError("no"), ValueError("no"), OSError("no")]
    )
    @pytest.mark.parametrize("method", ["set_closed", "leave"])
    def test_whatever_is_raised(
        self,
        inner: EtcdRendezvous,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        method: str,
        error: Exception,
    ) -> None:
        def fail(*_: object) -> None:
            raise error

        handler = EtcdRendezvousHandler(inner)
        handler.next_rendezvous()
        with monkeypatch.context() as patch:
            patch.setattr(inner, method, fail)
            assert handler.shutdown() is (method == "leave")
        (record,) = (it for it in caplog.records if it.levelno == logging.WARNING)
        assert record.getMessage().endswith(": no")

    def test_a_client_that_is_closed(self, client: Client, prefix: str, etcd_server: Any) -> None:
        own = etcd_server.get_client()
        handler = EtcdRendezvousHandler(EtcdRendezvous(own, prefix, "run", 1, 1, 30, 0))
        handler.next_rendezvous()
        own.close()
        assert handler.shutdown() is False

    def test_an_interruption_goes_on(
        self, inner: EtcdRendezvous, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        handler = EtcdRendezvousHandler(inner)
        monkeypatch.setattr(inner, "set_closed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            handler.shutdown()


def test_news_of_what_is_inside(
    inner: EtcdRendezvous, another: Callable[[], EtcdRendezvous], client: Client
) -> None:
    """Members are told of changes whoever is asked."""
    handler = EtcdRendezvousHandler(Around(inner))  # type: ignore[arg-type]
    handler.next_rendezvous()
    inner._news = json.dumps("news")
    assert handler.num_nodes_waiting() == 0
    assert inner._news is None
