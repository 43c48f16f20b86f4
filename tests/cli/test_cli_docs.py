"""What the documentation says of the command line is so: options, exit codes, JSON, the how-to."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from support import ROOT
from support.cli import PATIENCE_S, environment, piped
from support.waiting import eventually
from torchetcd.aio import Node, Run, TimelineEvent
from torchetcd.cli import exit_codes
from torchetcd.cli.app import app
from torchetcd.etcd import Client
from torchetcd.etcd_server import EtcdServer

DOCS = ROOT / "docs"
REFERENCE = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
HANG = (DOCS / "how-to" / "debug-a-hang.md").read_text(encoding="utf-8")
CODE = re.compile("`([^`]+)`")


def table(name: str) -> list[list[str]]:
    """Read the rows of the table of options of this name."""
    _, _, rest = REFERENCE.partition(f"<!-- options-{name} -->\n")
    rows = [
        line.strip("|").split("|")
        for line in rest.partition("<!-- /options -->")[0].splitlines()
        if line.startswith("|")
    ]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def options(command: click.Command) -> dict[str, click.Option]:
    return {opt: o for o in command.params if isinstance(o, click.Option) for opt in o.opts}


COMMON = {name for row in table("all") for name in CODE.findall(row[0])}


class TestReference:
    def test_all_commands(self) -> None:
        listed = re.findall(
            r"^\| `([a-z]+)` \|", REFERENCE.partition("## Options")[0], re.MULTILINE
        )
        assert listed == list(app.commands)
        sections = re.findall(r"^## `([a-z]+)`", REFERENCE, re.MULTILINE)
        assert sections == listed

    @pytest.mark.parametrize("name", list(app.commands))
    def test_all_options(self, name: str) -> None:
        there = set(options(app.commands[name]))
        own = {option for row in table(name) for option in CODE.findall(row[0])}
        common = set() if name in ("serve", "completion") else COMMON
        assert there == own | common

    def test_the_environment_and_defaults(self) -> None:
        there = options(app.commands["why"])
        for names, variable, default, _ in table("all"):
            option = there[CODE.findall(names)[-1]]
            assert CODE.findall(variable) == ([option.envvar] if option.envvar else [])
            if default:
                assert (
                    float(CODE.findall(default)[0]) == option.default
                    if option.name == ("timeout")
                    else CODE.findall(default) == [option.default]
                )

    def test_exit_codes(self) -> None:
        section = REFERENCE.partition("<!-- exit-codes -->")[2].partition("<!-- /exit-codes -->")[0]
        listed = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
        assert listed == {value for value in vars(exit_codes).values() if isinstance(value, int)}

    @pytest.mark.parametrize("kind", [Run, Node, TimelineEvent])
    def test_fields(self, kind: type) -> None:
        _, _, rest = REFERENCE.partition(f"<!-- fields-{kind.__name__.lower()} -->\n")
        text = re.sub(r"\(`[^)]*\)", "", rest.partition("<!-- /fields -->")[0])
        listed = {name for name in CODE.findall(text) if name}
        assert listed == {field.name for field in dataclasses.fields(kind)}

    def test_pictures_are_there(self) -> None:
        for target in re.findall(r"\]\((\.\./[^)]+)\)", REFERENCE):
            assert (DOCS / "reference" / target.partition("#")[0]).exists(), target

    def test_pictures_need_no_network(self) -> None:
        for path in (DOCS / "img").iterdir():
            if path.suffix == ".png":
                continue
            text = path.read_text(encoding="utf-8")
            assert "url(" not in re.sub(r"url\(#", "", text), path
            assert "@import" not in text
            assert "<script" not in text


class TestHang:
    """docs/how-to/debug-a-hang.md, followed as it stands: with torchrun, in a shell."""

    @pytest.fixture
    def shell(self, tmp_path: Path, etcd_server: EtcdServer) -> dict[str, str]:
        """Provide the environment of a shell in which the package is installed."""
        for name, module in (("torchetcd", "torchetcd.cli"), ("torchrun", "torch.distributed.run")):
            program = tmp_path / name
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
            program.chmod(0o755)
        path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
        made = environment(etcd_server.get_endpoint(), PATH=path, OMP_NUM_THREADS="1")
        made["TORCHETCD_PREFIX"] = "/torchelastic/p2p"
        return made

    @pytest.mark.slow(20)
    @pytest.mark.timeout(400)
    def test_as_it_stands(self, shell: dict[str, str], client: Client, tmp_path: Path) -> None:
        """With a run id that no other test has."""
        run = f"hang-{tmp_path.name}"

        def block(name: str) -> str:
            text = re.search(
                rf"<!-- hang-{name} -->\n(?:<!--.*?-->\n)?```\w+\n(.*?)```", HANG, re.DOTALL
            )
            assert text is not None, name
            return text[1].replace("my-job", run)

        def ask(name: str) -> str:
            done = subprocess.run(
                ["bash", "-c", block(name)], env=shell, capture_output=True, text=True, check=False
            )
            assert not done.stderr
            return done.stdout

        def joined() -> int:
            prefix = f"/torchelastic/p2p/run_{run}/rdzv/round/1/join"
            found = client._native.txn(
                [], [("get", f"{prefix}/".encode(), f"{prefix}0".encode(), 0, True, 0)], [], 10.0
            )
            return len(found[2][0][0])

        agents = subprocess.Popen(
            ["bash", "-c", f"{block('start')}\nwait"],
            env=shell,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            eventually(lambda: joined() == 3, 120)
            assert _shape(ask("why")) == _shape(block("answer"))
            mend = subprocess.run(
                ["bash", "-c", block("mend")],
                env=shell,
                capture_output=True,
                text=True,
                check=False,
            )
            assert mend.returncode == 0, mend.stderr
            assert agents.wait(120) == 0
        finally:
            if agents.poll() is None:
                os.killpg(agents.pid, 9)
            agents.wait()
        told = ask("timeline")
        for event in ("opened", "joined", "final", "closed"):
            assert re.search(rf"\b{event}\b", told)
        assert "was closed by" in ask("why")

    @pytest.mark.needs_etcd
    def test_serve(self) -> None:
        assert "\ntorchetcd serve --port 2379\n" in HANG
        with piped("unused", "serve") as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first.startswith("etcd listens on localhost:")
            process.terminate()
            assert process.wait(PATIENCE_S) == 0


def _shape(answer: str) -> str:
    """An answer without its times, and without which of the nodes came first."""
    text = re.sub(r"\d+ (min|s)( \d+ s)?", "TIME", " ".join(answer.split()))
    return re.sub(r"give up is worker-\d", "give up is WORKER", re.sub(r"hang-[\w-]+", "RUN", text))


def test_the_readme_names_the_commands() -> None:
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## See and steer")[2].partition("\n## ")[0]
    commands = re.findall(r"^torchetcd ([a-z]+)", section, re.MULTILINE)
    assert len(commands) > 3
    assert set(commands) <= set(app.commands)


def test_the_pyproject_has_the_extra() -> None:
    text = (DOCS.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert 'torchetcd = "torchetcd.cli:main"' in text
    assert re.search(r'^cli = \["click.*rich', text, re.MULTILINE)
    assert json.dumps("click>=8.1") in text
