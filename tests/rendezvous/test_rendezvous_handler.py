"""The handler and its parts in one process: names, parameters, results, errors, events, log lines."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import DistStoreError
from torch.distributed.elastic import events
from torch.distributed.elastic.events import NodeState, RdzvEvent
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)

from support.handlers import handlers_of
from support.waiting import eventually
from torchetcd._quorum.clients import connect
from torchetcd._quorum.entries import parse_entries
from torchetcd._rendezvous import waits
from torchetcd.etcd import Client, EtcdConnectionFailed
from torchetcd.etcd_rendezvous import EtcdRendezvous, EtcdRendezvousHandler, create_rdzv_handler
from torchetcd.etcd_server import EtcdServer

CONTROL = "rdzv/head/control"


@pytest.fixture
def run_id(prefix: str) -> str:
    return prefix.strip("/")


@pytest.fixture
def make(etcd_server: EtcdServer, run_id: str) -> Iterator[Callable[..., EtcdRendezvousHandler]]:
    with handlers_of(etcd_server.get_endpoint(), run_id) as create:
        yield create


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[RdzvEvent]:
    """Torch records no event unless there is a place for them."""
    found: list[RdzvEvent] = []
    monkeypatch.setattr(events, "get_logging_handler", lambda _destination: logging.StreamHandler())
    monkeypatch.setattr(events, "record_rdzv_event", found.append)
    return found


class TestRendezvous:
    """The seven positional arguments of torch, and a handler made with one."""

    @pytest.mark.parametrize("path", ["/test/p2p", "test/p2p", "/test/p2p/", "//test/p2p//"])
    def test_a_rendezvous_of_one(self, client: Client, run_id: str, path: str) -> None:
        rdzv = EtcdRendezvous(client, path, run_id, 1, 1, 30, 5)
        handler = EtcdRendezvousHandler(rdzv)
        info = handler.next_rendezvous()
        assert (info.rank, info.world_size) == (0, 1)
        assert client.read(f"/test/p2p/run_{run_id}/{CONTROL}").value
        assert rdzv.get_path("/x") == rdzv.get_path("x") == f"/test/p2p/run_{run_id}/x"
        assert handler.shutdown()

    def test_the_barrier(self, client: Client, prefix: str) -> None:
        rdzv = EtcdRendezvous(client, prefix, 17, 1, 1, 30, 5)
        assert EtcdRendezvousHandler(rdzv).get_run_id() == "17"
        assert rdzv.rendezvous_barrier() == (1, 0, 1)
        assert rdzv.rendezvous_barrier() == (2, 0, 1)
        rdzv.set_closed()
        with pytest.raises(RendezvousClosedError):
            rdzv.rendezvous_barrier()

    def test_the_empty_prefix(self, client: Client, run_id: str) -> None:
        rdzv = EtcdRendezvous(client, "/", run_id, 1, 1, 30, 5)
        assert rdzv.get_path("x") == f"/run_{run_id}/x"

    def test_the_store_of_a_round(self, client: Client, prefix: str) -> None:
        rdzv = EtcdRendezvous(client, prefix, "run", 1, 1, 30, 5)
        version, _, _ = rdzv.rendezvous_barrier()
        rdzv.setup_kv_store(version).set("key", "value")
        assert rdzv.setup_kv_store(version).get("key") == b"value"
        rdzv.leave()

    def test_extra_data(self, client: Client, prefix: str) -> None:
        rdzv = EtcdRendezvous(client, prefix, "run", 1, 1, 30, 5)
        version, _, _ = rdzv.rendezvous_barrier()
        value = {"hosts": ["a", "b"], "ports": [1, 2], "größe": None}
        rdzv.store_extra_data(version, "key", value)
        assert rdzv.load_extra_data(version, "key") == value
        with pytest.raises(LookupError) as raised:
            rdzv.load_extra_data(version, "other", timeout=0.2)
        assert isinstance(raised.value, DistStoreError)
        rdzv.leave()

    def test_extra_data_that_comes_later(self, client: Client, prefix: str) -> None:
        one, other = (EtcdRendezvous(client, prefix, "run", 2, 2, 30, 5) for _ in range(2))
        with ThreadPoolExecutor(2) as pool:
            barriers = [pool.submit(rdzv.rendezvous_barrier) for rdzv in (one, other)]
            version = barriers[0].result()[0]
            barriers[1].result()
            waiting = pool.submit(one.load_extra_data, version, "key", 20)
            other.store_extra_data(version, "key", "value")
            assert waiting.result() == "value"
        one.leave()
        other.leave()

    @pytest.mark.parametrize(("least", "most"), [(0, 1), (2, 1), (-1, 1)])
    def test_impossible_numbers_of_nodes(self, client: Client, least: int, most: int) -> None:
        with pytest.raises(ValueError, match="1 <= min_nodes <= max_nodes"):
            EtcdRendezvous(client, "/p", "run", least, most, 30, 5)

    def test_a_client_of_python_etcd(self, etcd_server: EtcdServer, prefix: str) -> None:
        # What `as_client` needs of python-etcd's class.
        foreign = types.SimpleNamespace(
            host=etcd_server.get_host(),
            port=etcd_server.get_port(),
            protocol="http",
            read_timeout=9,
        )
        rdzv = EtcdRendezvous(foreign, prefix, "run", 1, 1, 30, 5)  # type: ignore[arg-type]
        assert rdzv.rendezvous_barrier() == (1, 0, 1)
        rdzv.leave()

    def test_something_that_is_no_client(self) -> None:
        with pytest.raises(TypeError, match=r"torchetcd\.etcd\.Client or a client of python-etcd"):
            EtcdRendezvous("localhost:2379", "/p", "run", 1, 1, 30, 5)  # type: ignore[arg-type]


class TestHandler:
    def test_names(self, make: Callable[..., EtcdRendezvousHandler], run_id: str) -> None:
        handler = make()
        assert isinstance(handler, RendezvousHandler)
        assert handler.get_run_id() == run_id
        assert handler.get_backend() == "etcd-v3"
        assert make(backend="etcd-v2").get_backend() == "etcd-v2"
        assert EtcdRendezvousHandler(handler._rdzv_impl).get_backend() == "etcd"
        assert handler.use_agent_store is False

    def test_next_rendezvous(self, make: Callable[..., EtcdRendezvousHandler]) -> None:
        handler = make()
        info = handler.next_rendezvous()
        assert (info.rank, info.world_size) == (0, 1)
        info.store.set("key", "value")
        assert info.store.get("key") == b"value"
        master = info.bootstrap_store_info
        assert isinstance(master, RendezvousStoreInfo)
        assert master.master_addr == "127.0.0.1"
        assert info.store.get("MASTER_ADDR") == b"127.0.0.1"
        assert info.store.get("MASTER_PORT") == str(master.master_port).encode()
        # The port is free for the workers.
        with socket.create_server((master.master_addr, master.master_port)):
            pass

    def test_an_address_that_peers_can_reach(
        self, make: Callable[..., EtcdRendezvousHandler]
    ) -> None:
        master = make(local_addr=None).next_rendezvous().bootstrap_store_info
        # An address and no name; it is one of this host's.
        assert master.master_addr == socket.gethostbyname(master.master_addr)
        with socket.create_server((master.master_addr, master.master_port)):
            socket.create_connection((master.master_addr, master.master_port), 5).close()

    def test_every_round_has_a_store_of_its_own(
        self, make: Callable[..., EtcdRendezvousHandler]
    ) -> None:
        handler = make()
        handler.next_rendezvous().store.set("key", "first")
        store = handler.next_rendezvous().store
        assert not store.check(["key"])
        assert store.check(["MASTER_ADDR", "MASTER_PORT"])

    def test_closing(self, make: Callable[..., EtcdRendezvousHandler]) -> None:
        handler, other = make(), make()
        assert not handler.is_closed()
        handler.set_closed()
        assert handler.is_closed()
        handler.set_closed()
        eventually(other.is_closed)
        with pytest.raises(RendezvousClosedError) as raised:
            other.next_rendezvous()
        assert f"{os.uname().nodename} (pid {os.getpid()}): set_closed() was called" in str(
            raised.value
        )
        assert make().is_closed()

    def test_shutdown(self, make: Callable[..., EtcdRendezvousHandler], client: Client) -> None:
        handler = make()
        handler.next_rendezvous()
        assert handler.shutdown() is True
        assert handler.is_closed()
        assert handler.shutdown() is True
        # It has left: only the record of the closing is there, and what belongs to the round.
        impl = handler._rdzv_impl
        assert impl.get_path("rdzv/round/1/member") not in client
        with pytest.raises(RendezvousClosedError, match="the job succeeded"):
            make().next_rendezvous()

    @pytest.mark.needs_etcd
    def test_shutdown_without_etcd(self, run_id: str, caplog: pytest.LogCaptureFixture) -> None:
        with EtcdServer() as server:
            handler = create_rdzv_handler(
                RendezvousParameters(
                    "etcd-v3", server.get_endpoint(), run_id, 1, 1, close_timeout=2
                )
            )
            handler.next_rendezvous()
        assert handler.shutdown() is False
        assert "could not be closed" in caplog.text

    def test_runs_are_strangers(
        self, make: Callable[..., EtcdRendezvousHandler], run_id: str, client: Client
    ) -> None:
        """Also where the name of one is a path below, or the beginning of, another's."""
        names = [f"{run_id}{end}" for end in ("", "/b", "b", "%2Fb", " b", "/../x", "/rdzv/head")]
        handlers = [make(run_id=name) for name in names]
        paths = [handler._rdzv_impl.get_path("") for handler in handlers]
        assert len(set(paths)) == len(paths)
        assert not any(a != b and a.startswith(b) for a in paths for b in paths)
        for handler, name in zip(handlers, names, strict=True):
            assert handler.next_rendezvous().world_size == 1
            assert handler.get_run_id() == name
        handlers[0].set_closed()
        assert not any(handler.is_closed() for handler in handlers[1:])

    def test_the_prefix(
        self, make: Callable[..., EtcdRendezvousHandler], prefix: str, run_id: str, client: Client
    ) -> None:
        make(etcd_prefix=prefix).next_rendezvous()
        assert client.read(f"{prefix}/run_{run_id}/{CONTROL}").value


