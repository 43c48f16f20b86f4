"""Which member is used: each address that a name has, one that hangs or only seems to serve, and a proxy."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters

from support.etcd.cluster import Cluster
from support.network.http2 import Mesh, StreamEnder
from support.network.proxy import Proxy
from support.processes.nodes import Run
from support.stores import in_background, opened
from torchetcd.etcd import Client, EtcdConnectionFailed, EtcdException
from torchetcd.etcd_rendezvous import create_rdzv_handler
from torchetcd.etcd_server import EtcdServer
from torchetcd.etcd_store import StoreConnectionError, StoreOutcomeUnknownError

pytestmark = pytest.mark.needs_etcd

_WRITER = """
import sys
from torchetcd.etcd import Client
endpoint, key = sys.argv[1:]
for number in range(4):
    with Client(endpoint, read_timeout=20) as client:
        client.write(f"{key}/{number}", "value")
"""

_READER = """
import sys
from torchetcd.etcd import Client
endpoint, key = sys.argv[1:]
with Client(endpoint, read_timeout=40) as client:
    client.write(key, "value")
    print("written", flush=True)
    sys.stdin.readline()
    assert client.read(key).value == "value"
"""


def _may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--mount", "mount", "--bind", "/etc/hosts", "/etc/hosts"]
    tried = subprocess.run(command, capture_output=True, check=False)
    return tried.returncode == 0


@pytest.mark.skipif(not _may_mount(), reason="only root can give a process names of its own")
class TestOneNameManyAddresses:
    """A headless Service, or a name with several A records."""

    @pytest.fixture
    def named(self, tmp_path: Path) -> list[str]:
        """Provide the beginning of a command that knows etcd.test by three addresses."""
        (tmp_path / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"127.0.0.{n} etcd.test\n" for n in (2, 3, 4))
        )
        mount = f'mount --bind {tmp_path}/hosts /etc/hosts && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c"]

    @pytest.mark.parametrize("good", ["127.0.0.2", "127.0.0.4"])
    def test_the_one_that_serves_is_found(
        self, etcd_server: EtcdServer, prefix: str, named: list[str], good: str
    ) -> None:
        with Proxy(etcd_server.get_port(), good) as proxy:
            others = [f"127.0.0.{n}" for n in (2, 3, 4) if f"127.0.0.{n}" != good]
            hangs, closes = (socket.create_server((host, proxy.port)) for host in others)
            with hangs, closes:
                closing = in_background(lambda: _close_all(closes))
                endpoint = f"etcd.test:{proxy.port}"
                subprocess.run([*named, _WRITER, endpoint, prefix], check=True, timeout=100)
                closes.shutdown(socket.SHUT_RDWR)
                closing.join()

    @pytest.mark.slow(8)
    def test_another_one_is_used_after_a_failure(
        self, etcd_server: EtcdServer, prefix: str, named: list[str]
    ) -> None:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(Proxy(etcd_server.get_port(), "127.0.0.2"))
            proxies = [first]
            for host in ("127.0.0.3", "127.0.0.4"):
                proxy = Proxy(etcd_server.get_port(), host, first.port)
                proxies.append(stack.enter_context(proxy))
            command = [*named, _READER, f"etcd.test:{first.port}", prefix]
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as reader:
                assert reader.stdout
                assert reader.stdout.readline() == "written\n"
                (used,) = [proxy for proxy in proxies if proxy.connections]
                used.freeze()
                reader.communicate("go\n", timeout=60)
            assert reader.returncode == 0
            assert any(proxy.connections for proxy in proxies if proxy is not used)


def _close_all(listener: socket.socket, answer: bytes = b"") -> None:
    with contextlib.suppress(OSError):
        while True:
            near, _ = listener.accept()
            with near:
                if answer:
                    near.recv(1 << 16)
                    near.sendall(answer)
                    near.shutdown(socket.SHUT_WR)
                    # What is left unread would reset the connection, and the answer would be lost with it.
                    near.settimeout(2)
                    with contextlib.suppress(OSError):
                        while near.recv(1 << 16):
                            pass


class TestHanging:
    @pytest.mark.slow(15)
    def test_endpoints_that_hang_do_not_add_up(self, etcd_server: EtcdServer, prefix: str) -> None:
        """One after the other the four would take 20 s, as each has 5."""
        with contextlib.ExitStack() as stack:
            hanging = [
                stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)
            ]
            endpoints = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in hanging]
            # A client begins with any of them.
            for number in range(6):
                every = ",".join([*endpoints, etcd_server.get_endpoint()])
                with Client(every, read_timeout=14) as client:
                    client.write(f"{prefix}/{number}", "value")

    def test_a_file_that_hangs_keeps_nobody_else(
        self, client: Client, etcd_server: EtcdServer, prefix: str, tmp_path: Path
    ) -> None:
        fifo = tmp_path / "ca.pem"
        os.mkfifo(fifo)
        with Client(
            etcd_server.get_endpoint(), protocol="https", ca_cert=str(fifo), read_timeout=1
        ) as waits:
            try:
                with pytest.raises(EtcdConnectionFailed, match=r"within 1\.0 s"):
                    waits.read(prefix)
                client.write(prefix, "value")
            finally:
                # Whoever reads it goes on, to find that there is nothing.
                os.close(os.open(fifo, os.O_RDWR))


class TestOneThatOnlySeemsToServe:
    """Its status says that it is there, and that it works off nothing."""

    @pytest.mark.slow(25)
    def test_it_is_left(self, prefix: str) -> None:
        # An etcd of its own: what others write, or a lease of theirs that runs out, is applied here too.
        with EtcdServer() as server, StreamEnder(server.get_port()) as proxy:
            endpoints = f"127.0.0.1:{proxy.port},{server.get_endpoint()}"
            with contextlib.ExitStack() as stack:
                # A client begins with any endpoint.
                while not proxy.connections:
                    client = stack.enter_context(Client(endpoints, read_timeout=60))
                    client.write(prefix, "before")
                store = stack.enter_context(opened(client, f"{prefix}/store", timeout=60))
                assert store.add("counter", 1) == 1
                assert proxy.stall()
                adding = in_background(lambda: store.add("counter", 1))
                assert client.read(prefix).value == "before"
                adding.join()
                assert store.add("counter", 0) == 2

    @pytest.mark.slow(10)
    def test_a_lease_is_renewed_on_another_connection(
        self, etcd_server: EtcdServer, run: Run
    ) -> None:
        ttl = 4
        with StreamEnder(etcd_server.get_port()) as proxy:
            handler = create_rdzv_handler(
                RendezvousParameters(
                    "etcd-v3",
                    f"127.0.0.1:{proxy.port}",
                    run.run_id,
                    1,
                    1,
                    local_addr="127.0.0.1",
                    keep_alive_ttl=ttl,
                )
            )
            with handler.next_rendezvous().store:
                (member,) = run.keys("/rdzv/round/1/member")
                lease = run.client.read(member).lease
                assert proxy.stall()
                ends = threading.Event()
                for _ in range(2 * ttl):
                    ends.wait(1)
                    assert run.client._native.lease_time_to_live(lease) is not None
                assert run.keys("/rdzv/round/1/member") == [member]
            handler.shutdown()


class TestMesh:
    """Something before etcd answers, and there is no etcd."""

    @pytest.mark.slow(12)
    def test_its_words_are_told(self) -> None:
        with (
            Mesh() as mesh,
            Client("127.0.0.1", mesh.port, read_timeout=6) as client,
            opened(client, "/store", timeout=6) as store,
        ):
            with pytest.raises(EtcdConnectionFailed, match="no healthy upstream"):
                client.write("/x", "y")
            with pytest.raises(StoreConnectionError, match="no healthy upstream"):
                store.set("x", "y")
            assert mesh.connections < 60

    def test_a_write_does_not_spin(self) -> None:
        with (
            Mesh(probed=True) as mesh,
            Client("127.0.0.1", mesh.port, read_timeout=6) as client,
            opened(client, "/store", timeout=6) as store,
        ):
            with pytest.raises(StoreOutcomeUnknownError, match="no healthy upstream"):
                store.set("x", "y")
            assert mesh.requests < 60
            assert mesh.connections < 60


class TestIdle:
    @pytest.mark.slow(12)
    def test_nothing_is_sent_while_nothing_is_open(
        self, etcd_server: EtcdServer, prefix: str
    ) -> None:
        """etcd takes pings while nothing is open for an attack: it ends the connection at the fourth."""
        with (
            Proxy(etcd_server.get_port()) as proxy,
            Client("127.0.0.1", proxy.port) as client,
        ):
            client.write(prefix, "1")
            # The head of a PING of eight bytes.
            proxy.break_at(b"\0\0\x08\x06\0\0\0\0\0", forward=True)
            threading.Event().wait(12)
            assert proxy.broken == 0
            # A request looks whether the connection is still there, once.
            proxy.break_at(b"nothing that is sent", forward=True)
            client.write(prefix, "2")
            assert proxy.connections == 1


class TestWrongPort:
    """What a port that speaks HTTP/1 only answers: etcd's peers' from 3.6 on, and that of its metrics."""

    answer = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request"

    @pytest.mark.parametrize("protocol", ["http", "https"])
    def test_http_1(self, protocol: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            answering = in_background(lambda: _close_all(listener, self.answer))
            port = listener.getsockname()[1]
            client = Client("127.0.0.1", port, protocol=protocol, read_timeout=6)
            with client, pytest.raises(EtcdConnectionFailed) as caught:
                client.read("/x")
            listener.shutdown(socket.SHUT_RDWR)
            answering.join()
        if protocol == "http":
            assert "is this the peer, metrics or HTTP-only port?" in str(caught.value)
            assert "2379" in str(caught.value)
        else:
            assert "(does it want http?)" in str(caught.value)
        assert "want https?" not in str(caught.value)

    def test_a_member_without_a_leader_is_not_asked_for_tls(self) -> None:
        with Cluster() as cluster, cluster.client(read_timeout=3) as client:
            client.write("/x", "y")
            for member in cluster.members[:2]:
                member.kill()
            with pytest.raises(EtcdException) as caught:
                client.write("/x", "z")
        assert "does it want" not in str(caught.value)


def test_a_connection_that_ended_while_idle(etcd_server: EtcdServer, prefix: str) -> None:
    """It is made anew, with all that a first one is asked for."""
    with (
        Proxy(etcd_server.get_port()) as proxy,
        Client("127.0.0.1", proxy.port, read_timeout=20) as client,
    ):
        client.write(prefix, "1")
        proxy.end()
        assert client.read(prefix).value == "1"
        assert proxy.connections == 2
