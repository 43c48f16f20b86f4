"""The command `close`."""

from __future__ import annotations

from typing import Any

import click

from torchetcd._phrasing import plain
from torchetcd.aio import Client
from torchetcd.cli.exit_codes import OK
from torchetcd.cli.options import optional_run, with_target
from torchetcd.cli.output import write_json
from torchetcd.cli.several_runs import (
    Which,
    ask,
    by_option,
    choose,
    do,
    do_all,
    failures,
    reason_option,
    some_runs,
    which_options,
    yes_option,
)
from torchetcd.cli.target import Target


@click.command(short_help="Close a run for all its nodes.")
@optional_run
@which_options
@reason_option
@by_option
@yes_option
@with_target
def close(  # noqa: PLR0913 - options of a command
    target: Target,
    run: str | None,
    reason: str,
    by: str | None,
    match: str | None,
    *,
    every: bool,
    yes: bool,
) -> int:
    """Close a run: every node in it, and every one that joins, ends with RendezvousClosedError.

    With --all or --match several runs are closed.
    """
    which = Which(every, match)
    if bool(which) == (run is not None):
        message = "Give one of RUN, --all and --match."
        raise click.UsageError(message)
    if run is None:
        return _close_all(target, which, reason, by, yes=yes)
    ask(target, f"Close run '{plain(run)}' for all its nodes?", yes=yes)
    changed = do(target, run, "close_run", reason=reason, by=by)
    if target.json:
        write_json({"run": run, "changed": changed})
    else:
        print(_closed(run, changed=changed))
    return OK


def _closed(run: str, *, changed: bool) -> str:
    if changed:
        return f"Run '{plain(run)}' is closed."
    return f"Run '{plain(run)}' was closed already: nothing was changed."


def _close_all(target: Target, which: Which, reason: str, by: str | None, *, yes: bool) -> int:
    found = choose(target, which)
    to_close = [run for run in found if run.state in ("open", "final")]
    if to_close:
        ask(target, f"Close {some_runs(to_close)} for all their nodes?", yes=yes)

    async def call(client: Client, run: str) -> Any:
        return await client.close_run(run, reason, by, target.prefix)

    outcomes = do_all(target, [run.id for run in to_close], call)
    if target.json:
        told = [
            {"run": outcome.run, "changed": bool(outcome.result), "error": outcome.error}
            for outcome in outcomes
        ]
        write_json({"runs": told})
    elif not to_close:
        print("None of these runs is open: nothing was changed.")
    else:
        for outcome in outcomes:
            if outcome.error is None:
                print(_closed(outcome.run, changed=outcome.result))
    return failures(outcomes)
