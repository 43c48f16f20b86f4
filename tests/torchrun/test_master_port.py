"""MASTER_PORT: nobody takes it between the barrier and the worker that listens on it."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters

from support.processes.agents import Job
from support.processes.nodes import Run, join_all
from torchetcd._rendezvous import master_port
from torchetcd._rendezvous.master_port import MasterPort
from torchetcd._rendezvous.options import parse_options
from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler
from torchetcd.etcd_server import EtcdServer

# A worker that does first what any other program on its host may do.
TAKES_IT_FIRST = """
import datetime, os, socket, torch.distributed as dist
port = int(os.environ["MASTER_PORT"])
took = []
for family in (socket.AF_INET, socket.AF_INET6):
    try:
        other = socket.socket(family)
        other.bind(("", port))
        other.listen()
        took.append(other)
    except OSError:
        pass
print("taken by others:", len(took), flush=True)
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
dist.barrier()
print("met", flush=True)
dist.destroy_process_group()
"""


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET) as sock:
        try:
            sock.bind(("", port))
        except OSError:
            return False
        return True


@pytest.fixture
def free() -> int:
    """A port that is free, as the next one is. The kernel gives neither to a program that names none."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(lowest // 2, lowest - 1)
        if is_free(port) and is_free(port + 1):
            return port


@pytest.fixture
def handler(etcd_server: EtcdServer, run_id: str) -> Iterator[EtcdRendezvousHandler]:
    parameters = RendezvousParameters(
        "etcd-v3",
        etcd_server.get_endpoint(),
        run_id,
        1,
        1,
        local_addr="127.0.0.1",
        last_call_timeout=0,
    )
    made = create_rdzv_handler(parameters)
    yield made
    made.shutdown()


class TestOfARound:
    def test_it_is_for_workers_until_the_next_one(self, handler: EtcdRendezvousHandler) -> None:
        first = handler.next_rendezvous().bootstrap_store_info.master_port
        assert not is_free(first)
        second = handler.next_rendezvous().bootstrap_store_info.master_port
        assert first == second or is_free(first)
        assert not is_free(second)
        handler.shutdown()
        assert is_free(second)

    def test_it_goes_with_the_handler(self, etcd_server: EtcdServer, run_id: str) -> None:
        parameters = RendezvousParameters(
            "etcd-v3", etcd_server.get_endpoint(), run_id, 1, 1, last_call_timeout=0
        )
        made = create_rdzv_handler(parameters)
        port = made.next_rendezvous().bootstrap_store_info.master_port
        assert not is_free(port)
        del made
        assert is_free(port)

    @pytest.mark.parametrize("use_libuv", [True, False])
    def test_a_store_listens_on_it(self, handler: EtcdRendezvousHandler, use_libuv: bool) -> None:
        """Both of torch's servers, and another after the first, as a script may begin anew."""
        for _ in range(2):
            port = handler.next_rendezvous().bootstrap_store_info.master_port
            for _ in range(2):
                store = dist.TCPStore(
                    "127.0.0.1",
                    port,
                    1,
                    is_master=True,
                    timeout=timedelta(seconds=30),
                    use_libuv=use_libuv,
                )
                store.set("key", "value")
                assert store.get("key") == b"value"
                del store

    @pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
    def test_other_servers_listen_on_it(
        self, handler: EtcdRendezvousHandler, family: socket.AddressFamily
    ) -> None:
        port = handler.next_rendezvous().bootstrap_store_info.master_port
        with socket.create_server(("", port), family=family) as server:
            to = "127.0.0.1" if family == socket.AF_INET else "::1"
            socket.create_connection((to, port)).close()
            server.accept()[0].close()

    def test_a_node_of_another_rank_keeps_none(self) -> None:
        port = MasterPort()
        with port.reserved() as got:
            assert not is_free(got)
        assert is_free(got)

    def test_a_system_that_does_not_share_ports(
        self, handler: EtcdRendezvousHandler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(master_port, "_can_be_listened_on", lambda _sock: False)
        assert is_free(handler.next_rendezvous().bootstrap_store_info.master_port)


class TestGivenPorts:
    @pytest.mark.parametrize(
        ("text", "first", "last"),
        [("29500", 29500, 29500), (29500, 29500, 29500), ("1-65535", 1, 65535), ("7 - 9", 7, 9)],
    )
    def test_read(self, text: object, first: int, last: int) -> None:
        assert parse_options({"master_port": text}).master_port == range(first, last + 1)

    @pytest.mark.parametrize(
        "text", ["0", "65536", "9-7", "0-9", "7-", "-7", "7-9-11", "a", "", "1e3", "٣", True, 2.5]
    )
    def test_refused(self, text: object) -> None:
        message = "^The rendezvous parameter 'master_port' must be a port, 1 to 65535, or the first"
        with pytest.raises(ValueError, match=message):
            parse_options({"master_port": text})

    def test_one_that_is_free_is_taken(self, free: int) -> None:
        port = MasterPort(range(free, free + 2))
        with socket.create_server(("", free)):
            for _ in range(5):
                with port.reserved() as got:
                    assert got == free + 1

    def test_not_what_another_agent_keeps(self, free: int) -> None:
        first, second = MasterPort(range(free, free + 1)), MasterPort(range(free, free + 2))
        with first.reserved():
            first.keep()
        for _ in range(5):
            with second.reserved() as got:
                assert got == free + 1

    def test_its_own_again(self, free: int) -> None:
        """One port is enough for an agent alone, also right after connections to it have ended."""
        port = MasterPort(range(free, free + 1))
        for _ in range(2):
            with port.reserved() as got:
                port.keep()
            with socket.create_server(("", got)) as server:
                client = socket.create_connection(("127.0.0.1", got))
                # The side that ends it first remembers it for a minute.
                server.accept()[0].close()
                client.close()
            assert not is_free(got)

    def test_none_is_free(self, free: int) -> None:
        message = f"No port of {free}-{free + 1}, .*'master_port', is free"
        with (
            socket.create_server(("", free)),
            socket.create_server(("", free + 1)),
            pytest.raises(RendezvousError, match=message),
            MasterPort(range(free, free + 2)).reserved(),
        ):
            pass

    def test_by_the_configuration(self, run: Run, free: int) -> None:
        (place,) = join_all(run.nodes(1, master_port=f"{free}-{free + 1}"))
        assert place.master_port in {free, free + 1}


@pytest.mark.slow(15)
@pytest.mark.timeout(400)
def test_workers_meet_whoever_wants_their_port(run: Run, tmp_path: Path) -> None:
    job = Job(run, tmp_path)
    try:
        script = job.script(TAKES_IT_FIRST)
        agents = [job.agent("2", script, max_restarts=0) for _ in range(2)]
        for agent in agents:
            text = agent.end()
            assert "taken by others: 0" in text
            assert "met" in text
    finally:
        job.end()
