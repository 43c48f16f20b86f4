"""Write the table of parameters into docs/reference/parameters.md; with --print, only show it."""

from __future__ import annotations

import sys
from pathlib import Path

from torchetcd._params import PARAMETERS

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "parameters.md"
BEGIN, END = "<!-- parameters -->\n", "<!-- /parameters -->"


def table() -> str:
    """Give the rows of Markdown, one for each parameter."""
    rows = ["| parameter | default | meaning |", "|---|---|---|"]
    for parameter in PARAMETERS:
        names = " / ".join(f"`{name}`" for name in parameter.names)
        default = "" if parameter.default is None else f"`{parameter.default}`"
        rows.append(f"| {names} | {default} | {parameter.meaning} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Do what the command line says."""
    if "--print" in sys.argv[1:]:
        sys.stdout.write(table())
        return
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + table() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
