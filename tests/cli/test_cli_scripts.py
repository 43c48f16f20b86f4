"""What scripts and on-call people ask: `nodes` over all runs, and `wait` until a run is as they want it."""

from __future__ import annotations

import json
import time

import pytest

from support.cli import Cli, piped
from support.processes.nodes import Run
from support.records import Written
from support.waiting import eventually
from torchetcd.etcd import Client
from torchetcd.etcd_server import EtcdServer

# A process has to import, and nodes to start, on a machine that may be busy with other tests.
PATIENT_S = 90.0


class TestNodes:
    def test_which_runs_a_host_is_in(self, cli: Cli, client: Client, prefix: str) -> None:
        runs = {name: Written(client, name, prefix) for name in "abc"}
        runs["a"].put("head/control", runs["a"].control(1, "open"))
        runs["a"].join(1, "gpu-017.x", node_id="n1")
        runs["a"].join(1, "gpu-018.x")
        runs["b"].complete(1, [runs["b"].join(1, "gpu-017.x")])
        gone = runs["c"].join(1, "gpu-017.x")
        runs["c"].complete(1, [gone, runs["c"].join(1, "gpu-019.x")])
        runs["c"].end(gone)
        there = ("--prefix", prefix)
        done = cli("nodes", *there)
        rows = [line.split()[:4] for line in done.out.splitlines()]
        assert (done.code, rows) == (
            0,
            [
                ["HOST", "PID", "NODE", "ID"],
                ["gpu-017.x", "1", "n1", "a"],
                ["gpu-017.x", "1", "-", "b"],
                ["gpu-018.x", "2", "-", "a"],
                ["gpu-019.x", "2", "-", "c"],
            ],
        )
        for name in ("gpu-017", "gpu-017.x", "GPU-017", "gpu-017:1"):
            found = cli("nodes", "--host", name, *there, "--json").json["nodes"]
            assert [(node["run"], node["state"]) for node in found] == [
                ("a", "joined"),
                ("b", "member"),
            ]
        assert [
            node["run"] for node in cli("nodes", "--host", "n1", *there, "--json").json["nodes"]
        ] == ["a"]
        done = cli("nodes", "--host", "gpu-17", *there)
        assert done.code == 0
        assert done.out.startswith(
            f"No node of a run below {prefix} is called gpu-17. Close to it: gpu-017.x, "
        )

    def test_none(self, cli: Cli) -> None:
        done = cli("nodes", "--prefix", "/nobody/here")
        assert (done.code, done.out) == (0, "There is no node in any run below /nobody/here.\n")


class TestShow:
    def test_leases_of_many_nodes_are_asked_for_by_an_option(
        self, cli: Cli, written: Written
    ) -> None:
        """Each is a call: of two thousand nodes nobody wants them each time."""
        for number in range(64):
            written.join(1, f"gpu-{number}")
        assert cli("show", written.run_id).out.count(" of 60 s") == 64
        written.join(1, "gpu-64")
        done = cli("show", written.run_id)
        assert "LEASE" not in done.out
        assert done.out.endswith("--leases shows what the leases of these 65 nodes have left.\n")
        (one, *_) = cli("show", written.run_id, "--json").json["run"]["joined"]
        assert (one["lease_left_s"], one["lease_ttl_s"]) == (None, None)
        done = cli("show", written.run_id, "--leases")
        assert done.out.count(" of 60 s") == 65
        assert "--leases" not in done.out


