"""What commands that change runs share: their options, the question before it, one run or several."""

from __future__ import annotations

import asyncio
import fnmatch
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TextIO, TypeVar

import click

from torchetcd._phrasing import count, listed, plain, some
from torchetcd.aio import Client, Run, RunNotFoundError, RunRecordError
from torchetcd.cli.exit_codes import ERROR, NOT_FOUND, OK, Failure
from torchetcd.cli.interruptible import wait
from torchetcd.cli.lookups import not_found
from torchetcd.cli.target import Target
from torchetcd.etcd import EtcdException

_Command = TypeVar("_Command", bound=Callable[..., Any])

# So many runs are changed at the same time.
_AT_ONCE = 16
_NAMED = 6

reason_option = click.option(
    "--reason", required=True, metavar="TEXT", help="Why, for whoever asks later."
)
by_option = click.option(
    "--by", metavar="NAME", help="Name of whoever does it; user@host unless given."
)
yes_option = click.option(
    "-y",
    "--yes",
    is_flag=True,
    help="Skip the confirmation prompt; required without a terminal and with --json.",
)


class Which(NamedTuple):
    """Which runs a command means that was given no RUN."""

    every: bool
    match: str | None

    def __bool__(self) -> bool:
        """Whether it means more than the one that is named."""
        return self.every or self.match is not None


def which_options(command: _Command) -> _Command:
    """Give a command the options --all and --match, by the names `every` and `match`."""
    made = click.option(
        "--match", metavar="PATTERN", help="All runs whose ids match, such as 'exp-*'."
    )(command)
    return click.option("--all", "every", is_flag=True, help="All runs below the prefix.")(made)


def ask(target: Target, question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone.

    Raises:
        click.UsageError: if nobody can be asked.
        click.Abort: if there is no answer.
        Failure: if the answer is no.
    """
    if yes:
        return
    if target.json or not (_is_terminal(sys.stdin) and _is_terminal(sys.stderr)):
        message = "Refusing to continue without confirmation; pass --yes."
        raise click.UsageError(message)
    if not click.confirm(question, err=True):
        message = "Nothing was changed."
        raise Failure(message)


def _is_terminal(stream: TextIO | None) -> bool:
    # It is `None` in a process that was started without one.
    return stream is not None and stream.isatty()


def do(target: Target, run: str, method: str, **arguments: Any) -> Any:
    """Call a method of the client for one run."""

    async def call() -> Any:
        async with target.client() as client:
            return await getattr(client, method)(run, prefix=target.prefix, **arguments)

    try:
        return wait(call())
    except RunNotFoundError:
        raise not_found(target, run) from None


def choose(target: Target, which: Which) -> list[Run]:
    """Ask for the runs that --all or --match means.

    Raises:
        click.UsageError: if both were given.
        Failure: if there are none.
    """
    if which.every and which.match is not None:
        message = "Give --all or --match, not both."
        raise click.UsageError(message)

    async def call() -> list[Run]:
        async with target.client() as client:
            return await client.list_runs(prefix=target.prefix)

    found = sorted(wait(call()), key=lambda run: run.id)
    if which.match is not None:
        found = [run for run in found if fnmatch.fnmatchcase(run.id, which.match)]
    if not found:
        that = "" if which.match is None else f" that matches '{plain(which.match)}'"
        message = f"There is no run below {target.prefix}{that}: see `torchetcd runs`."
        raise Failure(message, NOT_FOUND)
    return found


class Outcome(NamedTuple):
    """What came of a change of one run."""

    run: str
    result: Any
    #: Why it failed; `None` if it did not.
    error: str | None


def do_all(
    target: Target, runs: Sequence[str], call: Callable[[Client, str], Awaitable[Any]]
) -> list[Outcome]:
    """Change several runs. What fails for one does not keep the others from it."""

    async def do_each() -> list[Outcome]:
        gate = asyncio.Semaphore(_AT_ONCE)
        async with target.client() as client:

            async def do_one(run: str) -> Outcome:
                async with gate:
                    try:
                        return Outcome(run, await call(client, run), None)
                    except (EtcdException, RunNotFoundError, RunRecordError) as exc:
                        return Outcome(run, None, plain(exc))

            return list(await asyncio.gather(*map(do_one, runs)))

    return wait(do_each())


def failures(outcomes: Sequence[Outcome]) -> int:
    """Say on standard error what failed, and give the exit code."""
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    for outcome in failed:
        print(f"torchetcd: run '{plain(outcome.run)}': {outcome.error}", file=sys.stderr)
    return ERROR if failed else OK


def some_runs(runs: Sequence[Run]) -> str:
    """Name several runs: how many, and the first of them."""
    names = listed(some([f"'{plain(run.id)}'" for run in runs], _NAMED))
    return f"{count(len(runs), 'run')} ({names})" if len(runs) > 1 else f"run {names}"
