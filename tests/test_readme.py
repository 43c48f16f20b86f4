"""The README's Python examples run as they stand."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(
    r"<!-- runs as a test -->\n```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL
)


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("source", EXAMPLES)
def test_example(source):
    exec(compile(source, str(README), "exec"), {})
