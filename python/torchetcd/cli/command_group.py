"""The command that the others belong to. Their common options may also stand before their names."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from torchetcd.cli.target import Target

_COMMON = [field.name for field in dataclasses.fields(Target)]


class Group(click.Group):
    """Hands what stands before a command's name on to the command, which checks it.

    What is given after the name as well comes last there, and so is what counts.
    """

    def __init__(self, *args: Any, **other: Any) -> None:
        super().__init__(*args, **other)
        # Where nothing but options was given, click would make an error whose text is the help.
        self.no_args_is_help = False
        self._common: list[click.Option] = []

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command. The first one that has them shows what the common options are."""
        super().add_command(cmd, name)
        if not self._common:
            options = [param for param in cmd.params if isinstance(param, click.Option)]
            self._common = [_shown(option) for option in options if option.name in _COMMON]
            self.params = [*self._common, *self.params]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands first, and the common options apart from the others."""
        self.format_commands(ctx, formatter)
        own = [param for param in self.get_params(ctx) if param not in self._common]
        for title, params in (
            ("Options of all commands, before or after the command's name", self._common),
            ("Options", own),
        ):
            records = [param.get_help_record(ctx) for param in params]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record])

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List them as they were added, and not by the alphabet."""
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the common options behind the command's name."""
        given, rest, _ = self.make_parser(ctx).parse_args(list(args))
        own = [
            _written(param, given) for param in self.get_params(ctx) if param not in self._common
        ]
        common = [_written(param, given) for param in self._common]
        carried = [text for text in common if text]
        if carried and not rest:
            return super().parse_args(ctx, [text for text in own if text])
        return super().parse_args(
            ctx, [*(text for text in own if text), *rest[:1], *carried, *rest[1:]]
        )


def _written(param: click.Parameter, given: dict[str, Any]) -> str:
    """Write an option as it was given; nothing if it was not."""
    # click has marks of its own for what was not given.
    value = given.get(param.name or "")
    if value is True:
        return param.opts[-1]
    return f"{param.opts[-1]}={value}" if isinstance(value, str) else ""


def _shown(option: click.Option) -> click.Option:
    """Make an option that is only shown and told apart: the command checks it, and has its default."""
    kind = option.type
    choices = f"[{'|'.join(map(str, kind.choices))}]" if isinstance(kind, click.Choice) else None
    variable = f"  [env var: {option.envvar}]" if option.envvar else ""
    return click.Option(
        option.opts,
        help=f"{option.help}{variable}",
        is_flag=option.is_flag or None,
        metavar=None if option.is_flag else option.metavar or choices or kind.name.upper(),
        expose_value=False,
    )
