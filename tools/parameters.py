"""Write the tables of docs/reference/parameters.md; with --print, only show them."""

from __future__ import annotations

import sys
from pathlib import Path

from torchetcd._environment import VARIABLES
from torchetcd._rendezvous.options import PARAMETERS

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "parameters.md"


def parameters() -> str:
    """Give the rows of Markdown, one for each parameter."""
    rows = ["| parameter | default | meaning |", "|---|---|---|"]
    for parameter in PARAMETERS:
        names = " / ".join(f"`{name}`" for name in parameter.names)
        default = "" if parameter.default is None else f"`{parameter.default}`"
        variable = f" Or `{parameter.variable.name}`." if parameter.variable else ""
        rows.append(f"| {names} | {default} | {parameter.meaning}{variable} |")
    return "\n".join(rows) + "\n"


def variables() -> str:
    """Give the rows of Markdown, one for each environment variable."""
    rows = ["| variable | read by | meaning |", "|---|---|---|"]
    rows += [f"| `{it.name}` | {it.readers} | {it.meaning} |" for it in VARIABLES]
    return "\n".join(rows) + "\n"


TABLES = {"parameters": parameters, "variables": variables}


def main() -> None:
    """Do what the command line says."""
    if "--print" in sys.argv[1:]:
        sys.stdout.write("".join(table() for table in TABLES.values()))
        return
    page = PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        before, rest = page.split(f"<!-- {name} -->\n")
        _, after = rest.split(f"<!-- /{name} -->")
        page = f"{before}<!-- {name} -->\n{table()}<!-- /{name} -->{after}"
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
