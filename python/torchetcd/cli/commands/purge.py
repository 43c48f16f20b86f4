"""The command `purge`."""

from __future__ import annotations

import click

from torchetcd._phrasing import count, plain
from torchetcd.cli.exit_codes import OK
from torchetcd.cli.options import run_argument, with_target
from torchetcd.cli.output import write_json
from torchetcd.cli.several_runs import (
    ask,
    do,
    yes_option,
)
from torchetcd.cli.target import Target


@click.command()
@run_argument
@click.option("--force", is_flag=True, help="Purge also while nodes are there. They fail then.")
@yes_option
@with_target
def purge(target: Target, run: str, *, force: bool, yes: bool) -> int:
    """Delete all that etcd has of a run."""
    ask(target, f"Delete all that etcd has of run '{plain(run)}'?", yes=yes)
    deleted = do(target, run, "purge", force=force)
    if target.json:
        write_json({"run": run, "deleted": deleted})
    else:
        number = deleted if isinstance(deleted, int) and not isinstance(deleted, bool) else None
        what = "" if number is None else f" ({count(number, 'key')})"
        print(f"Nothing of run '{plain(run)}' is left in etcd{what}.")
    return OK
