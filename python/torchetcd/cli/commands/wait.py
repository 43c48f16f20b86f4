"""The command `wait`: until a run is as a script wants it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import NamedTuple

import click

from torchetcd._phrasing import plain
from torchetcd.aio import Gone, Run
from torchetcd.cli import interruptible
from torchetcd.cli.commands.watch import events_of
from torchetcd.cli.exit_codes import CLOSED, FINDINGS, NOT_FOUND, OK, Failure
from torchetcd.cli.options import Seconds, run_argument, with_target
from torchetcd.cli.output import write_json
from torchetcd.cli.target import Target
from torchetcd.cli.views.event_text import state_sentence
from torchetcd.cli.views.run_tables import lost_members

# A year: what is longer is a slip.
_LONGEST_S = 366 * 86400


class _Wanted(NamedTuple):
    """What is waited for."""

    said: str
    #: Whether a run is so.
    holds: Callable[[Run], bool]


_STATES: dict[str, Callable[[Run], bool]] = {
    "complete": lambda run: run.state == "final" and not lost_members(run),
    "closed": lambda run: run.state == "closed",
    "succeeded": lambda run: run.closed is not None and run.closed.result == "succeeded",
}


def _wanted(_context: click.Context, _option: click.Parameter, value: str) -> _Wanted:
    if value in _STATES:
        return _Wanted(value, _STATES[value])
    name, _, text = value.partition("=")
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if name != "nodes" or number < 1:
        message = f"{value!r} is not one of {', '.join(_STATES)} and nodes=N, N at least 1."
        raise click.BadParameter(message)
    return _Wanted(value, lambda run: len(run.joined) + len(run.members) >= number)


@click.command("wait", short_help="Wait until a run is complete, closed, or has so many nodes.")
@run_argument
@click.option(
    "--for",
    "wanted",
    required=True,
    callback=_wanted,
    metavar="WHAT",
    help="complete: the barrier is, with no member lost; nodes=N: so many nodes are in the barrier or "
    "members; closed: the run is, however the job ended; succeeded: it ended well.",
)
@click.option(
    "--within",
    type=Seconds(0, _LONGEST_S),
    help="How long to wait; by default for ever.",
)
@with_target
def wait_command(target: Target, run: str, wanted: _Wanted, within: float | None) -> int:
    """Wait until a run is complete, closed, or has so many nodes.

    Nothing is polled: etcd sends what happens. If the run does not exist yet, the command waits for
    it.

    Exit codes: 0 it is so; 3 there was no such run, or nothing is left of it; 4 the time is up; 5 the
    run is closed, so it will not become so.
    """
    last, code = interruptible.wait(_follow(target, run, wanted, within))
    if last is None or code == NOT_FOUND:
        gone = "Nothing is left of run" if last is not None else "There was no run"
        message = f"{gone} '{plain(run)}' below {target.prefix}."
        if not target.json:
            raise Failure(message, NOT_FOUND)
    else:
        message = f"Run '{plain(run)}': {state_sentence(last)}."
        if code == FINDINGS:
            message = f"The time is up. {message}"
    if target.json:
        closed = None if last is None else last.closed
        write_json(
            {
                "run": run,
                "for": wanted.said,
                "met": code == OK,
                "state": "none" if last is None else last.state,
                "result": None if closed is None else closed.result,
                "text": message,
            }
        )
    else:
        print(message)
    return code


async def _follow(
    target: Target, run: str, wanted: _Wanted, within: float | None
) -> tuple[Run | None, int]:
    """Give the run as it was last, if it ever was there, and the exit code."""
    last: Run | None = None

    async def follow() -> int:
        nonlocal last
        async with contextlib.aclosing(events_of(target, run)) as events:
            async for event in events:
                if isinstance(event, Gone):
                    return NOT_FOUND
                if event.run.state == "none" and last is None:
                    continue
                last = event.run
                if wanted.holds(last):
                    return OK
                if last.state == "closed":
                    return CLOSED
        raise AssertionError

    try:
        code = await asyncio.wait_for(follow(), within)
    except asyncio.TimeoutError:
        code = FINDINGS if last is not None else NOT_FOUND
    return last, code
