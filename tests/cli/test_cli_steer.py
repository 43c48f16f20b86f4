"""The commands that change runs, against a real etcd: whom they mean, what they ask, what they leave."""

from __future__ import annotations

from typing import Any

import pytest

from support.cli import PATIENCE_S, Cli, Terminal
from support.processes.nodes import NodeError, Run, join_all
from support.records import Written
from torchetcd.etcd import Client
from torchetcd.etcd_server import EtcdServer


def start(run: Run, *numbers: int, of: int) -> None:
    """Let nodes join a round that needs more."""
    for number in numbers:
        run.node(of, of, node_id=f"worker-{number}", keep_alive_ttl=60).start("join")


class TestSteer:
    def test_close_and_reopen(self, cli: Cli, run: Run) -> None:
        node = run.node(2, 2)
        node.start("join")
        run.await_joined(1)
        done = cli("close", run.run_id, "--reason", "wrong data", "--by", "ann", "--yes")
        assert (done.code, done.out) == (0, f"Run '{run.run_id}' is closed.\n")
        with pytest.raises(Exception, match="RendezvousClosedError.*ann: wrong data"):
            node.finish()
        done = cli("close", run.run_id, "--reason", "again", "--yes")
        assert "was closed already: nothing was changed." in done.out
        assert cli("close", run.run_id, "--reason", "x", "--yes", "--json").json["changed"] is False
        done = cli("why", run.run_id)
        assert done.code == 5
        assert "was closed by ann at" in done.out
        assert cli("reopen", run.run_id, "--reason", "fixed").out == (
            f"Run '{run.run_id}' is open: nodes can join.\n"
        )
        assert "was not closed" in cli("reopen", run.run_id, "--reason", "fixed").out
        assert cli("why", run.run_id).code == 4

    def test_evict_and_allow(self, cli: Cli, run: Run) -> None:
        nodes = [run.node(1, 2, node_id=f"n{n}", keep_alive_ttl=60) for n in range(2)]
        for node in nodes:
            node.start("join")
        for node in nodes:
            node.finish()
        done = cli("evict", run.run_id, "n1", "--reason", "bad GPU", "--yes")
        assert done.out.startswith("n1 on ")
        assert f"and n1 may not join until `torchetcd allow {run.run_id} n1`." in done.out
        assert nodes[0].call("await_waiting", PATIENCE_S) == 1
        told = cli("why", run.run_id).out
        assert "n1 may not join, by decision of" in told
        with pytest.raises(Exception, match="bad GPU"):
            nodes[1].call("join")
        assert cli("allow", run.run_id, "n1").out == f"n1 may join run '{run.run_id}' again.\n"
        assert cli("allow", run.run_id, "n1", "--json").json["changed"] is False

    def test_purge(self, cli: Cli, run: Run) -> None:
        start(run, 0, of=2)
        run.await_joined(1)
        done = cli("purge", run.run_id, "--yes")
        assert done.code == 1
        assert "has 1 live node" in done.err
        done = cli("purge", run.run_id, "--yes", "--force", "--json")
        assert done.json["deleted"] > 0
        assert done.code == 0

    def test_nobody_can_be_asked(self, cli: Cli, written: Written) -> None:
        run = written.run_id
        for args in (("close", run, "--reason", "x"), ("purge", run)):
            done = cli(*args)
            assert done.code == 2
            assert "Refusing to continue without confirmation; pass --yes." in done.err
        assert cli("why", run).code == 4

    @pytest.mark.parametrize(
        "command",
        [
            ("close", "--reason", "x", "--yes"),
            ("reopen", "--reason", "x"),
            ("evict", "n", "--reason", "x", "--yes"),
            ("purge", "--yes"),
        ],
    )
    def test_no_such_run(self, cli: Cli, run_id: str, command: tuple[str, ...]) -> None:
        done = cli(command[0], run_id, *command[1:])
        assert done.code == 3
        assert f"There is no run '{run_id}'" in done.err


_YES = ("--reason", "bad GPU", "--yes")


