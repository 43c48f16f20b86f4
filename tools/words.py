"""Find phrases that a native reader stumbles over, in the documentation and in the texts of the code.

    python tools/words.py [FILES]    # without FILES: the documentation and the code, but no tests

Of Markdown, prose is read: no code, links or comments. Of Python and Rust, comments, docstrings and other
strings are read. A phrase that is meant stays if its line ends with `<!-- words: why it stays -->`, in code
with a comment that begins with `words:`.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Phrase(NamedTuple):
    """What is not to be written, and why."""

    pattern: str
    reason: str
    example: str


PHRASES = (
    Phrase(
        r"(?:^|(?<=[.;:|*-] ))(?-i:Who) (?!can\b|may\b|is\b|are\b|has\b|must\b)[^.?|]*[.|]",
        '"Who" begins a question. Write "whoever", "a node that" or "clients that".',
        "Who loses its lease joins again.",
    ),
    Phrase(
        r"\b(?:for|from|of|by|with|than) who\b",
        'Write "for those who" or name the reader.',
        "This is for who has an etcd.",
    ),
    Phrase(
        r"\b(?:that|which) (?:is|are|was|were) (?:not )?there\b",
        'Write "existing", "missing" or "present".',
        "a file that is not there",
    ),
    Phrase(r"\bof before\b", 'Write "previous" or "earlier".', "the run of before"),
    Phrase(
        r"\b(?:give|gives|gave|given|giving) (?:\w+ ){1,4}back\b|\b(?:gives?|gave|given|giving) back\b",
        "Leases are released or revoked; functions return.",
        "the agent gives its lease back",
    ),
    Phrase(
        r"\bmend(?:s|ed|ing)?\b",
        "Programs are fixed, data is repaired.",
        "The bug is mended.",
    ),
    Phrase(
        r"\banew\b",
        'Write "again", or a verb with "re-": reconnect, reread, restart.',
        "The files are read anew.",
    ),
    Phrase(r"\bbut for\b", 'Write "except for".', "as it is, but for slashes"),
    Phrase(
        r"\b(?:that|which|value|one) is none\b|\bor none any\b",
        'Write "is not valid", or "no ... at all".',
        "an endpoint that is none",
    ),
    Phrase(
        r"\b(?:tells?|told|telling) of\b",
        'Write "report" or "notify".',
        "The watch tells of it.",
    ),
    Phrase(
        r"\b(?:befall(?:s|en)?|befell|good-bye|in vain|slip of the pen)\b",
        "Not a word of technical prose.",
        "whatever befalls the agents",
    ),
    Phrase(
        r"\b(?:cannot|can not|could not) be helped\b",
        "Say what remains and what to do.",
        "What cannot be helped from here",
    ),
    Phrase(
        r"\btak(?:e|es|en|ing) (?!(?:over|part|place|care|effect|time|turns?|long|longer|into|off|up)\b)"
        r"[^.|]{0,40}\bfor (?:lost|dead|gone|granted a)\b",
        'Write "is considered lost".',
        "nodes may be taken for lost",
    ),
    Phrase(
        r"\b(?:is|are|be|was|were) (?:not )?let in\b|\blets? \w+ in\b",
        "Nodes are admitted, clients are accepted.",
        "nodes of this name are not let in",
    ),
    Phrase(
        r"\b(?:is|are) to be (?=\w+ed\b)",
        'Write "must be", or an imperative.',
        "what is to be watched",
    ),
    Phrase(
        r"\b(?:come|comes|came) too late\b",
        'Write "arrives late" or "joins late".',
        "a node that came too late",
    ),
    Phrase(
        r"\b(?:as ever|as they like|all the same)\b",
        "Idiom. Say what happens.",
        "MASTER_ADDR is set as ever.",
    ),
    Phrase(
        r"\b(?:that|which|it|this|node) (?:is|are) no (?:certificate|file|garbage|guess|loopback"
        r"|member|name|number|part|program|range|record|UTF-8)\b",
        'Write "is not a".',
        "a value that is no record",
    ),
    Phrase(
        r"\b(?:is|are|was|were) no more(?=[.,;:]|$)",
        'Write "no longer exists".',
        "The old run is no more.",
    ),
    Phrase(
        r"\b(?:will do|do without|does without)\b",
        'Idiom. Write "is enough" or "does not need".',
        "Any other etcd will do.",
    ),
)


class Finding(NamedTuple):
    """A phrase at a place."""

    file: Path
    line: int
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text!r}: {self.reason}"


#: Folders of code, and its kinds. Tests quote phrases, and this file lists them.
CODE = (
    ("python", "*.py"),
    ("src", "*.rs"),
    ("build_backend", "*.py"),
    ("packaging", "*.py"),
    ("tools", "*.py"),
    ("benches", "*.py"),
    ("examples", "*.py"),
)
#: What `tokenize` calls a text. Parts of f-strings are tokens of their own from Python 3.12 on.
PYTHON_TEXTS = {
    tokenize.COMMENT,
    tokenize.STRING,
    getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING),
}
#: A comment or a string of Rust. A character is matched first: it may be a quote.
RUST_TEXT = re.compile(
    r"""(?P<skip>b?'(?:\\[^\n]+?|[^\\'\n])')|//[^\n]*|/\*.*?\*/"""
    r"""|r(?P<hashes>\#*)".*?"(?P=hashes)|"(?:\\.|[^"\\])*\"""",
    re.DOTALL,
)
#: What begins a comment or a string, what indents its further lines, and what ends it.
AROUND = re.compile(
    r"""^\s*(?:\#:?|//[/!]?|/\*|\*/|[bfrBFR]{0,2}\#*(?:\"{3}|'{3}|"|'))?\s?|(?:\"{1,3}|'{1,3}|\\)\#*$"""
)


