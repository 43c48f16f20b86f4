"""The command `show`."""

from __future__ import annotations

import click
from rich.text import Text

from torchetcd.cli.exit_codes import OK
from torchetcd.cli.interruptible import wait
from torchetcd.cli.lookups import describe, see_quorum
from torchetcd.cli.options import run_argument, with_target
from torchetcd.cli.output import document, emit, write_json
from torchetcd.cli.target import Target
from torchetcd.cli.views.quorum_tables import quorum_document, quorum_table
from torchetcd.cli.views.run_tables import details
from torchetcd.diagnosis import present_nodes

# Each node's lease is one call to etcd.
_LEASES = 64


@click.command(short_help="Show a run: nodes, what is needed, earlier rounds.")
@run_argument
@click.option(
    "--leases",
    is_flag=True,
    help=f"Show how long each node's lease still lives, also of more than {_LEASES} nodes: one call each.",
)
@with_target
def show(target: Target, run: str, *, leases: bool) -> int:
    """Show a run: members, spares, who waits, what is needed, earlier rounds; the quorum of job://..."""
    found = wait(describe(target, run))
    nodes = len(present_nodes(found))
    if nodes and (leases or nodes <= _LEASES):
        found = wait(describe(target, run, leases=True))
    quorum = see_quorum(target)
    if target.json:
        told = {"run": document(found)}
        if quorum is not None:
            told["quorum"] = quorum_document(quorum)
        write_json(told)
    else:
        emit(details(found))
        if quorum is not None:
            emit(quorum_table(quorum))
        if nodes > _LEASES and not leases:
            emit(Text(), Text(f"--leases shows what the leases of these {nodes} nodes have left."))
    return OK