class TestWait:
    @pytest.mark.parametrize(
        ("wanted", "within"), [("complete", ()), ("nodes=2", ("--within", "600"))]
    )
    def test_a_run_that_comes_later(
        self, run: Run, etcd_server: EtcdServer, wanted: str, within: tuple[str, ...]
    ) -> None:
        args = ("wait", run.run_id, "--for", wanted, *within)
        with piped(etcd_server.get_endpoint(), *args) as process:
            for node in run.nodes(2, keep_alive_ttl=60):
                node.start("join")
            out, err = process.communicate(timeout=PATIENT_S)
        assert (process.returncode, err) == (0, "")
        assert out.startswith(f"Run '{run.run_id}': round 1 is ")

    def test_it_ends_with_the_event(self, written: Written, etcd_server: EtcdServer) -> None:
        """And does not ask again and again: nobody asks within a tenth of a second."""
        args = ("wait", written.run_id, "--for", "closed", "--json")
        with piped(etcd_server.get_endpoint(), *args) as process:
            closed = written.control(
                1, "closed", reason="x", ended={"result": "failed", "text": "t"}
            )
            written.put("head/control", closed)
            out, _ = process.communicate(timeout=PATIENT_S)
        assert process.returncode == 0
        told = json.loads(out)
        assert told["text"].startswith(f"Run '{written.run_id}': closed by a (pid 1): t")
        del told["text"], told["version"]
        assert told == {
            "run": written.run_id, "for": "closed", "met": True, "state": "closed", "result": "failed",
        }  # fmt: skip

    def test_what_is_so_already(self, cli: Cli, written: Written) -> None:
        written.complete(1, [written.join(1, host) for host in "ab"])
        for wanted in ("complete", "nodes=1", "nodes=2"):
            done = cli("wait", written.run_id, "--for", wanted)
            assert (done.code, done.out) == (
                0, f"Run '{written.run_id}': round 1 is complete: 2 nodes.\n"
            )  # fmt: skip
        ended = {"result": "succeeded", "text": "the job succeeded"}
        written.put("head/control", written.control(1, "closed", reason="x", ended=ended))
        for wanted in ("closed", "succeeded"):
            assert cli("wait", written.run_id, "--for", wanted).code == 0

    def test_the_time_is_up(self, cli: Cli, written: Written) -> None:
        written.complete(1, [written.join(1, host) for host in "ab"])
        for node in list(written.nodes)[:1]:
            written.end(node)
        for wanted in ("complete", "nodes=2", "closed"):
            began = time.monotonic()
            done = cli("wait", written.run_id, "--for", wanted, "--within", "0.2")
            assert time.monotonic() - began >= 0.2
            assert done.code == 4
            assert done.out.startswith(
                f"The time is up. Run '{written.run_id}': round 1 is complete"
            )

    def test_what_will_never_be(self, cli: Cli, written: Written) -> None:
        written.put("head/control", written.control(1, "closed", reason="wrong data"))
        for wanted in ("complete", "nodes=2", "succeeded"):
            done = cli("wait", written.run_id, "--for", wanted)
            assert (done.code, done.out) == (
                5, f"Run '{written.run_id}': closed by a (pid 1): wrong data.\n"
            )  # fmt: skip

    def test_no_such_run(self, cli: Cli, run_id: str) -> None:
        done = cli("wait", run_id, "--for", "complete", "--within", "0.1")
        assert (done.code, done.out) == (3, "")
        assert done.err == f"torchetcd: There was no run '{run_id}' below /torchelastic/p2p.\n"
        done = cli("wait", run_id, "--for", "closed", "--within", "0.1", "--json")
        assert done.code == 3
        assert done.json.items() >= {"met": False, "state": "none", "for": "closed"}.items()

    def test_nothing_is_left(self, written: Written, etcd_server: EtcdServer) -> None:
        args = ("wait", written.run_id, "--for", "closed", "--within", "600")
        with piped(etcd_server.get_endpoint(), *args) as process:

            def goes_away() -> bool:
                """Again and again, since nothing says when the other process has seen it."""
                written.client._native.lease_grant(60, written.lease)
                written.put("head/control", written.control(1, "open"))
                written.client._native.lease_revoke(written.lease)
                return process.poll() is not None

            eventually(goes_away, PATIENT_S)
            out, err = process.communicate(timeout=PATIENT_S)
        assert (process.returncode, out) == (3, "")
        assert err == (
            f"torchetcd: Nothing is left of run '{written.run_id}' below /torchelastic/p2p.\n"
        )

    @pytest.mark.parametrize(
        "wanted", ["", "what", "nodes", "nodes=", "nodes=0", "nodes=x", "Complete"]
    )
    def test_usage(self, cli: Cli, wanted: str) -> None:
        done = cli("wait", "r", "--for", wanted)
        assert (done.code, done.out) == (2, "")
        assert "is not one of complete, closed, succeeded and nodes=N, N at least 1." in done.err
        assert "Missing option '--for'" in cli("wait", "r").err