class TestErrors:
    @pytest.fixture
    def silent_port(self) -> Iterator[int]:
        """A port that nobody listens on."""
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            yield sock.getsockname()[1]

    def test_etcd_cannot_be_reached(self, silent_port: int) -> None:
        endpoint = f"127.0.0.1:{silent_port}"
        with pytest.raises(RendezvousConnectionError) as raised:
            create_rdzv_handler(RendezvousParameters("etcd", endpoint, "run", 1, 1, join_timeout=1))
        assert endpoint in str(raised.value)
        assert isinstance(raised.value.__cause__, EtcdConnectionFailed)
        assert endpoint in str(raised.value.__cause__)

    def test_the_next_endpoint_is_used(
        self,
        make: Callable[..., EtcdRendezvousHandler],
        etcd_server: EtcdServer,
        silent_port: int,
    ) -> None:
        endpoint = f"127.0.0.1:{silent_port},{etcd_server.get_endpoint()}"
        assert make(endpoint=endpoint).next_rendezvous().world_size == 1

    @pytest.mark.parametrize(
        "record",
        ["garbage", '{"v":1,"round":1,"state":"odd"}', '{"v":99,"round":1,"state":"open"}', "{}"],
    )
    def test_a_corrupt_record(
        self, make: Callable[..., EtcdRendezvousHandler], client: Client, run_id: str, record: str
    ) -> None:
        key = f"/torchelastic/p2p/run_{run_id}/{CONTROL}"
        client.write(key, record)
        with pytest.raises(RendezvousStateError) as raised:
            make()
        assert key in str(raised.value)

    def test_a_record_that_becomes_corrupt(
        self, make: Callable[..., EtcdRendezvousHandler], client: Client
    ) -> None:
        handler = make(2, 2)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(handler.next_rendezvous)
            key = handler._rdzv_impl.get_path(CONTROL)
            eventually(lambda: key in client)
            client.write(key, "garbage")
            with pytest.raises(RendezvousStateError, match="control"):
                waiting.result(10)

    def test_nobody_comes(self, make: Callable[..., EtcdRendezvousHandler]) -> None:
        handler = make(2, 3, timeout="1")
        with pytest.raises(RendezvousTimeoutError) as raised:
            handler.next_rendezvous()
        assert "1 of at least 2 nodes joined, 1 missing" in str(raised.value)
        assert f"(pid {os.getpid()})" in str(raised.value)
        assert "`torchetcd why " in str(raised.value)


