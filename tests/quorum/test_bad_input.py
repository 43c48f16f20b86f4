"""What cannot be a quorum, told by torchrun in one sentence."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.etcd.cluster import Cluster
from support.processes.agents import Agent
from support.processes.zygote import Zygote
from support.quorum import Job, free_ports

pytestmark = [pytest.mark.needs_etcd, pytest.mark.timeout(240)]


class Torchrun:
    """Runs torchrun, and returns its last words."""

    def __init__(self, zygote: Zygote, folder: Path) -> None:
        self._zygote, self._folder = zygote, folder
        self._agents: list[Agent] = []

    def start(self, endpoint: str, conf: str = "", run_id: str = "bad") -> Agent:
        conf = f"keep_alive_ttl=3,quorum_dir={self._folder / 'quorum'},{conf}".rstrip(",")
        command = ["--nnodes", "2:3", "--nproc-per-node", "1", "--rdzv-id", run_id]
        command += ["--rdzv-backend", "etcd-v3", "--rdzv-endpoint", endpoint, "--rdzv-conf", conf]
        command += ["--local-addr", "127.0.0.1", str(self._folder / "none.py")]
        log = self._folder / f"torchrun{len(self._agents)}.log"
        self._agents.append(Agent(log, command, self._zygote))
        return self._agents[-1]

    def fails(self, endpoint: str, conf: str = "", run_id: str = "bad") -> str:
        """Run it; it must end with an error, of which this is the text."""
        text = self.start(endpoint, conf, run_id).end(1)
        return text.strip().splitlines()[-1]

    def end(self) -> None:
        for agent in self._agents:
            agent.lose()


@pytest.fixture
def torchrun(agent_zygote: Zygote, tmp_path: Path) -> Iterator[Torchrun]:
    made = Torchrun(agent_zygote, tmp_path)
    yield made
    made.end()


def _endpoint(ports: list[int]) -> str:
    return "job://" + ",".join(f"127.0.0.1:{port}" for port in ports)


def test_what_is_read_before_anything_is_started(torchrun: Torchrun) -> None:
    one, two, three = free_ports(3)
    twice = f"job://127.0.0.1:{one},127.0.0.1:{two},127.0.0.1:{one}"
    assert (
        torchrun.fails(twice)
        == f"ValueError: The endpoint '{twice}' names '127.0.0.1:{one}' twice."
    )
    even = torchrun.fails(_endpoint([one, two, three]), "quorum=2")
    assert "quorum" in even
    assert "1, 3 or 5" in even or "1, 3, 5" in even or "'1', '3'" in even
    few = torchrun.fails(_endpoint([one, two]))
    assert "A quorum of 3 members needs 3 hosts" in few
    nothing = torchrun.fails("job://")
    assert "names no host" in nothing


def test_no_entry_is_of_this_host(torchrun: Torchrun) -> None:
    """Then all others may be somewhere; the error names them when there is no time left."""
    # TEST-NET-1: nobody is there.
    last = torchrun.fails("job://192.0.2.1,192.0.2.2,192.0.2.3", "join_timeout=3")
    assert last.startswith("torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: ")
    for number in (1, 2, 3):
        assert f"192.0.2.{number}:2379 (" in last


def test_no_etcd(torchrun: Torchrun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_ETCD_BINARY_PATH", str(tmp_path / "no-etcd"))
    last = torchrun.fails(_endpoint(free_ports(3)), "join_timeout=30")
    assert "TORCHELASTIC_ETCD_BINARY_PATH" in last
    assert "no-etcd" in last
    assert last.startswith("ValueError: ")


def test_a_folder_that_others_can_read(torchrun: Torchrun, tmp_path: Path) -> None:
    import os

    folder = tmp_path / "quorum" / f"torchetcd-quorum-{os.getuid()}"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    last = torchrun.fails(_endpoint(free_ports(3)))
    assert last.startswith(
        f"ValueError: '{folder}' must be a folder that belongs to this user alone"
    )


def test_a_folder_that_is_a_file(torchrun: Torchrun, tmp_path: Path) -> None:
    (tmp_path / "quorum").write_text("")
    last = torchrun.fails(_endpoint(free_ports(3)))
    assert last.startswith("ValueError: The folder '")
    assert "cannot be made" in last


# ------------------------------------------------------------------ a port that something else has


@contextmanager
def _silent(port: int) -> Iterator[None]:
    """A server of TCP that says nothing."""
    with socket.create_server(("127.0.0.1", port)):
        yield


@contextmanager
def _http(port: int) -> Iterator[None]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("program", [_silent, _http])
@pytest.mark.parametrize("for_members", [False, True], ids=["clients", "members"])
def test_another_program_has_a_port(
    torchrun: Torchrun, program: Callable[[int], object], for_members: bool
) -> None:
    ports = free_ports(1)
    with program(ports[0] + for_members):  # type: ignore[attr-defined]
        last = torchrun.fails(_endpoint(ports), "quorum=1,join_timeout=60")
    assert last.startswith("ValueError: ")
    assert f"127.0.0.1:{ports[0]}" in last
    assert "another program" in last


def test_the_etcd_of_somebody_else_has_a_port(torchrun: Torchrun) -> None:
    with Cluster(1) as cluster:
        port = cluster.members[0].port
        last = torchrun.fails(_endpoint([port]), "quorum=1,join_timeout=60")
    assert last.startswith("ValueError: ")
    assert f"127.0.0.1:{port}" in last


def test_another_job_has_the_ports(torchrun: Torchrun, make_job: Callable[..., Job]) -> None:
    job = make_job(3)
    job.start_all(3)
    job.await_members(*(entry.port for entry in job.entries.all))
    last = torchrun.fails(job.endpoint, "join_timeout=60", run_id="another-job")
    assert last.startswith("ValueError: ")
    assert "another" in last


def test_agents_with_other_lists(make_job: Callable[..., Job]) -> None:
    """Those that name other first members are of another quorum, and are told so."""
    job = make_job(3)
    one = job.start(2, 3, join_timeout=60)
    first, second, third = (entry.name for entry in job.entries.all)
    other_order = f"job://{second},{first},{third}"
    (fourth,) = free_ports(1)
    two = job.start(2, 3, endpoint=other_order, join_timeout=60)
    three = job.start(2, 3, endpoint=f"job://{first},{second},127.0.0.1:{fourth}", join_timeout=60)
    texts = []
    for agent in (one, two, three):
        try:
            agent.finish()
        except Exception as exc:  # noqa: BLE001
            texts.append(str(exc))
        else:
            texts.append("")
    assert any("other first entries" in text for text in texts), texts
