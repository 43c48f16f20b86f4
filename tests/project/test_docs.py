"""Every block of code in the documentation is run, or checked as far as it goes: `support/docs/blocks.py`."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import yaml

from support import ROOT
from support.docs import commands
from support.docs.blocks import BLOCKS, Block, pages
from support.docs.manifests import check_manifest
from support.docs.terminals import Terminals, environment, has_etcdctl, programs
from torchetcd.etcd_server import EtcdServer

# A role's commands, with an etcd of their own: `test_role.py`.
RUN_ELSEWHERE = {"docs/security.md"}
CLUSTER = "etcd-1:2379,etcd-2:2379,etcd-3:2379"
SHELL = {"sh", "bash"}


def _with(*kinds: str, language: str | None = None) -> list[Block]:
    return [
        block
        for block in BLOCKS
        if language in {None, block.language} and any(kind in block.marks for kind in kinds)
    ]


def _ids(block: Block) -> str:
    return block.where


def _python_pages() -> list[str]:
    return list(dict.fromkeys(block.page for block in BLOCKS if _runs_as_python(block)))


def _runs_as_python(block: Block) -> bool:
    return block.language == "python" and not block.marks.keys() & {"file", "not run", "part of"}


def test_there_are_blocks() -> None:
    assert len(BLOCKS) > 30
    assert _python_pages()
    assert {"sh", "python", "yaml", "text", "mermaid"} <= {block.language for block in BLOCKS}


def test_marks_are_understood() -> None:
    """A mark with a slip of the pen would leave a block unchecked."""
    allowed = re.compile(
        r"<!-- (runs as a test|terminal: \S+(; until: .+)?|file: \S+|part of: \S+|same as: \S+"
        r"|not run: .{8,}|/?(?!terminal|file|part|same|not|runs)[a-z-]+) -->"
    )
    for page in pages():
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("<!--"):
                assert allowed.fullmatch(line), (page, line)


def test_the_readme_is_read_elsewhere() -> None:
    """PyPI shows it, too: links and pictures name the repository, and a file of it."""
    repository = r"https://(?:github|raw\.githubusercontent)\.com/torchetcd/torchetcd/"
    targets = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(targets) > 10
    for target in targets:
        assert target.startswith("https://"), target
        path = re.sub(rf"^{repository}(?:blob/)?main/", "", target)
        assert path.startswith("https://") or (ROOT / path.partition("#")[0]).is_file(), target


def test_quoted_errors_are_ours() -> None:
    """The page of errors quotes what the code says; what is torch's is marked so."""
    page = (ROOT / "docs" / "how-to" / "errors.md").read_text(encoding="utf-8")
    files = [*(ROOT / "python").rglob("*.py"), *(ROOT / "src").rglob("*.rs")]
    source = " ".join(file.read_text(encoding="utf-8") for file in files)
    # A message that goes over several lines, in Rust and in Python, and names in it.
    source = re.sub(r"\\\n\s+|[\"']\n\s*f?[\"']", "", source)
    quoted = re.findall(r"^\| `([^|]+?)`(?: \(a warning\))? \|", page, re.MULTILINE)
    assert len(quoted) > 12
    for message in quoted:
        for part in re.split(r"\.\.\.|'none'|etcdserver: .*", message):
            assert part.strip(" '") in source, message


@pytest.mark.parametrize("block", BLOCKS, ids=_ids)
def test_block(block: Block) -> None:
    """What can be told without running it."""
    if block.language in SHELL:
        parsed = subprocess.run(
            ["bash", "-n"], input=block.source, capture_output=True, text=True, check=False
        )
        assert parsed.returncode == 0, parsed.stderr
        if not block.marks:
            assert commands.check(block.source), "there is no command in it"
    elif block.language == "python":
        _compile(block)
    elif block.language == "yaml":
        documents = list(yaml.safe_load_all(block.source))
        if "part of" not in block.marks:
            for document in documents:
                check_manifest(document)
    elif block.language == "json":
        json.loads(block.source)
    elif block.language == "text":
        # What is to be typed is not text.
        programs_ = "|".join([*commands.CHECKS, "etcdctl", "etcd"])
        assert not re.search(rf"^\$ |^({programs_}) -?\w", block.source, re.MULTILINE)
    else:
        assert block.language == "mermaid", f"a block of the language {block.language!r}"
        _draw(block)


def _draw(block: Block) -> None:
    """The site shows what the diagram says: each state, and what each arrow means."""
    pytest.importorskip("mkdocs")
    from docs_hooks import draw, edges_of

    drawn = draw(block.source)
    edges = edges_of(block.source)
    assert len(edges) == block.source.count("-->")
    assert drawn.count("<li>") == len(edges)
    for state in {state for edge in edges for state in edge[:2]}:
        assert f">{state}</text>" in drawn


def test_a_diagram_that_cannot_be_drawn() -> None:
    pytest.importorskip("mkdocs")
    from mkdocs.exceptions import PluginError

    from docs_hooks import draw

    with pytest.raises(PluginError, match="cannot draw the line '    note right of a'"):
        draw("stateDiagram-v2\n    [*] --> a\n    note right of a\n")


@pytest.mark.parametrize("block", _with("part of", "same as"), ids=_ids)
def test_quoted_from_a_file(block: Block) -> None:
    for kind in ("part of", "same as"):
        if kind in block.marks:
            assert block.source in (ROOT / block.marks[kind]).read_text(encoding="utf-8")


def _compile(block: Block) -> CodeType:
    source = "\n" * block.line + block.source
    code: CodeType = compile(source, block.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return code


@pytest.mark.parametrize("page", _python_pages())
def test_python(
    page: str, etcd_server: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page one after the other, as a reader would enter them."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}

    async def run() -> None:
        for block in BLOCKS:
            if block.page == page and _runs_as_python(block):
                here = block._replace(
                    source=block.source.replace(CLUSTER, etcd_server.get_endpoint())
                )
                result = eval(_compile(here), namespace)
                if inspect.isawaitable(result):
                    await result

    asyncio.run(run())


@pytest.mark.skipif(not has_etcdctl(), reason="there is no etcdctl beside this etcd")
@pytest.mark.parametrize(
    "page",
    sorted(
        {block.page for block in _with("runs as a test") if block.language in SHELL} - RUN_ELSEWHERE
    ),
)
def test_shell(page: str, etcd_server: EtcdServer, tmp_path: Path) -> None:
    source = "\n".join(block.source for block in _with("runs as a test") if block.page == page)
    where = {"ETCDCTL_ENDPOINTS": etcd_server.get_endpoint()}
    ran = subprocess.run(
        ["bash", "-euxc", source],
        cwd=tmp_path,
        env=environment(programs(tmp_path)) | where,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    made = Terminals(tmp_path)
    yield made
    made.end()


@pytest.mark.slow(20)
@pytest.mark.needs_etcd
@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", list(dict.fromkeys(block.page for block in _with("terminal"))))
def test_followed_by_hand(page: str, terminals: Terminals) -> None:
    for block in BLOCKS:
        if block.page == page and "file" in block.marks:
            terminals.save(block.marks["file"], block.source)
    for block in BLOCKS:
        if block.page == page and "terminal" in block.marks:
            terminals.type(block)
