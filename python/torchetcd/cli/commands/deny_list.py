"""The commands about nodes that shall not be in a run: `evict` and `allow`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import click

from torchetcd._phrasing import count, listed, plain, some
from torchetcd.aio import Client, Node, Run
from torchetcd.cli.completion import complete_run
from torchetcd.cli.exit_codes import FINDINGS, OK
from torchetcd.cli.interruptible import wait
from torchetcd.cli.lookups import describe
from torchetcd.cli.options import check_run, with_target
from torchetcd.cli.output import documents, write_json
from torchetcd.cli.several_runs import (
    Outcome,
    Which,
    ask,
    by_option,
    choose,
    do_all,
    failures,
    reason_option,
    some_runs,
    which_options,
    yes_option,
)
from torchetcd.cli.target import Target
from torchetcd.cli.views.event_text import who
from torchetcd.diagnosis import close_names, nodes_called, present_nodes

# More than anybody reads before an answer.
_NAMED = 12

#: By the name that the deny list has: the nodes that are called so.
_Found = dict[str, list[Node]]


def _names(context: click.Context, _: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Check the arguments RUN and NODE, of which RUN is left out with --all and --match."""
    if len(value) > 2 or not value:
        message = "Expected RUN and NODE; with --all or --match NODE alone."
        raise click.UsageError(message, context)
    if len(value) == 2:
        check_run(value[0])
    return value


_names_argument = click.argument(
    "names", metavar="[RUN] NODE", nargs=-1, callback=_names, shell_complete=complete_run
)


def _split(names: tuple[str, ...], which: Which) -> tuple[str | None, str]:
    if bool(which) == (len(names) == 2):
        message = (
            "With --all or --match give NODE alone, and no RUN."
            if which
            else "Missing argument 'NODE': expected RUN and NODE."
        )
        raise click.UsageError(message)
    return (None if which else names[0]), names[-1]


@click.command()
@_names_argument
@which_options
@reason_option
@by_option
@click.option(
    "--no-deny",
    is_flag=True,
    help="Let the node rejoin, which an agent that still runs does at once.",
)
@yes_option
@with_target
def evict(  # noqa: PLR0913 - options of a command
    target: Target,
    names: tuple[str, ...],
    reason: str,
    by: str | None,
    match: str | None,
    *,
    every: bool,
    no_deny: bool,
    yes: bool,
) -> int:
    """Remove a node from a run and keep it from rejoining.

    NODE is a host name, with or without its domain, a node_id, HOST:PID, or the 16 hex digits of one
    node. The others form the next round without it. With --all or --match it is kept out of several
    runs. Exit code 4: there was no such node.
    """
    which = Which(every, match)
    run, node = _split(names, which)
    if run is None:
        # A closed run has nobody to take out, and would be kept in etcd for longer.
        runs = [each for each in choose(target, which) if each.state in ("open", "final")]
    else:
        runs = [wait(describe(target, run))]
    found = {each.id: nodes_called(present_nodes(each), node) for each in runs}
    asked = _question(runs, node, found, deny=not no_deny)
    if asked:
        ask(target, asked, yes=yes)
    outcomes = _evict(target, runs, node, found, reason=reason, by=by, deny=not no_deny)
    gone = [one for outcome in outcomes for one in outcome.result or ()]
    kept_out = [] if no_deny else _kept_out(node, found.values())
    code = failures(outcomes)
    if target.json:
        told: dict[str, Any] = {"run": run} if run is not None else {}
        told |= {"denied": not no_deny, "names": kept_out, "nodes": documents(gone)}
        if run is None:
            told["runs"] = [each.id for each in runs]
        write_json(told)
    elif not runs:
        print("None of these runs is open: nobody was taken out.")
    elif run is None or not code:
        taken = [each for each in runs if any(o.run == each.id and o.result for o in outcomes)]
        print(_told(runs, taken, node, gone, kept_out, several=run is None))
    return code or (OK if gone else FINDINGS)


def _evict(  # noqa: PLR0913 - of the command
    target: Target,
    runs: Sequence[Run],
    node: str,
    found: dict[str, _Found],
    *,
    reason: str,
    by: str | None,
    deny: bool,
) -> list[Outcome]:
    """Take it out of the runs in which it is; elsewhere deny what it is called where it is."""
    ids = {one.id for those in found.values() for nodes in those.values() for one in nodes}
    whole = [name for name in _kept_out(node, found.values()) if name not in ids]

    async def call(client: Client, run: str) -> list[Node]:
        evicted: list[Node] = []
        for name in [node] if found[run] else whole:
            evicted += await client.evict(run, name, reason, by, target.prefix, deny=deny)
        return evicted

    meant = [run.id for run in runs if found[run.id] or (whole and deny)]
    return do_all(target, meant, call)


