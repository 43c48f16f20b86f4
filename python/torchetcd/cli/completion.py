"""Completion in a shell: its script, and the ids of runs."""

from __future__ import annotations

import asyncio

import click
from click.shell_completion import CompletionItem, get_completion_class

from torchetcd._environment import COMPLETE
from torchetcd.cli.exit_codes import OK, Failure
from torchetcd.cli.interruptible import wait
from torchetcd.cli.target import target_of

VARIABLE = COMPLETE.name
# Somebody waits at a prompt for it.
_PATIENCE_S = 1.0
_SHELLS = ("bash", "zsh", "fish")


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> int:
    """Print the script that completes commands, options and runs in a shell.

    For bash: `eval "$(torchetcd completion bash)"` in ~/.bashrc.
    """
    root = click.get_current_context().find_root().command
    made = get_completion_class(shell)
    if made is None:
        message = f"There is no completion for {shell}."
        raise Failure(message)
    # Not `source()`: for bash that starts one to ask for its version.
    complete = made(root, {}, "torchetcd", VARIABLE)
    print(complete.source_template % complete.source_vars())
    return OK


def complete_run(
    context: click.Context, _argument: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Give the runs whose ids begin so; none where etcd does not answer at once."""
    # click has marks of its own for what was not given.
    given = {name: value for name, value in context.params.items() if isinstance(value, str)}
    try:
        return [CompletionItem(run) for run in wait(_ids(given)) if run.startswith(incomplete)]
    except Exception:  # noqa: BLE001 - a prompt is no place for errors
        return []


async def _ids(given: dict[str, str]) -> list[str]:
    target = target_of(given, timeout=_PATIENCE_S)
    async with target.client() as client:
        found = await asyncio.wait_for(client.list_runs(prefix=target.prefix), _PATIENCE_S)
        return sorted(run.id for run in found)
