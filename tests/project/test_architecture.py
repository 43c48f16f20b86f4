"""The paths that docs/architecture.md and CONTRIBUTING.md name exist."""

from __future__ import annotations

import re

import pytest

from support import ROOT

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TABLE = ARCHITECTURE.partition("## Where to change what\n")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (?!I want|---)(.+?) \| (.+?) \| (.+?) \|$", TABLE, re.MULTILINE)
PATH = re.compile(r"`([\w./-]+/[\w./-]*|[\w-]+\.(?:py|rs|md|toml))`")


def test_it_is_a_table_of_many_changes() -> None:
    assert len(ROWS) >= 20
    assert len({change for change, _, _ in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("change", "code", "tests"), ROWS, ids=[row[0] for row in ROWS])
def test_code_and_tests_are_there(change: str, code: str, tests: str) -> None:
    for cell in (code, tests):
        paths = PATH.findall(cell)
        assert paths, f"{change}: {cell} names no path"
        for path in paths:
            assert (ROOT / path).exists(), f"{change}: {path}"


def test_the_drawing_names_folders_that_are_there() -> None:
    drawing = (ROOT / "docs" / "img" / "layers.svg").read_text(encoding="utf-8")
    paths = re.findall(r">((?:src|python)/[\w./]+)<", drawing)
    assert len(paths) > 4
    for path in paths:
        assert (ROOT / path).exists(), path


def test_contributing_names_paths_that_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in PATH.findall(text):
        if not path.startswith("target/"):
            assert (ROOT / path).exists(), path
