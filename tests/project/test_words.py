"""The word check of `make verify`: what it finds, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

import words

FILE = Path("page.md")


def found(text: str) -> list[words.Finding]:
    return list(words.check(text, FILE))


@pytest.mark.parametrize("phrase", words.PHRASES, ids=lambda phrase: phrase.example)
def test_each_phrase_is_found(phrase: words.Phrase) -> None:
    findings = found(f"A line.\n\nFirst this. {phrase.example}\n")
    assert [(one.line, one.reason) for one in findings] == [(3, phrase.reason)]


def test_a_phrase_over_the_end_of_a_line() -> None:
    (finding,) = found("The file of a run that is\nnot there is an error.\n")
    assert finding.line == 1


@pytest.mark.parametrize(
    "text",
    [
        "```sh\nwho is of before\nanew\n```\n",
        "The option `anew` is code.\n",
        "See [this](of before.md).\n",
        "<!-- anew -->\n",
        "Nodes are read anew. <!-- words: it is a quotation -->\n",
        "| Who can do what | anybody |\n",
        "Who is missing? Ask etcd.\n",
        "A node that waits takes part in the next round.\n",
        "The time taken for a round is measured.\n",
    ],
)
def test_what_is_left_alone(text: str) -> None:
    assert not found(text)


@pytest.mark.parametrize(
    ("name", "code", "lines"),
    [
        ("part.py", '"""Read it anew."""\n\nanew = 1\n', [1]),
        ("part.py", 'say(\n    "A file which is "\n    f"not there: {anew}."\n)\n', [2]),
        ("part.py", "# For who\n# asks.\n\nx = 'anew'  # `anew`\n", [1, 4]),
        ("part.py", "x = 1  # of before\ny = 'anew'  # words: a value\n", [1]),
        ("part.rs", '//! Gives it back.\nlet anew = \'"\'; // "anew"\n', [1, 2]),
        (
            "part.rs",
            '/// It is\n/// read anew.\nsay("that is \\\n    there", r#""anew""#);\n',
            [2, 3, 4],
        ),
        ("part.rs", "/* The run\n * of before */ struct Anew<'a>(&'a str);\n", [2]),
    ],
)
def test_texts_of_code(name: str, code: str, lines: list[int]) -> None:
    """Comments and strings are read, names are not. A finding over two lines counts for the first."""
    assert [finding.line for finding in words.check(code, Path(name))] == lines


def test_the_documentation_and_the_code() -> None:
    findings = [
        str(finding)
        for file in words.files_of([])
        for finding in words.check(file.read_text(encoding="utf-8"), file)
    ]
    assert not findings
