"""What is given to the command line: where it may stand, what is wrong with it, and what help says."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from support.cli import Cli
from support.records import Written
from torchetcd.cli import main
from torchetcd.etcd import Client, EtcdConnectionFailed
from torchetcd.etcd_server import EtcdServer


@pytest.fixture
def world(client: Client, run_id: str) -> Written:
    """Provide a run whose round is complete."""
    made = Written(client, run_id)
    made.complete(1, [made.join(1, "a")])
    return made


class TestErrors:
    """One sentence each, and the exit code that the documentation says."""

    @pytest.mark.parametrize("command", ["runs", "why", "watch", "timeline"])
    def test_nobody_listens(self, cli: Cli, command: str) -> None:
        run = () if command == "runs" else ("r",)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # and no listen(): refused
            endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
            done = cli.bare(command, *run, "--endpoint", endpoint, "--timeout", "0.5")
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("torchetcd: ")
        assert endpoint in done.err
        assert done.err.count("\n") == 1

    def test_no_endpoint_was_given(
        self, cli: Cli, monkeypatch: pytest.MonkeyPatch, etcd_server: EtcdServer
    ) -> None:
        from torchetcd.cli.target import Target

        def refused(_target: Target, _endpoint: str | None = None) -> None:
            raise EtcdConnectionFailed("nobody is there.")

        monkeypatch.setattr(Target, "client", refused)
        monkeypatch.delenv("TORCHETCD_ENDPOINT", raising=False)
        assert cli.bare("runs").err == (
            "torchetcd: nobody is there; set --endpoint or TORCHETCD_ENDPOINT (localhost:2379 is the "
            "default).\n"
        )
        assert cli("runs").err == "torchetcd: nobody is there.\n"

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (("what",), "No such command 'what'"),
            (("runs", "--what"), "No such option"),
            (("show",), "Missing argument 'RUN'"),
            (("close", "r"), "Missing option '--reason'"),
            (("runs", "--password", "x"), "No such option"),
            (("runs", "--key", __file__), "--key needs --cert"),
            (("runs", "--ca-cert", "/nowhere"), "'/nowhere' does not exist"),
            (("runs", "--timeout", "0"), "'0' is not a number from 0.1 to 86400."),
            (("runs", "--timeout", "nan"), "'nan' is not a number from 0.1 to 86400."),
            (("--timeout", "abc", "runs"), "'--timeout': 'abc' is not a number from 0.1 to 86400."),
            (("--endpoint",), "requires an argument"),
            (("--endpoint", "h"), "Missing command"),
            (("-x", "runs"), "No such option '-x'"),
            (("--endpoint", "h", "serve"), "No such option '--endpoint'"),
            (("runs", "--endpoint", "http://u:geheim@h"), "must not hold a user or a password"),
            (("runs", "--endpoint", "h:x"), "'h:x' is not valid"),
            (("runs", "--user", "me"), "without a password"),
            (("timeline", "r", "--html", "a", "--png", "b"), "not both"),
            (("completion", "csh"), "'csh' is not one of"),
        ],
    )
    def test_usage(
        self, cli: Cli, args: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("TORCHETCD_USER", raising=False)
        done = cli.bare(*args)
        assert (done.code, done.out) == (2, "")
        assert said in done.err
        assert "geheim" not in done.err
        assert "--help`." in done.err
        assert done.err.count("\n") == 1

    def test_without_click(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in [name for name in sys.modules if name.startswith("torchetcd.cli.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "click", None)
        assert main(["runs"]) == 1
        assert capsys.readouterr().err == (
            "torchetcd: the command line needs the Python package click: pip install 'torchetcd[cli]'\n"
        )

    def test_without_matplotlib(
        self, cli: Cli, world: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in [name for name in sys.modules if name.startswith("matplotlib")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        done = cli("timeline", world.run_id, "--png", str(tmp_path / "x.png"))
        assert done.code == 1
        assert "pip install 'torchetcd[plot]'" in done.err

    def test_the_environment(
        self, cli: Cli, world: Written, etcd_server: EtcdServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHETCD_ENDPOINT", etcd_server.get_endpoint())
        assert cli.bare("why", world.run_id).code == 0
        monkeypatch.setenv("TORCHETCD_PREFIX", "/elsewhere")
        assert cli.bare("why", world.run_id).code == 3

    @pytest.mark.parametrize(
        ("variable", "value", "said"),
        [
            ("TIMEOUT", "abc", "'abc' is not a number from 0.1 to 86400."),
            ("CA_CERT", "/nowhere", "File '/nowhere' does not exist."),
            ("PROTOCOL", "ftp", "'ftp' is not one of 'http', 'https'."),
            ("ENDPOINT", "h:x", "The etcd endpoint 'h:x' is not valid"),
            ("PREFIX", "/a/\udc80", "The etcd prefix must"),
        ],
    )
    def test_a_value_of_the_environment(
        self, cli: Cli, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
    ) -> None:
        """The error names the variable: nobody has typed the option."""
        monkeypatch.setenv("TORCHETCD_ENDPOINT", "localhost:1")
        monkeypatch.setenv(f"TORCHETCD_{variable}", value)
        done = cli.bare("runs")
        assert done.code == 2
        assert done.err.startswith(f"torchetcd: Invalid value for TORCHETCD_{variable}: {said}")

    def test_the_protocol_has_no_case(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHETCD_PROTOCOL", "HTTP")
        assert cli("runs").code == 0


class TestOptionsBeforeTheCommand:
    """As kubectl and etcdctl take them."""

    def test_each_of_them(self, cli: Cli, world: Written, etcd_server: EtcdServer) -> None:
        endpoint = etcd_server.get_endpoint()
        run = ("why", world.run_id)
        assert cli.bare("-e", endpoint, *run) == cli.bare(*run, "-e", endpoint)
        for before in (
            (f"-e{endpoint}",),
            (f"--endpoint={endpoint}", "--timeout", "20"),
            ("--protocol", "http", "--endpoint", endpoint, "--prefix", "/torchelastic/p2p"),
        ):
            assert cli.bare(*before, *run).code == 0
        assert cli.bare("--json", "-e", endpoint, *run).json["run"] == world.run_id
        assert cli.bare("--prefix", "/elsewhere", "-e", endpoint, *run).code == 3

    def test_what_stands_after_it_counts(
        self, cli: Cli, etcd_server: EtcdServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHETCD_ENDPOINT", "h:x")
        monkeypatch.setenv("TORCHETCD_TIMEOUT", "abc")
        right = etcd_server.get_endpoint()
        assert cli.bare("-e", "h:y", "--timeout", "5", "runs", "-e", right).code == 0
        assert cli.bare("-e", right, "--timeout", "5", "runs").code == 0

    def test_help(self, cli: Cli) -> None:
        assert cli.bare("-e", "h", "--help").out == cli.bare("--help").out
        assert cli.bare("-e", "h", "why", "--help").out == cli.bare("why", "--help").out
        assert "before or after the command's name" in cli.bare("--help").out


class TestHelp:
    def test_of_the_bare_command(self, cli: Cli) -> None:
        assert cli.bare() == cli.bare("--help")
        assert cli.bare().out.count("\n") > 20

    def test_of_all_commands(self, cli: Cli) -> None:
        done = cli.bare("--help")
        assert done.code == 0
        for name in ("runs", "show", "why", "watch", "timeline", "close", "reopen", "evict"):
            assert f"  {name} " in done.out
            told = cli.bare(name, "--help")
            assert told.code == 0
            assert "TORCHETCD_ENDPOINT" in told.out
            assert all(len(line) <= 100 for line in told.out.splitlines())

    def test_version(self, cli: Cli) -> None:
        import torchetcd

        assert cli.bare("--version").out == f"torchetcd, version {torchetcd.__version__}\n"

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_completion(self, cli: Cli, shell: str) -> None:
        done = cli.bare("completion", shell)
        assert done.code == 0
        assert "_TORCHETCD_COMPLETE" in done.out

    def test_runs_are_completed(
        self,
        world: Written,
        etcd_server: EtcdServer,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("TORCHETCD_ENDPOINT", etcd_server.get_endpoint())
        monkeypatch.setenv("_TORCHETCD_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", f"torchetcd why {world.run_id[:5]}")
        monkeypatch.setenv("COMP_CWORD", "2")
        assert main([]) == 0
        assert f"plain,{world.run_id}\n" in capsys.readouterr().out
        monkeypatch.delenv("TORCHETCD_ENDPOINT")
        endpoint = etcd_server.get_endpoint()
        monkeypatch.setenv("COMP_WORDS", f"torchetcd -e {endpoint} evict {world.run_id[:5]}")
        monkeypatch.setenv("COMP_CWORD", "4")
        assert main([]) == 0
        assert f"plain,{world.run_id}\n" in capsys.readouterr().out
