"""The commands that only look: `runs`, `show`, `why`."""

from __future__ import annotations

import asyncio

import click
from rich.text import Text

from torchetcd._missing import Departed, departed, not_come, still_needed
from torchetcd._sequences import expand
from torchetcd._why import explain
from torchetcd.aio import Run, RunNotFoundError
from torchetcd.cli._exits import CLOSED, ERROR, FINDINGS, NOT_FOUND, OK, Failure
from torchetcd.cli._loop import wait
from torchetcd.cli._options import Target, run_argument, with_target
from torchetcd.cli._output import document, documents, emit, write_json
from torchetcd.cli._render import details, lost_members, table_of_runs
from torchetcd.etcd import EtcdException

# etcd's history may be long, and somebody waits for the paragraph.
_HISTORY_S = 3.0


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
    else:
        print(f"There are no runs below {target.prefix}.")
    return OK


@click.command(short_help="Show a run: nodes, what is needed, earlier rounds.")
@run_argument
@with_target
def show(target: Target, run: str) -> int:
    """Show a run: members, spares, who waits, what is needed, earlier rounds."""
    found = wait(describe(target, run, leases=True))
    if target.json:
        write_json({"run": document(found)})
    else:
        emit(details(found))
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
    found, others, left = wait(_with_context(target, run))
    code = _code(found)
    text = explain(found if found is not None else nothing(target, run), others, left, expect)
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
                "why": text,
            }
        )
    else:
        emit(Text(text))
    return code


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


async def _with_context(target: Target, run: str) -> tuple[Run | None, list[str], list[Departed]]:
    """Ask for a run; for the others where there is none, and for who has left where nodes lack."""
    async with target.client() as client:
        try:
            found = await client.describe(run, prefix=target.prefix)
        except RunNotFoundError:
            others = await client.list_runs(prefix=target.prefix)
            return None, [other.id for other in others], []
        if found.state != "open" or still_needed(found) == 0:
            return found, [], []
        try:
            story = await asyncio.wait_for(
                client.timeline(run, prefix=target.prefix), min(_HISTORY_S, target.timeout)
            )
        except (RunNotFoundError, EtcdException, asyncio.TimeoutError):
            # The paragraph is worth having without it.
            return found, [], []
        return found, [], departed(story)


def nothing(target: Target, run: str) -> Run:
    """Make the run of which nothing is there."""
    return Run(
        id=run,
        prefix=target.prefix,
        revision=0,
        state="none",
        problem=None,
        round=0,
        world=None,
        min_nodes=None,
        max_nodes=None,
        joined=(),
        members=(),
        waiting=(),
        spares=(),
        missing=(),
        coordinator=None,
        last_call_left_s=None,
        opened_at=None,
        opened_by=None,
        why=None,
        completed_at=None,
        closed=None,
        loss=None,
        master_addr=None,
        master_port=None,
        rounds=(),
        denied=(),
        observed_at=0.0,
    )


def _code(run: Run | None) -> int:
    if run is None:
        return NOT_FOUND
    if run.state == "final":
        return FINDINGS if lost_members(run) else OK
    codes = {"open": FINDINGS, "closed": CLOSED, "none": FINDINGS, "unreadable": ERROR}
    return codes[run.state]