class TestWhoIsMeant:
    """People have the names of a scheduler, and nodes those that they call themselves."""

    def _denied(self, cli: Cli, run: str) -> set[str]:
        return {denial["name"] for denial in cli("show", run, "--json").json["run"]["denied"]}

    def _there(self, cli: Cli, run: str) -> set[str]:
        return {node["host"] for node in cli("show", run, "--json").json["run"]["joined"]}

    @pytest.mark.parametrize(
        ("own", "given"),
        [
            ("gpu-017.cluster.local", "gpu-017"),
            ("gpu-017", "gpu-017.cluster.local"),
            ("gpu-017.cluster.local", "GPU-017"),
            ("GPU-017", "gpu-017"),
        ],
    )
    def test_a_host_without_its_domain(
        self, cli: Cli, written: Written, own: str, given: str
    ) -> None:
        run = written.run_id
        written.join(1, own)
        written.join(1, "gpu-018.cluster.local")
        done = cli("evict", run, given, *_YES)
        assert (done.code, done.out) == (
            0,
            f"{own} (pid 1) is out of run '{run}', and {own} may not join until "
            f"`torchetcd allow {run} {given}`.\n",
        )
        assert self._there(cli, run) == {"gpu-018.cluster.local"}
        assert self._denied(cli, run) == {own}
        done = cli("allow", run, given)
        assert done.out == (f"{given} may join run '{run}' again (on the deny list: {own}).\n")
        assert self._denied(cli, run) == set()

    @pytest.mark.parametrize(
        ("own", "given"),
        [
            ("gpu-017.here", "gpu-017.there"),
            ("gpu-0170.here", "gpu-017"),
            ("10.0.0.5", "10"),
        ],
    )
    def test_another_host(self, cli: Cli, written: Written, own: str, given: str) -> None:
        written.join(1, own)
        done = cli("evict", written.run_id, given, *_YES)
        assert done.code == 4
        assert self._there(cli, written.run_id) == {own}

    def test_a_short_name_of_two_hosts(self, cli: Cli, written: Written) -> None:
        """Nobody knows which of them is meant."""
        hosts = {"gpu-017.here", "gpu-017.there"}
        for host in hosts:
            written.join(1, host)
        done = cli("evict", written.run_id, "gpu-017", *_YES)
        assert done.code == 4
        assert all(host in done.out for host in hosts)
        assert self._there(cli, written.run_id) == hosts
        assert cli("evict", written.run_id, "gpu-017.here", *_YES).code == 0
        assert self._there(cli, written.run_id) == {"gpu-017.there"}

    def test_a_node_id_with_a_domain(self, cli: Cli, written: Written) -> None:
        """Such as in a container, whose host name is a number."""
        run = written.run_id
        written.join(1, "f3a9", node_id="gpu-017.x")
        for number in range(2):
            written.join(1, f"c{number}", node_id=f"worker.{number}")
        assert cli("evict", run, "worker", *_YES).code == 4
        assert cli("evict", run, "gpu-017", *_YES).code == 0
        assert self._denied(cli, run) == {"worker", "gpu-017.x"}
        assert self._there(cli, run) == {"c0", "c1"}

    def test_one_of_two_on_a_host(self, cli: Cli, written: Written) -> None:
        run = written.run_id
        first, second = written.join(1, "gpu-1.x"), written.join(1, "gpu-1.x")
        shown = cli("show", run).out
        assert f"gpu-1.x    1  {first}" in shown
        assert f"gpu-1.x    2  {second}" in shown
        done = cli("evict", run, "gpu-1:2", *_YES)
        assert done.out == (
            f"gpu-1.x (pid 2) is out of run '{run}', and may not join until "
            f"`torchetcd allow {run} gpu-1:2`. A new agent there may join.\n"
        )
        shown = cli("show", run).out
        assert (first in shown, second in shown) == (False, False)
        assert "gpu-1.x:2  " in shown.partition("Denied (1)")[2]
        told = cli("why", run).out
        assert "gpu-1.x:2 may not join, by decision of " in told
        assert f"(`torchetcd allow {run} gpu-1.x:2` undoes that)" in told
        assert self._denied(cli, run) == {second}
        assert cli("allow", run, "gpu-1:2", "--json").json["names"] == [second]
        assert self._denied(cli, run) == set()
        # By its id, as `show` has it.
        assert cli("evict", run, first, *_YES).code == 0
        assert self._denied(cli, run) == {first}
        assert cli("allow", run, first).code == 0
        assert self._denied(cli, run) == set()

    def test_a_node_id_comes_before_a_host(self, cli: Cli, written: Written) -> None:
        written.join(1, "a", node_id="b")
        written.join(1, "b")
        assert [
            n["host"] for n in cli("evict", written.run_id, "b", *_YES, "--json").json["nodes"]
        ] == ["a"]

    def test_nobody(self, cli: Cli, written: Written) -> None:
        """It is no success, names that are close are told, and whether the denial stands."""
        run = written.run_id
        for host in ("gpu-017.x", "gpu-018.x"):
            written.join(1, host)
        done = cli("evict", run, "gpu-17", *_YES)
        assert done.code == 4
        assert done.out == (
            f"No node of run '{run}' is called gpu-17 at the moment. Close to it: gpu-017.x or gpu-018.x. "
            f"Nobody was taken out. Even so, gpu-17 may not join until `torchetcd allow {run} gpu-17`.\n"
        )
        assert self._denied(cli, run) == {"gpu-17"}
        done = cli("evict", run, "nobody", "--no-deny", *_YES)
        assert (done.code, done.out) == (
            4, f"No node of run '{run}' is called nobody at the moment. Nobody was taken out.\n"
        )  # fmt: skip
        assert cli("allow", run, "gpu-17").out == f"gpu-17 may join run '{run}' again.\n"

    def test_the_question_says_who_goes(self, written: Written, etcd_server: EtcdServer) -> None:
        for _ in range(2):
            written.join(1, "gpu-1.x")
        args = ("evict", written.run_id, "gpu-1", "--reason", "x")
        with Terminal(etcd_server.get_endpoint(), *args, size=(24, 300)) as terminal:
            terminal.await_text(
                f"Take gpu-1.x (pid 1) and gpu-1.x (pid 2) out of run '{written.run_id}', and keep gpu-1.x "
                "out? [y/N]"
            )
            terminal.type("n\n")
            assert terminal.wait() == 1
        args = ("evict", written.run_id, "gpu-2", "--reason", "x")
        with Terminal(etcd_server.get_endpoint(), *args, size=(24, 300)) as terminal:
            terminal.await_text(
                "is called gpu-2 at the moment. Close to it: gpu-1.x. Keep gpu-2 out"
            )
            terminal.type("n\n")
            assert terminal.wait() == 1

    @pytest.mark.parametrize("by", ["host", "pid"])
    def test_it_does_not_come_back(self, cli: Cli, run: Run, by: str) -> None:
        node = run.node(1, 1, keep_alive_ttl=60)
        join_all([node])
        (member,) = cli("show", run.run_id, "--json").json["run"]["members"]
        host = member["host"]
        name = {"host": f"{host}.cluster.local", "pid": f"{host}:{node.pid}"}[by]
        assert cli("evict", run.run_id, name, *_YES).code == 0
        assert node.call("await_waiting", PATIENCE_S) == 1
        with pytest.raises(NodeError, match="RendezvousDeniedError.*bad GPU"):
            node.call("join")
        assert cli("allow", run.run_id, name).code == 0
        assert node.call("join").world == 1

    def test_why_calls_them_the_same(self, cli: Cli, written: Written) -> None:
        written.join(1, "gpu-017.cluster.local")
        written.join(1, "gpu-018")
        expected = "gpu-017,gpu-018.cluster.local,gpu-019,gpu-017:1,gpu-018:9"
        told = cli("why", written.run_id, "--expect", expected, "--json").json
        assert told["not_come"] == ["gpu-019", "gpu-018:9"]

    @pytest.mark.parametrize("args", [("r",), ("r", "n", "x"), ("r", "n", "--all"), ()])
    def test_usage(self, cli: Cli, args: tuple[str, ...]) -> None:
        for command in (("evict", *args, *_YES), ("allow", *args)):
            done = cli(*command)
            assert (done.code, done.out) == (2, "")
            assert "NODE" in done.err


