"""The command line against a real etcd with real nodes."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.cli import PATIENCE_S, Cli, Terminal, environment, piped
from support.processes.nodes import Run
from support.waiting import eventually
from torchetcd.etcd_server import EtcdServer


@pytest.fixture(scope="module")
def world(etcd_server: EtcdServer) -> Iterator[Run]:
    """Provide a run whose round is complete, with three members and a spare. Tests only look at it."""
    with (
        etcd_server.get_client() as client,
        Run(etcd_server.get_endpoint(), client) as made,
    ):
        nodes = [made.node(3, 3, node_id=f"n{number}", keep_alive_ttl=60) for number in range(3)]
        for node in nodes:
            node.start("join")
        for node in nodes:
            node.finish()
        spare = made.node(3, 3, node_id="n9", keep_alive_ttl=60)
        spare.start("join")
        made.await_waiting(1)
        yield made


def start(run: Run, *numbers: int, of: int, name: str = "worker-") -> None:
    """Let nodes join a round that needs more."""
    for number in numbers:
        run.node(of, of, node_id=f"{name}{number}", keep_alive_ttl=60).start("join")


class TestWhy:
    def test_the_missing_node_is_named(self, cli: Cli, run: Run) -> None:
        """What a new operator has: a job of four, one of which has not come."""
        start(run, 0, 1, 3, of=4)
        run.await_joined(3)
        done = cli("why", run.run_id)
        assert done.code == 4
        assert "3 of the 4 nodes that round 1 needs have joined for" in done.out
        assert "Probably missing, judging by the other names: worker-2." in done.out
        assert "Those that have joined: worker-[0,1,3]." in done.out
        assert done.out.count("\n") == 1
        assert not done.err
        told = cli("why", run.run_id, "--json").json
        assert told.items() >= {"complete": False, "needed": 1, "state": "open"}.items()
        expected = cli("why", run.run_id, "--expect", "worker-[0-3]")
        assert "Of the 4 that were expected, worker-2 has not come." in expected.out
        told_more = cli("why", run.run_id, "--expect", "worker-[0-3]", "--json").json
        assert (told["not_come"], told_more["not_come"]) == ([], ["worker-2"])
        assert cli("why", run.run_id, "--expect", "worker-[").code == 2
        assert told["why"].startswith(done.out[:60])

    def test_infra_ranks(self, cli: Cli, run: Run) -> None:
        for rank in (0, 2, 3):
            run.node(4, 4, infra_rank=rank, keep_alive_ttl=60).start("join")
        run.await_joined(3)
        assert "Missing is the node with infra rank 1." in cli("why", run.run_id).out

    @pytest.mark.parametrize("coordinates", [False, True])
    def test_one_that_came_and_went(self, cli: Cli, run: Run, coordinates: bool) -> None:
        gone = run.node(3, 3, node_id="worker-7", keep_alive_ttl=2)
        if coordinates:
            gone.start("join")
            run.await_joined(1)
        start(run, 0, of=3)
        if not coordinates:
            run.await_joined(1)
            gone.start("join")
        run.await_joined(2)
        gone.kill()
        run.await_joined(1)
        told = cli("why", run.run_id).out
        assert "worker-7 (host " in told
        assert "had joined and is gone again less than" in told

    def test_a_member_that_is_lost(self, cli: Cli, run: Run) -> None:
        nodes = [run.node(2, 2, node_id=f"n{n}", keep_alive_ttl=2 + 58 * n) for n in range(2)]
        for node in nodes:
            node.start("join")
        places = [node.finish() for node in nodes]
        nodes[0].kill()
        nodes[1].call("await_waiting", 20.0)
        done = cli("why", run.run_id)
        assert done.code == 4
        assert f"but n0 (rank {places[0].rank}, host " in done.out
        nodes[1].start("join")
        run.await_joined(1, round_=2)
        done = cli("why", run.run_id)
        assert "1 of the 2 nodes that round 2 needs has joined" in done.out
        assert f"n0 (rank {places[0].rank}, host " in done.out
        assert "was a member of round 1 and has not come back" in done.out

    def test_complete(self, cli: Cli, world: Run) -> None:
        done = cli("why", world.run_id)
        assert done.code == 0
        assert "is complete, and nothing is waited for: 3 nodes formed round 1" in done.out
        assert "waits as a spare: there is no room (max_nodes is 3)" in done.out

    def test_nothing(self, cli: Cli, world: Run) -> None:
        done = cli("why", f"{world.run_id[:-1]}?")
        assert done.code == 3
        assert f"A run with a similar name is there: '{world.run_id}'." in done.out


class TestLook:
    def test_runs(self, cli: Cli, world: Run) -> None:
        done = cli("runs")
        assert done.code == 0
        (line,) = [line for line in done.out.splitlines() if line.startswith(world.run_id)]
        assert line.split()[1:6] == ["complete", "1", "3", "0", "1"]
        (found,) = [run for run in cli("runs", "--json").json["runs"] if run["id"] == world.run_id]
        assert (found["state"], found["world"]) == ("final", 3)

    def test_no_runs(self, cli: Cli) -> None:
        done = cli("runs", "--prefix", "/nobody/here")
        assert (done.code, done.out) == (0, "There are no runs below /nobody/here.\n")

    def test_show(self, cli: Cli, world: Run) -> None:
        done = cli("show", world.run_id)
        assert done.code == 0
        for said in (
            "State      complete",
            "Members (3)",
            "LEASE LEFT",
            "of 60 s",
            "Spares: there is no room for them until a member is lost (1)",
            "Rounds (1)",
            "the first round",
        ):
            assert said in done.out
        found = cli("show", world.run_id, "--json").json["run"]
        assert [node["rank"] for node in found["members"]] == [0, 1, 2]
        assert {node["node_id"] for node in found["members"]} == {"n0", "n1", "n2"}
        assert found["spares"][0]["lease_ttl_s"] == 60

    def test_timeline(self, cli: Cli, world: Run, tmp_path: Path) -> None:
        lines = cli("timeline", world.run_id).out.splitlines()
        kinds = [line.split()[3] for line in lines[1:]]
        assert kinds[0] == "opened"
        assert sorted(kinds[1:]) == ["final", "joined", "joined", "joined", "waiting"]
        page = tmp_path / "timeline.html"
        assert cli("timeline", world.run_id, "--html", str(page)).out == f"Wrote {page}.\n"
        assert "<svg" in page.read_text(encoding="utf-8")
        found = cli("timeline", world.run_id, "--json").json["timeline"]
        assert found["complete"] is True

    def test_a_file_that_cannot_be_written(self, cli: Cli, world: Run) -> None:
        done = cli("timeline", world.run_id, "--html", "/nowhere/x.html")
        assert done.code == 1
        assert done.err.endswith("/nowhere/x.html cannot be written: No such file or directory.\n")

    @pytest.mark.parametrize("command", ["show", "timeline"])
    def test_no_such_run(self, cli: Cli, run_id: str, command: str) -> None:
        done = cli(command, run_id)
        assert (done.code, done.out) == (3, "")
        assert done.err == (
            f"torchetcd: There is no run '{run_id}' below /torchelastic/p2p: see `torchetcd runs`.\n"
        )


def test_no_torch_is_imported() -> None:
    """It takes seconds, and is there for nothing."""
    source = (
        "import sys, torchetcd.cli.app, torchetcd.cli.doctor.probes\n"
        "assert not {'torch', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", source], check=True)


class TestProcess:
    """What only a process shows: pipes, terminals and signals."""

    def test_watch_over_a_pipe(self, run: Run, etcd_server: EtcdServer) -> None:
        with piped(etcd_server.get_endpoint(), "watch", run.run_id, "--json") as process:
            assert process.stdout is not None
            first = json.loads(process.stdout.readline())
            assert (first["event"], first["state"], first["version"]) == ("Snapshot", "none", 1)
            start(run, 0, of=2)
            kinds = []
            while "Joined" not in kinds:
                told = json.loads(process.stdout.readline())
                kinds.append(told["event"])
            assert told["node"]["node_id"] == "worker-0"
            assert told["counts"]["joined"] == 1
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE_S)
            assert (process.returncode, err) == (130, "")
            assert all(json.loads(line) for line in out.splitlines())

    def test_watch_in_a_terminal(self, run: Run, etcd_server: EtcdServer) -> None:
        with Terminal(etcd_server.get_endpoint(), "watch", run.run_id) as terminal:
            terminal.await_text(run.run_id)
            start(run, 0, of=2)
            terminal.await_text("Joined (1)")
            terminal.await_text("worker-0")
            start(run, 1, of=2)
            terminal.await_text("Members (2)")
            assert terminal.end() == 130
            assert "Traceback" not in terminal.shown
            assert "\x1b[?1049l" in terminal.shown  # the screen of before is back

    def test_lines_over_a_pipe_have_no_codes(self, world: Run, etcd_server: EtcdServer) -> None:
        endpoint = etcd_server.get_endpoint()
        with piped(endpoint, "watch", world.run_id, "--once", FORCE_COLOR="1") as process:
            out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, err) == (0, "")
        assert out.endswith("  round 1 is complete: 3 nodes\n")
        assert out.replace("\n", "").isprintable()

    def test_colours_in_a_terminal(self, world: Run, etcd_server: EtcdServer) -> None:
        endpoint = etcd_server.get_endpoint()
        cases: list[tuple[dict[str, Any], bool]] = [({}, True), ({"NO_COLOR": "1"}, False)]
        for env, coloured in cases:
            with Terminal(endpoint, "runs", **env) as terminal:
                assert terminal.wait() == 0
                assert ("\x1b[32m" in terminal.shown) == coloured

    def test_it_asks_in_a_terminal(self, run: Run, etcd_server: EtcdServer) -> None:
        start(run, 0, of=2)
        run.await_joined(1)
        args = ("close", run.run_id, "--reason", "x")
        with Terminal(etcd_server.get_endpoint(), *args) as terminal:
            terminal.await_text("for all its nodes? [y/N]")
            terminal.type("n\n")
            assert terminal.wait() == 1
            assert "Nothing was changed." in terminal.shown
        with Terminal(etcd_server.get_endpoint(), *args) as terminal:
            terminal.await_text("[y/N]: ")
            # Python misses a signal that comes right before it reads: nobody is as fast as this test.
            assert terminal.end(again_s=2.0) == 130
        assert run.control()["state"] == "open"
        with Terminal(etcd_server.get_endpoint(), *args) as terminal:
            terminal.await_text("[y/N]")
            terminal.type("y\n")
            assert terminal.wait() == 0
        assert run.control()["state"] == "closed"

    def test_ctrl_c_while_etcd_is_silent(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
            with piped(endpoint, "runs", "--timeout", "600") as process:
                silent.settimeout(PATIENCE_S)
                connection, _ = silent.accept()
                sent = time.monotonic()
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=PATIENCE_S)
                assert (process.returncode, err) == (130, "")
                assert time.monotonic() - sent < 10
                connection.close()

    def test_a_reader_that_has_seen_enough(self, run: Run, etcd_server: EtcdServer) -> None:
        with piped(etcd_server.get_endpoint(), "watch", run.run_id, "--json") as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.close()
            # It learns that with the next event: somebody joins.
            start(run, 0, of=2)
            assert process.wait(PATIENCE_S) == 0
            assert process.stderr is not None
            assert process.stderr.read() == ""

    @pytest.mark.parametrize(
        ("redirections", "said"),
        [
            (">&-", "Standard output is closed: there is nowhere to print to."),
            (">/dev/full", "The output cannot be written: No space left on device."),
            ("<&-", "Refusing to continue without confirmation; pass --yes."),
        ],
    )
    def test_streams_that_are_closed_or_full(
        self, world: Run, etcd_server: EtcdServer, redirections: str, said: str
    ) -> None:
        """One sentence, and no traceback."""
        asks = redirections.startswith("<")
        command = f"close {world.run_id} --reason x" if asks else f"show {world.run_id}"
        done = subprocess.run(
            f"{shlex.quote(sys.executable)} -m torchetcd.cli {command} {redirections}",
            shell=True,
            env=environment(etcd_server.get_endpoint()),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2 if asks else 1, "")
        assert done.stderr.startswith(f"torchetcd: {said}")
        assert done.stderr.count("\n") == 1

    @pytest.mark.needs_etcd
    def test_serve(self) -> None:
        with piped("unused", "serve", "--json") as process:
            assert process.stdout is not None
            endpoint = json.loads(process.stdout.readline())["endpoint"]
            host, _, port = endpoint.partition(":")
            socket.create_connection((host, int(port)), 5).close()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=PATIENCE_S)
            assert (process.returncode, err) == (0, "")
        eventually(lambda: not _listens(host, int(port)))

    @pytest.mark.needs_etcd
    def test_serve_to_everybody(self) -> None:
        """It says what that means: there are no users."""
        with piped("unused", "serve", "--host", "0.0.0.0", "--json") as process:
            assert process.stdout is not None
            endpoint = json.loads(process.stdout.readline())["endpoint"]
            assert endpoint.partition(":")[0] == socket.gethostname()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
        assert err.startswith("torchetcd: whoever reaches this port can read and change all")

    @pytest.mark.needs_etcd
    def test_serve_where_it_cannot(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with piped("unused", "serve", "--port", str(port)) as process:
                out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, out) == (1, "")
        assert err == (
            f"torchetcd: etcd cannot listen at port {port} of 'localhost': Address already in use.\n"
        )


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0
