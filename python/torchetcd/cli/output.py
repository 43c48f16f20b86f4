"""What commands print: tables, sentences and JSON; colours in a terminal only."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from torchetcd._phrasing import plain

# Lines into a pipe are as long as what they say: nobody counts columns there, and `grep` wants them whole.
_PIPE_WIDTH = 1000
#: The version of all JSON that is printed. Fields may be added without a new one.
JSON_VERSION = 1


def console() -> Console:
    """Make the console for standard output.

    rich leaves colours out with NO_COLOR and on a dumb terminal; over a pipe there never are any,
    whatever FORCE_COLOR and the like say.
    """
    terminal = sys.stdout.isatty()
    return Console(
        width=None if terminal else _PIPE_WIDTH,
        force_terminal=terminal,
        color_system="auto" if terminal else None,
        highlight=False,
        markup=False,
        emoji=False,
    )


def emit(*parts: RenderableType) -> None:
    """Print parts, one below the other."""
    out = console()
    if out.is_terminal:
        for part in parts:
            out.print(part)
        return
    with out.capture() as captured:
        for part in parts:
            # A sentence stays in one line, however long it is.
            out.print(part, soft_wrap=isinstance(part, Text))
    for line in captured.get().splitlines():
        print(line.rstrip())


def table(*headers: str, right: Iterable[str] = ()) -> Table:
    """Make a table without lines, which stays whole when it is copied."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for header in headers:
        made.add_column(
            header,
            justify="right" if header in right else "left",
            overflow="fold",
            no_wrap=header in right,
        )
    return made


def cell(value: object, style: str = "") -> Text:
    """Make a cell, in which nothing that was read from etcd is markup or a code for the terminal."""
    return Text("-" if value is None or value == "" else plain(value), style=style)


def heading(text: str) -> Text:
    """Make a line above a table."""
    return Text(text, style="bold")


def write_json(value: dict[str, Any]) -> None:
    """Print one document."""
    print(json.dumps({"version": JSON_VERSION, **value}, indent=2))


def write_json_line(value: dict[str, Any]) -> None:
    """Print one document in one line, at once."""
    print(json.dumps({"version": JSON_VERSION, **value}, separators=(",", ":")), flush=True)


def document(value: Any) -> Any:
    """Make of a dataclass what JSON can hold."""
    return dataclasses.asdict(value)


def documents(values: Sequence[Any]) -> list[Any]:
    """Make of dataclasses what JSON can hold."""
    return [document(value) for value in values]
