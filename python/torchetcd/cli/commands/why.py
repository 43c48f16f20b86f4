"""The command `why`."""

from __future__ import annotations

import click
from rich.text import Text

from torchetcd.aio import Circumstances, Run
from torchetcd.cli.exit_codes import CLOSED, ERROR, FINDINGS, NOT_FOUND, OK
from torchetcd.cli.interruptible import wait
from torchetcd.cli.lookups import check_majority
from torchetcd.cli.options import run_argument, with_target
from torchetcd.cli.output import documents, emit, write_json
from torchetcd.cli.target import Target
from torchetcd.cli.views.run_tables import lost_members
from torchetcd.diagnosis import apart_from, expand_names, explain, missing


def _names(_context: click.Context, _option: click.Parameter, value: str | None) -> list[str]:
    try:
        return expand_names(value) if value is not None else []
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None


@click.command(short_help="Say why a barrier is not complete, and who is missing.")
@run_argument
@click.option(
    "--expect",
    metavar="NAMES",
    callback=_names,
    help="Nodes that should join, by host, node_id or infra rank: worker-[0-3], or Slurm's nodelist.",
)
@with_target
def why(target: Target, run: str, expect: list[str]) -> int:
    """Say in one paragraph why a run's barrier is not complete, and who is missing."""
    check_majority(target)
    known = wait(_ask(target, run))
    found = known.run
    code = _code(found)
    shown = found or Run.nothing(run, target.prefix)
    text = explain(shown, known.others, known.timeline, expect)
    if target.json:
        lacking = missing(shown, known.timeline, expect)
        write_json(
            {
                "run": run,
                "state": found.state if found is not None else "none",
                "complete": code == OK,
                "result": found.closed.result if found is not None and found.closed else None,
                "needed": lacking.needed,
                "missing": documents(lacking.members),
                "not_come": list(lacking.not_come),
                "maybe_same_job": [other.id for other in apart_from(shown, known.others)],
                "why": text,
            }
        )
    else:
        emit(Text(text))
    return code


async def _ask(target: Target, run: str) -> Circumstances:
    async with target.client() as client:
        return await client.circumstances(run, target.prefix)


def _code(run: Run | None) -> int:
    if run is None:
        return NOT_FOUND
    if run.state == "final":
        return FINDINGS if lost_members(run) else OK
    codes = {"open": FINDINGS, "closed": CLOSED, "none": FINDINGS, "unreadable": ERROR}
    return codes[run.state]
