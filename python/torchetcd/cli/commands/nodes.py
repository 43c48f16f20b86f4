"""The command `nodes`: who is where, over all runs."""

from __future__ import annotations

from typing import NamedTuple

import click
from rich.table import Table

from torchetcd._phrasing import ago, listed, plain
from torchetcd.aio import Node, Run
from torchetcd.cli.exit_codes import OK
from torchetcd.cli.interruptible import wait
from torchetcd.cli.lookups import list_runs
from torchetcd.cli.options import with_target
from torchetcd.cli.output import cell, document, emit, table, write_json
from torchetcd.cli.target import Target
from torchetcd.diagnosis import close_names, nodes_called, present_nodes

_WHERE = {
    "joined": "in the barrier",
    "member": "member",
    "waiting": "waits",
    "spare": "spare",
    "missing": "not back yet",
}


class _There(NamedTuple):
    run: Run
    node: Node


@click.command()
@click.option(
    "--host",
    metavar="NODE",
    help="Only this host, with or without its domain; or a node_id, HOST:PID or id.",
)
@with_target
def nodes(target: Target, host: str | None) -> int:
    """List the nodes of all runs, or the runs that a host is in."""
    runs = wait(list_runs(target))
    there = [_There(run, node) for run in runs for node in _meant(run, host)]
    there.sort(key=lambda one: (one.node.host, one.run.id, one.node.pid))
    if target.json:
        write_json({"nodes": [{"run": one.run.id, **document(one.node)} for one in there]})
    elif there:
        emit(_table(there))
    else:
        print(_nobody(target, host, [node for run in runs for node in present_nodes(run)]))
    return OK


def _meant(run: Run, host: str | None) -> list[Node]:
    nodes = present_nodes(run)
    return (
        nodes
        if host is None
        else [node for those in nodes_called(nodes, host).values() for node in those]
    )


def _table(found: list[_There]) -> Table:
    made = table("HOST", "PID", "NODE ID", "RUN", "RANK", "WHERE", "SINCE", right=("PID", "RANK"))
    for run, node in found:
        made.add_row(
            cell(node.host),
            cell(node.pid),
            cell(node.node_id),
            cell(run.id),
            cell(node.rank),
            cell(_WHERE[node.state]),
            cell(ago(node.since, run.observed_at)),
        )
    return made


def _nobody(target: Target, host: str | None, there: list[Node]) -> str:
    if host is None:
        return f"There is no node in any run below {target.prefix}."
    close = close_names(there, host)
    hint = f" Close to it: {listed(close, 'or')}." if close else ""
    return f"No node of a run below {target.prefix} is called {plain(host)}.{hint}"