class TestEvents:
    def test_of_a_round_and_its_end(
        self, make: Callable[..., EtcdRendezvousHandler], recorded: list[RdzvEvent], run_id: str
    ) -> None:
        handler = make()
        handler.next_rendezvous()
        # Agents ask all the time: that is nothing to record.
        for _ in range(3):
            handler.num_nodes_waiting()
            handler.is_closed()
        handler.shutdown()
        assert [event.node_state for event in recorded] == [
            NodeState.RUNNING,
            NodeState.RUNNING,
            NodeState.SUCCEEDED,
        ]
        assert [event.rank for event in recorded] == [None, 0, None]
        assert {event.run_id for event in recorded} == {run_id}
        assert {event.pid for event in recorded} == {os.getpid()}
        assert {event.hostname for event in recorded} == {"127.0.0.1"}
        assert [event.name for event in recorded] == [
            "etcd_rendezvous.py:EtcdRendezvousHandler.next_rendezvous",
            "etcd_rendezvous.py:EtcdRendezvousHandler.next_rendezvous",
            "etcd_rendezvous.py:EtcdRendezvousHandler.shutdown",
        ]
        assert "attempts to join" in recorded[0].message
        assert "rank 0 in a world of size 1" in recorded[1].message
        assert "has closed the rendezvous" in recorded[2].message

    def test_of_a_failure(
        self, make: Callable[..., EtcdRendezvousHandler], recorded: list[RdzvEvent]
    ) -> None:
        handler = make()
        handler.set_closed()
        with pytest.raises(RendezvousClosedError):
            handler.next_rendezvous()
        closed, _, failed = recorded
        assert closed.name == "etcd_rendezvous.py:EtcdRendezvousHandler.set_closed"
        assert failed.node_state == NodeState.FAILED
        assert failed.message.startswith("RendezvousClosedError: ")
        assert "Traceback" in failed.error_trace


