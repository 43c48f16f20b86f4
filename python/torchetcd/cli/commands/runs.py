"""The command `runs`."""

from __future__ import annotations

import click
from rich.text import Text

from torchetcd.cli.exit_codes import OK
from torchetcd.cli.interruptible import wait
from torchetcd.cli.lookups import list_runs
from torchetcd.cli.options import with_target
from torchetcd.cli.output import documents, emit, write_json
from torchetcd.cli.target import Target
from torchetcd.cli.views.run_tables import table_of_runs
from torchetcd.diagnosis import said_of_all


@click.command()
@with_target
def runs(target: Target) -> int:
    """List the runs on this etcd."""
    found = sorted(wait(list_runs(target)), key=lambda run: run.id)
    if target.json:
        write_json({"runs": documents(found)})
    elif found:
        emit(table_of_runs(found))
        for hint in said_of_all(found):
            emit(Text(), Text(hint, style="yellow"))
    else:
        print(f"There are no runs below {target.prefix}.")
    return OK