class TestSeveral:
    """`--all` and `--match`."""

    @pytest.fixture
    def runs(self, client: Client, prefix: str) -> dict[str, Written]:
        made = {run: Written(client, run, prefix) for run in ("exp-1", "exp-2", "other")}
        for run in made.values():
            run.put("head/control", run.control(1, "open"))
        return made

    def _states(self, cli: Cli, prefix: str) -> dict[str, str]:
        return {
            run["id"]: run["state"]
            for run in cli("runs", "--prefix", prefix, "--json").json["runs"]
        }

    def _denied(self, cli: Cli, prefix: str) -> dict[str, list[str]]:
        found: list[dict[str, Any]] = cli("runs", "--prefix", prefix, "--json").json["runs"]
        return {run["id"]: [denial["name"] for denial in run["denied"]] for run in found}

    def test_close(self, cli: Cli, runs: dict[str, Written], prefix: str) -> None:
        there = ("--prefix", prefix, "--reason", "maintenance")
        done = cli("close", "--match", "exp-*", "--yes", *there)
        assert (done.code, done.out) == (0, "Run 'exp-1' is closed.\nRun 'exp-2' is closed.\n")
        assert self._states(cli, prefix) == {"exp-1": "closed", "exp-2": "closed", "other": "open"}
        done = cli("close", "--all", "--yes", "--json", *there)
        assert done.json["runs"] == [{"run": "other", "changed": True, "error": None}]
        done = cli("close", "--all", "--yes", *there)
        assert (done.code, done.out) == (0, "None of these runs is open: nothing was changed.\n")
        done = cli("close", "--match", "x*", "--yes", *there)
        assert done.code == 3
        assert f"There is no run below {prefix} that matches 'x*'" in done.err

    def test_the_question(
        self, runs: dict[str, Written], prefix: str, etcd_server: EtcdServer
    ) -> None:
        args = ("close", "--all", "--prefix", prefix, "--reason", "x")
        with Terminal(etcd_server.get_endpoint(), *args, size=(24, 200)) as terminal:
            terminal.await_text(
                "Close 3 runs ('exp-1', 'exp-2' and 'other') for all their nodes? [y/N]"
            )
            terminal.type("n\n")
            assert terminal.wait() == 1
        assert b'"open"' in _control(runs["other"])

    def test_a_host_is_kept_out_of_all(
        self, cli: Cli, runs: dict[str, Written], prefix: str
    ) -> None:
        there = ("--prefix", prefix)
        runs["exp-1"].join(1, "gpu-1.x")
        runs["exp-2"].join(1, "gpu-2.x")
        runs["other"].put("head/control", runs["other"].control(1, "closed", reason="x"))
        done = cli("evict", "--all", "gpu-1", *_YES, *there)
        assert (done.code, done.out) == (
            0,
            "gpu-1.x (pid 1) is out of run 'exp-1', and gpu-1.x may not join any of 2 runs until "
            "`torchetcd allow --all gpu-1`.\n",
        )
        # By its whole name also where it has not been yet; a closed run would be kept for longer.
        assert self._denied(cli, prefix) == {
            "exp-1": ["gpu-1.x"],
            "exp-2": ["gpu-1.x"],
            "other": [],
        }
        assert cli("show", "exp-2", *there, "--json").json["run"]["joined"]
        done = cli("allow", "--all", "gpu-1", *there)
        assert done.out == "gpu-1 may join 2 runs again (on the deny list: gpu-1.x).\n"
        assert self._denied(cli, prefix) == {"exp-1": [], "exp-2": [], "other": []}

    def test_the_question_about_a_host(
        self, runs: dict[str, Written], prefix: str, etcd_server: EtcdServer
    ) -> None:
        for name in ("exp-1", "exp-2"):
            runs[name].join(1, "gpu-1.x")
        args = ("evict", "--all", "gpu-1", "--prefix", prefix, "--reason", "x")
        with Terminal(etcd_server.get_endpoint(), *args, size=(24, 250)) as terminal:
            terminal.await_text(
                "Take gpu-1.x (pid 1) and gpu-1.x (pid 1) out of 2 runs ('exp-1' and 'exp-2'), and keep "
                "gpu-1.x out of 3 runs ('exp-1', 'exp-2' and 'other')? [y/N]"
            )
            terminal.type("n\n")
            assert terminal.wait() == 1

    def test_only_closed_runs(self, cli: Cli, runs: dict[str, Written], prefix: str) -> None:
        for run in runs.values():
            run.put("head/control", run.control(1, "closed", reason="x"))
        done = cli("evict", "--all", "gpu-1", *_YES, "--prefix", prefix)
        assert (done.code, done.out) == (4, "None of these runs is open: nobody was taken out.\n")

    def test_what_fails_for_one_is_done_for_the_others(
        self, cli: Cli, runs: dict[str, Written], prefix: str
    ) -> None:
        runs["exp-1"].put("head/control", {"v": 2, "round": 1, "state": "odd"})
        runs["exp-1"].put("head/denied/n", {"by": "a"})
        done = cli("evict", "--match", "*", "n", *_YES, "--prefix", prefix)
        assert done.code == 4
        assert self._denied(cli, prefix)["exp-2"] == ["n"]

    def test_not_both(self, cli: Cli) -> None:
        for args in ((), ("r", "--all"), ("--all", "--match", "x"), ("r", "--match", "x")):
            done = cli("close", *args, *_YES)
            assert (done.code, done.out) == (2, "")
            assert "--all" in done.err


def _control(run: Written) -> bytes:
    found = run.client._native.txn([], [("get", run.keys.control, None, 0, False, 0)], [])
    value: bytes = found[2][0][0][0][1]
    return value
