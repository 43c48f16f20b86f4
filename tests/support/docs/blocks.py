"""The fenced code blocks of the documentation, and what is said of each for the tests.

HTML comments in the lines before a block, which no reader sees, say what a test does with it:

- `runs as a test`: run by a shell that has `etcdctl` and an etcd.
- `terminal: NAME` and `terminal: NAME; until: REGEX`: typed into a terminal of that name; all terminals
  of a page are there at once, in a folder of their own. Then the test waits until any of them shows it.
- `file: NAME`: saved there before the terminals are opened.
- `part of: PATH`: stands so in that file. `same as: PATH`: also in that page, whose test runs it.
- `not run: REASON`: only its syntax is checked.

Python without a mark is run, shell without one is checked command by command (`commands.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support import ROOT

_MARK = re.compile(r"<!-- (?P<kind>[a-z ]+?)(?:: (?P<rest>.*?))? -->$")
_KINDS = {"runs as a test", "terminal", "file", "part of", "same as", "not run"}


class Block(NamedTuple):
    """One fenced block."""

    page: str
    line: int
    language: str
    source: str
    marks: dict[str, str]

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """All pages of the site, and those beside it."""
    beside = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"]
    return [*beside, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: Path) -> Iterator[Block]:
    """Read the blocks of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    name, number = page.relative_to(ROOT).as_posix(), 0
    marks: dict[str, str] = {}
    while number < len(lines):
        line = lines[number]
        fence = re.match(r"( *)(```+|~~~+)(.*)$", line)
        if fence:
            indent, ticks, language = fence.groups()
            end = number + 1
            while lines[end].strip() != ticks:
                end += 1
            source = "\n".join(text.removeprefix(indent) for text in lines[number + 1 : end])
            yield Block(name, number + 1, language.strip(), f"{source}\n", marks)
            number = end
        found = _MARK.match(line)
        if found and found["kind"] in _KINDS:
            marks = marks | {found["kind"]: found["rest"] or ""}
        elif not line.startswith("<!--"):
            marks = {}
        number += 1


BLOCKS = [block for page in pages() for block in blocks_of(page)]
