"""The commands that change a run: `close`, `reopen`, `evict`, `allow`, `purge`."""

from __future__ import annotations

import sys
from typing import Any

import click

from torchetcd._words import count, listed, plain
from torchetcd.aio import RunNotFoundError
from torchetcd.cli._exits import OK, Failure
from torchetcd.cli._look import not_found
from torchetcd.cli._loop import wait
from torchetcd.cli._options import Target, run_argument, with_target
from torchetcd.cli._output import documents, write_json
from torchetcd.cli._sentences import who

_REASON = click.option(
    "--reason", required=True, metavar="TEXT", help="Why, for whoever asks later."
)
_BY = click.option("--by", metavar="NAME", help="Who does it; user@host unless given.")
_YES = click.option(
    "-y", "--yes", is_flag=True, help="Do not ask. Needed where nobody can be asked."
)


def _ask(target: Target, question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone.

    Raises:
        click.UsageError: if nobody can be asked.
        click.Abort: if the answer is not yes.
    """
    if yes:
        return
    if target.json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        message = "Nobody can be asked here (no terminal, or --json): give --yes to go on."
        raise click.UsageError(message)
    if not click.confirm(question, err=True):
        message = "Nothing was changed."
        raise Failure(message)


def _do(target: Target, run: str, method: str, **arguments: Any) -> Any:
    """Call a method of the client."""

    async def call() -> Any:
        async with target.client() as client:
            return await getattr(client, method)(run, prefix=target.prefix, **arguments)

    try:
        return wait(call())
    except RunNotFoundError:
        raise not_found(target, run) from None


@click.command()
@run_argument
@_REASON
@_BY
@_YES
@with_target
def close(target: Target, run: str, reason: str, by: str | None, *, yes: bool) -> int:
    """Close a run: every node in it, and every one that joins, ends with RendezvousClosedError."""
    _ask(target, f"Close run '{plain(run)}' for all its nodes?", yes=yes)
    changed = _do(target, run, "close_run", reason=reason, by=by)
    if target.json:
        write_json({"run": run, "changed": changed})
    elif changed:
        print(f"Run '{plain(run)}' is closed.")
    else:
        print(f"Run '{plain(run)}' was closed already: nothing was changed.")
    return OK


@click.command()
@run_argument
@_REASON
@_BY
@with_target
def reopen(target: Target, run: str, reason: str, by: str | None) -> int:
    """Take the close of a run back: nodes can join its next round."""
    changed = _do(target, run, "reopen_run", reason=reason, by=by)
    if target.json:
        write_json({"run": run, "changed": changed})
    elif changed:
        print(f"Run '{plain(run)}' is open: nodes can join.")
    else:
        print(f"Run '{plain(run)}' was not closed: nothing was changed.")
    return OK


@click.command()
@run_argument
@click.argument("node", metavar="NODE")
@_REASON
@_BY
@click.option(
    "--no-deny", is_flag=True, help="Let it come back, which it does at once where it still runs."
)
@_YES
@with_target
def evict(  # noqa: PLR0913 - options of a command
    target: Target, run: str, node: str, reason: str, by: str | None, *, no_deny: bool, yes: bool
) -> int:
    """Take a node out of a run, and let it not come back.

    NODE is a host name, a node_id, or the 16 hex digits of one node. The others form the next round
    without it.
    """
    _ask(target, f"Take {plain(node)} out of run '{plain(run)}'?", yes=yes)
    gone = _do(target, run, "evict", node=node, reason=reason, by=by, deny=not no_deny)
    if target.json:
        write_json({"run": run, "denied": not no_deny, "nodes": documents(list(gone))})
        return OK
    names = listed(who(one) for one in gone)
    was = f"{names} {'is' if len(gone) == 1 else 'are'} out of run '{plain(run)}'"
    if not gone:
        was = f"No node of run '{plain(run)}' is {plain(node)} at the moment"
    print(
        f"{was}{'.' if no_deny else f', and {plain(node)} may not join until `torchetcd allow`.'}"
    )
    return OK


@click.command()
@run_argument
@click.argument("node", metavar="NODE")
@with_target
def allow(target: Target, run: str, node: str) -> int:
    """Let a node that was evicted join again."""
    changed = _do(target, run, "allow", name=node)
    if target.json:
        write_json({"run": run, "name": node, "changed": changed})
    elif changed:
        print(f"{plain(node)} may join run '{plain(run)}' again.")
    else:
        print(f"{plain(node)} was not denied in run '{plain(run)}': nothing was changed.")
    return OK


@click.command()
@run_argument
@click.option("--force", is_flag=True, help="Also while nodes are there, which then fail.")
@_YES
@with_target
def purge(target: Target, run: str, *, force: bool, yes: bool) -> int:
    """Delete all that etcd has of a run."""
    _ask(target, f"Delete all that etcd has of run '{plain(run)}'?", yes=yes)
    deleted = _do(target, run, "purge", force=force)
    if target.json:
        write_json({"run": run, "deleted": deleted})
    else:
        number = deleted if isinstance(deleted, int) and not isinstance(deleted, bool) else None
        what = "" if number is None else f" ({count(number, 'key')})"
        print(f"Nothing of run '{plain(run)}' is left in etcd{what}.")
    return OK
