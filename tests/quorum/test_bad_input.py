"""What cannot be a quorum, told by torchrun in one sentence."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.etcd.cluster import Cluster
from support.processes.agents import Agent
from support.processes.zygote import Zygote
from support.quorum import AgentError, Job, free_ports
from torchetcd._rendezvous.options import parse_options

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
    assert even == "ValueError: The rendezvous parameter 'quorum' must be 1 or 3 or 5, not '2'."
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


@pytest.mark.parametrize("mode", [0o600, 0o700])
def test_an_etcd_that_does_not_run(
    torchrun: Torchrun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int
) -> None:
    """The error says what is wrong at this host, too."""
    program = tmp_path / "etcd"
    program.write_text("#!/bin/sh\necho 'no etcd is here'\nexit 3\n")
    program.chmod(mode)
    monkeypatch.setenv("TORCHELASTIC_ETCD_BINARY_PATH", str(program))
    endpoint = _endpoint(free_ports(1))
    last = torchrun.fails(endpoint, "quorum=1,join_timeout=5")
    assert f"The quorum of {endpoint} has no majority, 1 of 1 members." in last
    assert ("no etcd is here" if mode == 0o700 else "Permission denied") in last


def test_no_etcd(monkeypatch: pytest.MonkeyPatch, make_job: Callable[..., Job]) -> None:
    """It is told at once."""
    from torchetcd._quorum import quorum

    def find() -> str:
        raise FileNotFoundError("There is no etcd server on this machine.")

    monkeypatch.setattr(quorum, "find_binary", find)
    job = make_job(3)
    options = parse_options({"quorum_dir": str(job.data)})
    with pytest.raises(ValueError, match="There is no etcd server on this machine") as failed:
        quorum.Quorum(job.endpoint, job.run_id, options).start(60)
    assert job.endpoint in str(failed.value)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, make_job: Callable[..., Job]) -> None:
    from torchetcd._quorum import quorum

    full = SimpleNamespace(total=1 << 40, used=1 << 40, free=1 << 20)
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    job = make_job(3)
    options = parse_options({"quorum_dir": str(job.data)})
    with pytest.raises(
        ValueError, match=r"has 1 MiB left, and a member of the quorum needs \d+ MiB"
    ):
        quorum.Quorum(job.endpoint, job.run_id, options).start(60)
    assert not job.etcds()


def test_a_folder_that_others_can_read(torchrun: Torchrun, tmp_path: Path) -> None:
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
    assert last == (
        f"ValueError: A member of the quorum of job://127.0.0.1:{ports[0]} cannot run on this host: port "
        f"{ports[0] + for_members} of 127.0.0.1 cannot be used: Address already in use. End what uses it, or "
        "give other ports."
    )


def test_the_etcd_of_somebody_else_has_a_port(torchrun: Torchrun) -> None:
    with Cluster(1) as cluster:
        port = cluster.members[0].port
        last = torchrun.fails(_endpoint([port]), "quorum=1,join_timeout=60")
    assert f"port {port} of 127.0.0.1 cannot be used: Address already in use" in last


def test_another_job_has_the_ports(torchrun: Torchrun, make_job: Callable[..., Job]) -> None:
    job = make_job(3)
    job.start_all(3)
    job.await_members(*(entry.port for entry in job.entries.all))
    last = torchrun.fails(job.endpoint, "join_timeout=60", run_id="another-job")
    assert last.startswith("ValueError: A member of the quorum of job://")
    assert last.endswith(
        "cannot be used: Address already in use. End what uses it, or give other ports."
    )


def test_agents_with_other_lists(make_job: Callable[..., Job]) -> None:
    """Those that name other first members are of another quorum, and are told so."""
    job = make_job(3)
    one = job.start(2, 3, join_timeout=25)
    first, second, third = (entry.name for entry in job.entries.all)
    other_order = f"job://{second},{first},{third}"
    (fourth,) = free_ports(1)
    two = job.start(2, 3, endpoint=other_order, join_timeout=25)
    three = job.start(2, 3, endpoint=f"job://{first},{second},127.0.0.1:{fourth}", join_timeout=25)
    texts = []
    for agent in (one, two, three):
        with pytest.raises(AgentError) as failed:
            agent.finish()
        texts.append(str(failed.value))
    # Those that see no majority of another list name the agents that have another one, as long as these run.
    assert sum("other first entries" in text for text in texts) >= 2, texts