def visible(line: str) -> str:
    """Put a word in place of what is code within prose, so that the phrases around it stay apart."""
    return re.sub(r"`[^`]*`", "CODE", line)


def python_texts(source: str) -> Iterator[tuple[int, str]]:
    """Give the comments and strings of Python, each with its first line."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in PYTHON_TEXTS:
            yield token.start[0], token.string


def rust_texts(source: str) -> Iterator[tuple[int, str]]:
    """Give the comments and strings of Rust, each with its first line."""
    for found in RUST_TEXT.finditer(source):
        if found["skip"] is None:
            yield source.count("\n", 0, found.start()) + 1, found[0]


def code_prose(texts: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Give the lines of comments and strings. Several in one line of code are kept apart."""
    lines: dict[int, list[str]] = {}
    meant = set()
    for first, text in texts:
        for number, line in enumerate(text.splitlines(), first):
            if re.match(r"(?:#|//) words: ", line):
                meant.add(number)
            lines.setdefault(number, []).append(AROUND.sub("", line))
    for number in sorted(lines.keys() - meant):
        yield number, visible(re.sub(r"\{[^{}]*\}", "CODE", " | ".join(lines[number])))


def markdown_prose(text: str) -> Iterator[tuple[int, str]]:
    """Give the lines that are prose, without code, targets of links and comments."""
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and (not fence or line.strip() == fence):
            fence = "" if fence else mark[1]
        elif not fence and "<!-- words: " not in line:
            without_comments = re.sub(r"<!--.*?-->", "", line)
            yield number, re.sub(r"\]\([^)]*\)", "]", visible(without_comments))


def prose(text: str, file: Path) -> Iterator[tuple[int, str]]:
    """Give the numbered lines of prose in a text of the kind that the file's name says."""
    if file.suffix == ".py":
        return code_prose(python_texts(text))
    if file.suffix == ".rs":
        return code_prose(rust_texts(text))
    return markdown_prose(text)


def check(text: str, file: Path) -> Iterator[Finding]:
    """Find the phrases of one text, also where they go over the end of a line."""
    lines = list(prose(text, file))
    for position, (number, line) in enumerate(lines):
        following = lines[position + 1] if position + 1 < len(lines) else (0, "")
        # Rows of a table end where they end.
        joined = line
        if following[0] == number + 1 and not following[1].lstrip().startswith(("|", "-", "#")):
            joined = f"{line.rstrip()} {following[1].strip()}"
        for phrase in PHRASES:
            for found in re.finditer(phrase.pattern, joined, re.IGNORECASE):
                if found.start() < len(line):
                    yield Finding(file, number, found[0].strip(), phrase.reason)


def files_of(names: Iterable[str]) -> list[Path]:
    """Give the files that were named, or the documentation and the code of the package."""
    if named := [Path(name) for name in names]:
        return named
    documentation = [
        *ROOT.glob("*.md"),
        ROOT / "examples/README.md",
        ROOT / "packaging/etcd/README.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
    code = [found for folder, kind in CODE for found in (ROOT / folder).rglob(kind)]
    return [*sorted(documentation), *sorted(set(code) - {Path(__file__).resolve()})]


def main() -> int:
    """Print what was found; 1 if anything was."""
    found = [
        finding
        for file in files_of(sys.argv[1:])
        for finding in check(file.read_text(encoding="utf-8"), file)
    ]
    for finding in found:
        print(finding)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
