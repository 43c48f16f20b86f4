"""The command line and the quorum inside a job: real agents, and the etcds that they run."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.cli import PATIENCE_S, Cli, Done, piped
from support.processes.zygote import Zygote
from support.quorum import Agent, Job
from support.waiting import eventually
from torchetcd.aio import Client

#: No test lasts so long.
NEVER = 3600
GOES_ON = "so no new round can form while training goes on."


@pytest.fixture
def make_job(zygote: Zygote, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Make jobs; in the end nothing of them runs any more."""
    with ExitStack() as stack:

        def make(entries: int = 3, name: str = "job", **config: Any) -> Job:
            folder = tmp_path / name
            folder.mkdir()
            return stack.enter_context(Job(zygote, folder, entries, **config))

        yield make


@pytest.fixture
def shell(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Job], Cli]:
    """Make the command line of a job."""
    for name in ("TORCHETCD_ENDPOINT", "TORCHETCD_QUORUM_SECRET_FILE"):
        monkeypatch.delenv(name, raising=False)
    return lambda job: Cli(job.endpoint, capsys)


def _formed(job: Job, agents: int) -> list[Agent]:
    """Start agents, and let them complete a round."""
    started = job.start_all(agents, least=agents, most=agents)
    for agent in started:
        agent.start("join")
    for agent in started:
        agent.finish()
    return started


async def _runs(job: Job) -> list[str]:
    async with Client(job.endpoint) as client:
        return [run.id for run in await client.list_runs()]


def _quorum(done: Done) -> dict[str, Any]:
    assert done.code == 0, done.err
    found: dict[str, Any] = done.json["quorum"]
    return found