class TestLogLines:
    @pytest.fixture(autouse=True)
    def _often(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setattr(waits, "_FIRST_NOTE_S", 0.1)
        caplog.set_level(logging.INFO, "torchetcd")

    def test_while_nodes_are_missing(
        self, make: Callable[..., EtcdRendezvousHandler], caplog: pytest.LogCaptureFixture
    ) -> None:
        one, other = make(2, 2), make(2, 2)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(one.next_rendezvous)
            line = "round 1, 1 of at least 2 nodes have joined"
            eventually(lambda: caplog.text.count(line) >= 3)
            second = pool.submit(other.next_rendezvous)
            assert first.result(10).world_size == second.result(10).world_size == 2
        lines = [record for record in caplog.records if line in record.message]
        pauses = [b.created - a.created for a, b in itertools.pairwise(lines)]
        assert pauses[1] > 1.5 * pauses[0]
        assert "joining the next round of at least 2 and at most 2 nodes" in caplog.text
        assert "has joined round 1" in caplog.text
        assert {record.name for record in caplog.records} == {"torchetcd.etcd_rendezvous"}

    def test_of_a_spare(
        self, make: Callable[..., EtcdRendezvousHandler], caplog: pytest.LogCaptureFixture
    ) -> None:
        member, spare = make(), make()
        member.next_rendezvous()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(spare.next_rendezvous)
            eventually(lambda: "round 1 is complete; waiting for a place" in caplog.text)
            assert member.num_nodes_waiting() == 0
            member._rdzv_impl.leave()
            assert waiting.result(10).world_size == 1

    def test_who_asked_for_no_lines_is_warned(
        self,
        make: Callable[..., EtcdRendezvousHandler],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        etcd_server: EtcdServer,
        run_id: str,
    ) -> None:
        """After a minute, and then every five: of what is waited for, and who tells more."""
        assert (waits._FIRST_WARNING_S, waits._NEXT_WARNING_S) == (60, 300)
        monkeypatch.setattr(waits, "_FIRST_WARNING_S", 0.3)
        monkeypatch.setattr(waits, "_NEXT_WARNING_S", 0.6)
        caplog.set_level(logging.WARNING, "torchetcd")
        one, other = make(2, 2), make(2, 2)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(one.next_rendezvous)
            said = f"Run '{run_id}': round 1, 1 of at least 2 nodes have joined; waiting for "
            eventually(lambda: caplog.text.count(said) >= 2)
            second = pool.submit(other.next_rendezvous)
            assert first.result(30).world_size == second.result(30).world_size == 2
        line = next(line for line in caplog.messages if line.startswith(said))
        endpoint = f"http://{etcd_server.get_endpoint()}"
        assert line.endswith(f". `torchetcd why {run_id} --endpoint {endpoint}` tells more.")

    def test_a_spare_is_warned_too(
        self,
        make: Callable[..., EtcdRendezvousHandler],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(waits, "_FIRST_WARNING_S", 0.3)
        monkeypatch.setattr(waits, "_NEXT_WARNING_S", 0.3)
        caplog.set_level(logging.WARNING, "torchetcd")
        member, spare = make(), make()
        member.next_rendezvous()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(spare.next_rendezvous)
            eventually(
                lambda: "round 1 is complete; waiting for a place in the next one" in caplog.text
            )
            member._rdzv_impl.leave()
            assert waiting.result(30).world_size == 1

    @pytest.mark.parametrize(
        ("run", "endpoint", "prefix", "command"),
        [
            ("job", "http://localhost:2379", "/torchelastic/p2p/", "torchetcd why job"),
            ("a b", "http://localhost:2379", "torchelastic/p2p", "torchetcd why 'a b'"),
            ("job", "http://h:1", "/p", "torchetcd why job --endpoint http://h:1 --prefix /p"),
        ],
    )
    def test_the_command_that_tells_more(
        self,
        monkeypatch: pytest.MonkeyPatch,
        run: str,
        endpoint: str,
        prefix: str,
        command: str,
    ) -> None:
        for name in ("TORCHETCD_ENDPOINT", "TORCHETCD_PREFIX"):
            monkeypatch.delenv(name, raising=False)
        client = Client(endpoint)
        assert waits.why_command(run, client, prefix) == command
        # As the command line takes it from the same environment.
        monkeypatch.setenv("TORCHETCD_ENDPOINT", endpoint.removeprefix("http://"))
        monkeypatch.setenv("TORCHETCD_PREFIX", prefix)
        assert "--" not in waits.why_command(run, client, prefix)

    def test_the_command_for_a_quorum(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As it was typed: the list of URLs would say neither what it is nor who has the secret."""
        for name in ("TORCHETCD_ENDPOINT", "TORCHETCD_QUORUM_SECRET_FILE"):
            monkeypatch.delenv(name, raising=False)
        typed = "job://a,b:7000,c"
        client = connect(parse_entries(typed, 3), None, 1.0, secret_file="/s")
        command = waits.why_command("q", client, "/torchelastic/p2p")
        assert command == "torchetcd why q --endpoint job://a,b:7000,c --quorum-secret-file /s"
        monkeypatch.setenv("TORCHETCD_ENDPOINT", typed)
        monkeypatch.setenv("TORCHETCD_QUORUM_SECRET_FILE", "/s")
        assert waits.why_command("q", client, "/torchelastic/p2p") == "torchetcd why q"

    def test_a_wait_that_nobody_is_told_of(
        self, make: Callable[..., EtcdRendezvousHandler], caplog: pytest.LogCaptureFixture
    ) -> None:
        """A barrier that completes at once is worth one line at its start and one at its end."""
        make().next_rendezvous()
        assert len(caplog.records) == 2


def test_no_handler_for_signals_is_left(make: Callable[..., EtcdRendezvousHandler]) -> None:
    handler = make()
    before = signal.getsignal(signal.SIGTERM)
    handler.next_rendezvous()
    assert signal.getsignal(signal.SIGTERM) is before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handler.next_rendezvous).result().world_size == 1


def test_threads_may_ask_at_once(make: Callable[..., EtcdRendezvousHandler]) -> None:
    handler = make()
    handler.next_rendezvous()
    start = threading.Barrier(8)

    def ask() -> tuple[int, bool]:
        start.wait()
        return handler.num_nodes_waiting(), handler.is_closed()

    with ThreadPoolExecutor(8) as pool:
        answers = [future.result() for future in [pool.submit(ask) for _ in range(8)]]
    assert answers == [(0, False)] * 8