def _kept_out(node: str, found: Iterable[_Found]) -> list[str]:
    """Give the names that the deny list has afterwards."""
    return sorted({name for those in found for name in those}) or [node]


def _people(node: str, found: _Found) -> list[str]:
    """Name those who are kept out as `allow` takes them."""
    if not found:
        return [plain(node)]
    return sorted(
        f"{plain(those[0].host)}:{those[0].pid}" if those[0].id == name else plain(name)
        for name, those in found.items()
    )


def _question(
    runs: Sequence[Run], node: str, found: dict[str, _Found], *, deny: bool
) -> str | None:
    """Ask what is about to happen, and to whom."""
    everyone = _together(found.values())
    nodes = [one for those in everyone.values() for one in those]
    if nodes:
        out = listed(some([who(one) for one in nodes], _NAMED))
        there = [run for run in runs if found[run.id]]
        kept = f", and keep {listed(_people(node, everyone))} out" if deny else ""
        of = f" of {some_runs(runs)}" if deny and len(there) < len(runs) else ""
        return f"Take {out} out of {some_runs(there)}{kept}{of}?"
    if not deny or not runs:
        return None
    return f"{_nobody(runs, node)} Keep {plain(node)} out from now on?"


def _together(found: Iterable[_Found]) -> _Found:
    everyone: _Found = {}
    for those in found:
        for name, nodes in those.items():
            everyone.setdefault(name, []).extend(nodes)
    return everyone


def _nobody(runs: Sequence[Run], node: str) -> str:
    close = close_names([one for run in runs for one in present_nodes(run)], node)
    there = f" Close to it: {listed(close, 'or')}." if close else ""
    return f"No node of {some_runs(runs)} is called {plain(node)} at the moment.{there}"


def _told(  # noqa: PLR0913 - all there is to say
    runs: Sequence[Run],
    taken: Sequence[Run],
    node: str,
    gone: Sequence[Node],
    kept_out: Sequence[str],
    *,
    several: bool,
) -> str:
    rerun = "--all" if several else shlex.quote(plain(runs[0].id))
    undo = f"`torchetcd allow {rerun} {shlex.quote(plain(node))}`"
    if not gone:
        still = f" Even so, {plain(node)} may not join until {undo}." if kept_out else ""
        return f"{_nobody(runs, node)} Nobody was taken out.{still}"
    is_ = "is" if len(gone) == 1 else "are"
    was = f"{listed(some([who(one) for one in gone], _NAMED))} {is_} out of {some_runs(taken)}"
    if not kept_out:
        return f"{was}."
    if {one.id for one in gone} & set(kept_out):
        return f"{was}, and may not join until {undo}. A new agent there may join."
    any_of = f" any of {count(len(runs), 'run')}" if len(taken) < len(runs) else ""
    return f"{was}, and {listed(map(plain, kept_out))} may not join{any_of} until {undo}."


@click.command(short_help="Let an evicted node rejoin.")
@_names_argument
@which_options
@with_target
def allow(target: Target, names: tuple[str, ...], match: str | None, *, every: bool) -> int:
    """Let a node that was evicted join again: NODE as it was given to `evict`."""
    which = Which(every, match)
    run, node = _split(names, which)
    runs = [each.id for each in choose(target, which)] if run is None else [run]

    async def call(client: Client, one: str) -> tuple[str, ...]:
        return await client.allow(one, node, target.prefix)

    outcomes = do_all(target, runs, call)
    let_in = sorted({name for outcome in outcomes for name in outcome.result or ()})
    changed = [outcome.run for outcome in outcomes if outcome.result]
    code = failures(outcomes)
    if target.json:
        where: dict[str, Any] = {"runs": changed} if run is None else {"run": run}
        write_json({**where, "name": node, "names": let_in, "changed": bool(let_in)})
    elif let_in:
        there = f"run '{plain(run)}'" if run is not None else count(len(changed), "run")
        own = [plain(name) for name in let_in if name != node]
        also = f" (on the deny list: {listed(own)})" if own else ""
        print(f"{plain(node)} may join {there} again{also}.")
    elif not code:
        there = f"run '{plain(run)}'" if run is not None else count(len(runs), "run")
        print(f"{plain(node)} was not denied in {there}: nothing was changed.")
    return code