def _findings(done: Done, topic: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in done.json["findings"]:
        if finding["topic"] == topic:
            found.setdefault(finding["level"], []).append(finding["text"])
    return found


def _states(done: Done) -> dict[str, str]:
    return {member["entry"]: member["state"] for member in _quorum(done)["members"]}


@pytest.mark.slow(15)
class TestThere:
    def test_all_commands(
        self,
        make_job: Callable[..., Job],
        shell: Callable[[Job], Cli],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        job = make_job(4)
        _formed(job, 4)
        cli, run = shell(job), job.run_id

        assert cli("why", run).code == 0
        assert run in cli("runs").out
        assert "round 1 is complete: 4 nodes" in cli("watch", run, "--once").out
        assert cli("timeline", run, "--json").json["timeline"]["id"] == run
        assert cli("nodes", "--json").code == 0
        assert asyncio.run(_runs(job)) == [run]

        eventually(lambda: {*_states(cli("show", run, "--json")).values()} == {"runs"})
        seen = _quorum(cli("show", run, "--json"))
        assert (seen["endpoint"], seen["size"], seen["majority"]) == (job.endpoint, 3, 2)
        assert (seen["decides"], seen["changer"]) == (True, None)
        members = {entry.name: f"{job.ids()[entry.port]:016x}" for entry in job.entries.first}
        assert {member["entry"]: member["id"] for member in seen["members"]} == members
        assert [member["leader"] for member in seen["members"]].count(True) == 1
        assert all(member["lag"] is not None for member in seen["members"])
        assert all(member["db_size"] > 0 for member in seen["members"])
        assert {member["pid"] for member in seen["members"]} < {agent.pid for agent in job.agents}
        (other,) = seen["others"]
        assert (other["entry"], other["who"]) == (job.entries.all[3].name, "agent")
        text = cli("show", run).out
        assert "Quorum (3 of 3 members there, 2 needed)" in text
        assert "stands by" in text

        done = cli("doctor", "--json")
        found = _findings(done, "quorum")
        assert found["ok"][0] == "3 of 3 members are there, and 2 are needed."
        assert "stands by" in found["ok"][1]
        assert set(found) == {"ok"}
        assert _findings(done, "tls")["ok"] == [
            "The quorum has no secret, and is reached on this host only."
        ]
        assert "auth" not in {finding["topic"] for finding in done.json["findings"]}
        assert len(_findings(done, "latency").get("ok", [])) > 0

        monkeypatch.setenv("TORCHETCD_ENDPOINT", job.endpoint)
        assert cli.bare("close", run, "--reason", "done", "--yes").code == 0
        assert cli.bare("why", run).code == 5

    def test_an_entry_alone(
        self, make_job: Callable[..., Job], shell: Callable[[Job], Cli]
    ) -> None:
        """One that runs no member does not keep the others from answering, wherever it stands."""
        job = make_job(4)
        _formed(job, 4)
        cli = shell(job)
        first, *others = [entry.name for entry in reversed(job.entries.all)]
        endpoint = f"job://{first},{others[0]}"
        assert cli.bare("why", job.run_id, "--endpoint", endpoint).code == 0
        seen = _quorum(cli.bare("show", job.run_id, "--json", "--endpoint", endpoint))
        assert seen["size"] == 3
        done = cli.bare("why", job.run_id, "--endpoint", f"job://{first}")
        assert done.code == 1
        assert done.err == (
            f"torchetcd: No member of the quorum of job://{first} runs: {first} (its agent runs, its member "
            "does not).\n"
        )


@pytest.mark.slow(20)
class TestGone:
    def test_one_and_then_most(
        self, make_job: Callable[..., Job], shell: Callable[[Job], Cli]
    ) -> None:
        job = make_job(4, quorum_replace_after=NEVER)
        _formed(job, 4)
        cli, run = shell(job), job.run_id
        names = {entry.port: entry.name for entry in job.entries.all}
        ports = [entry.port for entry in job.entries.first]
        eventually(lambda: {*_states(cli("show", run, "--json")).values()} == {"runs"})
        with piped(job.endpoint, "watch", run, "--json") as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["event"] == "Snapshot"

            def await_event(kind: str) -> dict[str, Any]:
                while True:
                    assert process.stdout is not None
                    told: dict[str, Any] = json.loads(process.stdout.readline())
                    if told["event"] == kind:
                        return told

            job.lose(job.agent_at(ports[1]))
            told = await_event("MemberGone")
            assert told["entry"] == names[ports[1]]
            assert "is gone (2 of 3 members there, 2 needed)" in told["text"]

            eventually(lambda: _states(cli("show", run, "--json"))[names[ports[1]]] == "gone")
            # The agent that stands by has noticed it.
            eventually(lambda: "gone for" in cli("show", run).out)
            done = cli("doctor", "--json")
            assert any(
                "No more may be lost." in text for text in _findings(done, "quorum")["warning"]
            )

            job.lose(job.agent_at(ports[2]))
            told = await_event("MajorityLost")
            assert names[ports[1]] in told["text"]
            assert names[ports[2]] in told["text"]
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 130

        done = cli("why", run)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(
            f"torchetcd: The quorum of {job.endpoint} has no majority, 2 of 3 members, because "
        )
        assert done.err.endswith(f"{GOES_ON}\n")
        assert all(f"{names[port]} (no agent runs there" in done.err for port in ports[1:])
        assert f"{names[ports[0]]} (" not in done.err
        done = cli("doctor", "--json")
        assert done.code == 4
        assert GOES_ON in _findings(done, "quorum")["problem"][0]
        # One of the members is not there, and would only say so once more.
        assert not _findings(done, "reach")

    def test_nobody(self, make_job: Callable[..., Job], shell: Callable[[Job], Cli]) -> None:
        job = make_job(3)
        cli = shell(job)
        done = cli("runs", "--timeout", "1")
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(
            f"torchetcd: No member of the quorum of {job.endpoint} answers: "
        )
        assert done.err.count("\n") == 1
        done = cli("doctor", "--json", "--timeout", "1")
        assert done.code == 4
        assert list(_findings(done, "quorum")) == ["problem"]


@pytest.mark.slow(15)
class TestSecret:
    def test_it_is_needed(
        self,
        make_job: Callable[..., Job],
        shell: Callable[[Job], Cli],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        secret, other = tmp_path / "secret", tmp_path / "other"
        secret.write_text("s" * 32)
        other.write_text("t" * 32)
        job = make_job(3, quorum_secret_file=str(secret))
        for agent in [job.start(3, 3) for _ in range(3)]:
            agent.finish()
        (tmp_path / "temporary").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
        cli, run = shell(job), job.run_id
        for agent in job.agents:
            agent.start("join")
        for agent in job.agents:
            agent.finish()

        given = ("--quorum-secret-file", str(secret))
        assert cli("why", run, *given).code == 0
        assert {*_states(cli("show", run, "--json", *given)).values()} == {"runs"}
        done = cli("doctor", "--json", *given)
        assert _findings(done, "quorum")["ok"] == ["3 of 3 members are there, and 2 are needed."]
        assert (
            "The ports of the quorum admit only who has its secret." in _findings(done, "tls")["ok"]
        )
        assert not _findings(done, "reach")

        done = cli("why", run)
        assert done.code == 1
        assert "it speaks TLS: quorum_secret_file is given there and not here" in done.err
        done = cli("doctor", "--json", "--timeout", "2")
        assert any("it speaks TLS" in text for text in _findings(done, "quorum")["problem"])
        monkeypatch.setenv("TORCHETCD_QUORUM_SECRET_FILE", str(other))
        done = cli("why", run)
        assert done.code == 1
        assert "its quorum_secret_file holds another secret" in done.err
        assert not [*(tmp_path / "temporary").iterdir()]

    def test_one_that_is_none(
        self, shell: Callable[[Job], Cli], capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        short = tmp_path / "short"
        short.write_text("abc")
        cli = Cli("job://a,b,c", capsys)
        done = cli("runs", "--quorum-secret-file", str(short))
        assert done.code == 2
        assert (
            f"names the file '{short}', whose secret has 3 bytes: it needs at least 16" in done.err
        )


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("job://", "names no host: give those that run the quorum"),
        ("job://a,a", "names 'a:2379' twice"),
        ("job://http://a", "must be a host or host:port, without a scheme"),
        ("job://u:geheim@a", "must not hold a user or a password"),
        ("job://a:x", "'a:x'"),
    ],
)
def test_an_endpoint_that_is_none(
    capsys: pytest.CaptureFixture[str], endpoint: str, said: str
) -> None:
    done = Cli(endpoint, capsys)("runs")
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "geheim" not in done.err
