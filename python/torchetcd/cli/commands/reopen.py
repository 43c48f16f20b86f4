"""The command `reopen`."""

from __future__ import annotations

import click

from torchetcd._phrasing import plain
from torchetcd.cli.exit_codes import OK
from torchetcd.cli.options import run_argument, with_target
from torchetcd.cli.output import write_json
from torchetcd.cli.several_runs import (
    by_option,
    do,
    reason_option,
)
from torchetcd.cli.target import Target


@click.command()
@run_argument
@reason_option
@by_option
@with_target
def reopen(target: Target, run: str, reason: str, by: str | None) -> int:
    """Take the close of a run back: nodes can join its next round."""
    changed = do(target, run, "reopen_run", reason=reason, by=by)
    if target.json:
        write_json({"run": run, "changed": changed})
    elif changed:
        print(f"Run '{plain(run)}' is open: nodes can join.")
    else:
        print(f"Run '{plain(run)}' was not closed: nothing was changed.")
    return OK
