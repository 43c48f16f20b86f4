"""`torchetcd doctor` against real etcds: with users, with TLS, and with members that are not there."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.certificates import Authority
from support.cli import Cli, Done
from support.etcd.users import CHEAP, ROOT_PASSWORD, Users
from torchetcd.etcd import Client, EtcdException
from torchetcd.etcd_server import EtcdServer


def told(done: Done) -> dict[tuple[str, str], list[str]]:
    """Sort findings by topic and level."""
    found: dict[tuple[str, str], list[str]] = {}
    for finding in done.json["findings"]:
        found.setdefault((finding["topic"], finding["level"]), []).append(finding["text"])
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    """Run an etcd with users."""
    with EtcdServer(extra_args=[CHEAP]) as running:
        users = Users(running)
        users.add("mine", "secret", prefix="/torchelastic/p2p/run_mine/")
        users.add("team", "secret", prefix="/torchelastic/p2p/")
        yield running


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Provide the CA of servers and clients."""
    return Authority(tmp_path_factory.mktemp("certificates"))


def _fill(client: Client) -> None:
    for number in range(40):
        client.write(f"/full/{number}", "x" * 1_000_000)


class TestOpen:
    def test_as_text(self, cli: Cli) -> None:
        done = cli("doctor")
        # Whatever the version of the etcd is: it may be one with a known fault.
        assert done.code in (0, 4)
        for said in ("reads take", "commits take", "There is a leader.", "No alarm is on."):
            assert said in done.out
        assert "Reading and writing below /torchelastic/p2p/ is allowed." in done.out
        # A machine with more to do than it can makes etcd slow, which is a finding too.
        assert re.fullmatch(
            r"Nothing is wrong\.|\d problems?\.|(\d problems? and )?\d warnings?\.",
            done.out.splitlines()[-1],
        )

    @pytest.mark.needs_etcd
    def test_it_leaves_nothing_behind(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Not even a revision: a write is tried, but under a guard that never holds."""
        # In an etcd of its own: in another one leases of earlier tests run out.
        with EtcdServer() as server, server.get_client() as client:

            def revision() -> int:
                _, found, _ = client._native.txn([], [("get", b"\0", None, 1, True, 0)], [], 10.0)
                return found

            before = revision()
            assert "commits take" in Cli(server.get_endpoint(), capsys)("doctor").out
            assert revision() == before

    def test_changes_of_the_leader(self, cli: Cli) -> None:
        """Nothing but etcd's page of metrics tells how many there were."""
        found = told(cli("doctor", "--json"))
        (text,) = found["leader", "ok"]
        assert re.fullmatch(
            r"There is a leader\. \S+ has seen 0 changes of the leader in .+\.", text
        )

    @pytest.mark.needs_etcd
    def test_a_full_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The size and the alarm agree: the quota is the member's own, also before etcd 3.6."""
        with EtcdServer(extra_args=["--quota-backend-bytes=16777216"]) as server:
            with (
                server.get_client(read_timeout=60) as client,
                pytest.raises(EtcdException, match="space"),
            ):
                _fill(client)
            found = told(Cli(server.get_endpoint(), capsys)("doctor", "--json"))
        assert "The alarm NOSPACE is on" in found["alarms", "problem"][0]
        (text,) = found["quota", "problem"]
        assert re.search(r"\d+% of 16\.0 MiB\.", text)
        assert ("quota", "ok") not in found

    def test_an_endpoint_that_is_not_there(self, cli: Cli, etcd_server: EtcdServer) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            gone = f"127.0.0.1:{taken.getsockname()[1]}"
            both = f"{etcd_server.get_endpoint()},{gone}"
            done = cli.bare("doctor", "--endpoint", both, "--timeout", "2", "--json")
            alone = cli.bare("doctor", "--endpoint", gone, "--timeout", "1", "--json")
        assert done.code == 4
        found = told(done)
        assert f"http://{gone} does not answer" in found["reach", "problem"][0]
        assert ("rights", "ok") in found
        assert alone.code == 4
        assert list(told(alone)) == [("reach", "problem")]


class TestUsers:
    def _as(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        server: EtcdServer,
        user: str | None,
        *args: str,
        password: str = "secret",
    ) -> Done:
        for name in ("TORCHETCD_USER", "TORCHETCD_PASSWORD", "TORCHETCD_PASSWORD_FILE"):
            monkeypatch.delenv(name, raising=False)
        if user is not None:
            monkeypatch.setenv("TORCHETCD_USER", user)
            monkeypatch.setenv("TORCHETCD_PASSWORD", password)
        return Cli(server.get_endpoint(), capsys)("doctor", *args, "--json")

    def test_of_a_team(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        server: EtcdServer,
    ) -> None:
        found = told(self._as(monkeypatch, capsys, server, "team"))
        assert found["auth", "ok"] == ["etcd accepts the user 'team'."]
        assert found["rights", "ok"] == ["Reading and writing below /torchelastic/p2p/ is allowed."]

    def test_without_root_it_says_what_it_may_not_see(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        server: EtcdServer,
    ) -> None:
        """etcd 3.5.1 shows everybody its members and alarms; later ones do not."""
        done = self._as(monkeypatch, capsys, server, "team")
        notes = [
            text for (_, level), texts in told(done).items() if level == "note" for text in texts
        ]
        found = told(done)
        members = [text for text in notes if "The cluster has" in text or "list of members" in text]
        assert len(members) == 1
        assert ("alarms", "ok") in found or ("alarms", "note") in found

    def test_of_one_run(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        server: EtcdServer,
    ) -> None:
        done = self._as(monkeypatch, capsys, server, "mine")
        assert done.code == 4
        (text, *_) = told(done)["rights", "problem"]
        assert text == "The user 'mine' may not read below /torchelastic/p2p/."
        found = told(self._as(monkeypatch, capsys, server, "mine", "mine"))
        assert found["rights", "ok"] == [
            "Reading and writing below /torchelastic/p2p/run_mine/ is allowed."
        ]

    def test_nobody(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        server: EtcdServer,
    ) -> None:
        done = self._as(monkeypatch, capsys, server, None)
        assert done.code == 4
        assert "answers, but not this user" in told(done)["auth", "problem"][0]

    def test_a_wrong_password(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        server: EtcdServer,
    ) -> None:
        done = self._as(monkeypatch, capsys, server, "team", password="wr0ng")
        assert "answers, but not this user" in told(done)["auth", "problem"][0]
        assert "wr0ng" not in done.out

    def test_root(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        server: EtcdServer,
    ) -> None:
        found = told(self._as(monkeypatch, capsys, server, "root", password=ROOT_PASSWORD))
        assert ("alarms", "ok") in found
        assert "The cluster has 1 member" in found["cluster", "note"][0]


@pytest.mark.needs_etcd
class TestTls:
    def test_certificates(self, ca: Authority, capsys: pytest.CaptureFixture[str]) -> None:
        pair, mine, old = ca.issue("server"), ca.issue("me"), ca.issue("old", expired=True)
        args = [f"--cert-file={pair.cert}", f"--key-file={pair.key}"]
        args += ["--client-cert-auth", f"--trusted-ca-file={ca.ca_cert}"]
        with EtcdServer(extra_args=args) as server:
            cli = Cli(server.get_endpoint(), capsys)
            options = ("--ca-cert", ca.ca_cert, "--json")
            found = told(cli("doctor", *options, "--cert", mine.cert, "--key", mine.key))
            bad = told(cli("doctor", *options, "--cert", old.cert, "--key", old.key))
            none = told(cli("doctor", *options))
        # They are good for a day.
        client_says, server_says = found["tls", "warning"]
        assert server_says.startswith(
            f"The certificate of https://{server.get_endpoint()} is valid"
        )
        assert client_says.startswith(f"The client certificate {mine.cert} is valid until")
        assert ("rights", "ok") in found
        assert "of the leader in" in found["leader", "ok"][0]
        assert ("reach", "problem") in none
        assert ("reach", "problem") in bad
        assert any(f"client certificate {old.cert} expired at" in t for t in bad["tls", "problem"])

    def test_an_expired_server(self, ca: Authority, capsys: pytest.CaptureFixture[str]) -> None:
        pair = ca.issue("expired", expired=True)
        args = [f"--cert-file={pair.cert}", f"--key-file={pair.key}"]
        with EtcdServer(extra_args=args) as server:
            done = Cli(server.get_endpoint(), capsys)("doctor", "--ca-cert", ca.ca_cert, "--json")
        assert "expired at" in told(done)["tls", "problem"][0]
        assert ("reach", "problem") in told(done)


def test_what_is_wrong_with_the_runs(cli: Cli, client: Client, prefix: str) -> None:
    path = f"{prefix}/run_odd/rdzv/head/control"
    client.write(path, '{"v": 99}')
    found = told(cli("doctor", "--prefix", prefix, "--json"))
    assert found["runs", "warning"] == ["The state of run 'odd' cannot be read."]
    client.write(path, '{"v": 1, "round": 1, "state": "open", "by": "x", "at": 99999999999}')
    found = told(cli("doctor", "--prefix", prefix, "--json"))
    assert found["runs", "warning"] == [
        "Keys of run 'odd' are held by no lease: they stay for ever."
    ]
    assert "in the future by the clock here" in found["clock", "warning"][0]


def test_a_client_certificate_that_is_none(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("hello", encoding="ascii")
    done = cli("doctor", "--cert", str(tmp_path / "x.pem"), "--protocol", "http", "--json")
    assert "There is no certificate in" in done.out or "certificate" in done.err
