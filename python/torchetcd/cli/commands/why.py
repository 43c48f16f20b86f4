"""The commands that only look: `runs`, `show`, `why`."""

from __future__ import annotations

import click
from rich.text import Text

from torchetcd.aio import Run, RunNotFoundError, explain
from torchetcd.aio._circumstances import Known, ask, nothing
from torchetcd.aio._run_keys import RunKeys
from torchetcd.cli.exit_codes import CLOSED, ERROR, FINDINGS, NOT_FOUND, OK, Failure
from torchetcd.cli.interruptible import wait
from torchetcd.cli.options import run_argument, with_target
from torchetcd.cli.output import document, documents, emit, write_json
from torchetcd.cli.target import Target
from torchetcd.cli.views.run_tables import details, lost_members, table_of_runs
from torchetcd.diagnosis._absence import not_come, still_needed
from torchetcd.diagnosis._host_lists import expand
from torchetcd.diagnosis._node_names import everybody
from torchetcd.diagnosis._split_jobs import apart_from, said_of_all

# Each node's lease is one call to etcd.
_LEASES = 64


@click.command()
@with_target
def runs(target: Target) -> int:
    """List the runs on this etcd."""

    async def ask() -> list[Run]:
        async with target.client() as client:
            return await client.list_runs(prefix=target.prefix)

    found = sorted(wait(ask()), key=lambda run: run.id)
    if target.json:
        write_json({"runs": documents(found)})
    elif found:
        emit(table_of_runs(found))
        for hint in said_of_all(found):
            emit(Text(), Text(hint, style="yellow"))
    else:
        print(f"There are no runs below {target.prefix}.")
    return OK


@click.command(short_help="Show a run: nodes, what is needed, earlier rounds.")
@run_argument
@click.option(
    "--leases",
    is_flag=True,
    help=f"Ask for what each node's lease has left, also of more than {_LEASES} nodes: one call each.",
)
@with_target
def show(target: Target, run: str, *, leases: bool) -> int:
    """Show a run: members, spares, who waits, what is needed, earlier rounds."""
    found = wait(describe(target, run))
    nodes = len(everybody(found))
    if nodes and (leases or nodes <= _LEASES):
        found = wait(describe(target, run, leases=True))
    if target.json:
        write_json({"run": document(found)})
    else:
        emit(details(found))
        if nodes > _LEASES and not leases:
            emit(Text(), Text(f"--leases shows what the leases of these {nodes} nodes have left."))
    return OK


def _names(_context: click.Context, _option: click.Parameter, value: str | None) -> list[str]:
    try:
        return expand(value) if value is not None else []
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None


@click.command(short_help="Say why a barrier is not complete, and who is missing.")
@run_argument
@click.option(
    "--expect",
    metavar="NAMES",
    callback=_names,
    help="Who should be there, by host, node_id or infra rank: worker-[0-3], or Slurm's nodelist.",
)
@with_target
def why(target: Target, run: str, expect: list[str]) -> int:
    """Say in one paragraph why a run's barrier is not complete, and who is missing."""
    known = wait(_ask(target, run))
    found = known.run
    code = _code(found)
    shown = found if found is not None else nothing(run, target.prefix)
    text = explain(shown, known.others, known.timeline, expect)
    if target.json:
        write_json(
            {
                "run": run,
                "state": found.state if found is not None else "none",
                "complete": code == OK,
                "result": found.closed.result if found is not None and found.closed else None,
                "needed": still_needed(found) if found is not None else None,
                "missing": documents(found.missing) if found is not None else [],
                "not_come": not_come(found, expect) if found is not None else expect,
                "maybe_same_job": [other.id for other in apart_from(shown, known.others)],
                "why": text,
            }
        )
    else:
        emit(Text(text))
    return code


async def _ask(target: Target, run: str) -> Known:
    async with target.client() as client:
        return await ask(client.raw, RunKeys.of(run, target.prefix), target.timeout)


async def describe(target: Target, run: str, *, leases: bool = False) -> Run:
    """Ask for a run.

    Raises:
        Failure: if there is none.
    """
    async with target.client() as client:
        try:
            return await client.describe(run, prefix=target.prefix, leases=leases)
        except RunNotFoundError:
            raise not_found(target, run) from None


def not_found(target: Target, run: str) -> Failure:
    """Say that there is no such run."""
    message = f"There is no run '{run}' below {target.prefix}: see `torchetcd runs`."
    return Failure(message, NOT_FOUND)


def _code(run: Run | None) -> int:
    if run is None:
        return NOT_FOUND
    if run.state == "final":
        return FINDINGS if lost_members(run) else OK
    codes = {"open": FINDINGS, "closed": CLOSED, "none": FINDINGS, "unreadable": ERROR}
    return codes[run.state]
