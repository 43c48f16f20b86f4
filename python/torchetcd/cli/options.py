"""The options that all commands have, and the arguments that several have."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from torchetcd import _defaults, _environment
from torchetcd._endpoints import is_job
from torchetcd._quorum.clients import entries_of_people
from torchetcd._quorum.seen import lack
from torchetcd.aio import key_prefix
from torchetcd.cli.completion import complete_run
from torchetcd.cli.exit_codes import Failure
from torchetcd.cli.target import Target
from torchetcd.etcd import Client as EtcdClient
from torchetcd.etcd import EtcdConnectionFailed, EtcdException

_Command = TypeVar("_Command", bound=Callable[..., Any])

_FILE = click.Path(exists=True, dir_okay=False)


class Seconds(click.FloatRange):
    """A number of seconds, whose error says what is allowed."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read a number and check it."""
        try:
            seconds = float(value)
        except ValueError:
            seconds = float("nan")
        # Of what is no number every comparison is false.
        if not (self.min or 0) <= seconds <= (self.max or float("inf")):
            self.fail(f"{value!r} is not a number from {self.min:g} to {self.max:g}.", param, ctx)
        return seconds


def _endpoint(_context: click.Context, _option: click.Parameter, value: str) -> str:
    try:
        if is_job(value):
            entries_of_people(value)
        else:
            EtcdClient(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None
    return value


def _prefix(_context: click.Context, _option: click.Parameter, value: str) -> str:
    try:
        key_prefix(prefix=value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None
    return value


def check_run(run: str | None) -> str | None:
    """Check a run's id, where one was given.

    Raises:
        click.BadParameter: if it cannot be one.
    """
    try:
        if run:
            key_prefix(run)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from None
    return run


def _run(_context: click.Context, _argument: click.Parameter, value: str | None) -> str | None:
    return check_run(value)


_OPTIONS = (
    click.option(
        "-e",
        "--endpoint",
        envvar=_environment.ENDPOINT.name,
        show_envvar=True,
        default=_defaults.ENDPOINT,
        show_default=True,
        metavar="HOST:PORT,...",
        callback=_endpoint,
        help="etcd's endpoints, separated by commas, or job://HOST,... as its agents have it.",
    ),
    click.option(
        "--protocol",
        envvar=_environment.PROTOCOL.name,
        show_envvar=True,
        type=click.Choice(["http", "https"], case_sensitive=False),
        help="For endpoints without a scheme; by default http, or https with --ca-cert or --cert.",
    ),
    click.option(
        "--ca-cert",
        envvar=_environment.CA_CERT.name,
        show_envvar=True,
        type=_FILE,
        help="PEM file of the CA; by default the system's roots.",
    ),
    click.option(
        "--cert",
        envvar=_environment.CERT.name,
        show_envvar=True,
        type=_FILE,
        help="PEM file of the client certificate.",
    ),
    click.option(
        "--key",
        envvar=_environment.KEY.name,
        show_envvar=True,
        type=_FILE,
        help="PEM file of the client certificate's key.",
    ),
    click.option(
        "--user",
        envvar=_environment.USER.name,
        show_envvar=True,
        help="User in etcd; the password is in TORCHETCD_PASSWORD_FILE or TORCHETCD_PASSWORD.",
    ),
    click.option(
        "--quorum-secret-file",
        envvar=_environment.QUORUM_SECRET_FILE.name,
        show_envvar=True,
        type=_FILE,
        help="For job://...: the file with the secret of the quorum.",
    ),
    click.option(
        "--prefix",
        envvar=_environment.PREFIX.name,
        show_envvar=True,
        default=_defaults.PREFIX,
        show_default=True,
        callback=_prefix,
        help="The parameter etcd_prefix of the runs.",
    ),
    click.option(
        "--timeout",
        envvar=_environment.TIMEOUT.name,
        show_envvar=True,
        type=Seconds(0.1, 86400),
        default=10.0,
        show_default=True,
        help="Seconds that a call to etcd may take.",
    ),
    click.option("--json", is_flag=True, help="Print JSON."),
)


def with_target(command: _Command) -> _Command:
    """Give a command the options, and the `Target` made of them as its first argument."""
    fields = [field.name for field in dataclasses.fields(Target)]

    @functools.wraps(command)
    def called(**arguments: Any) -> Any:
        if _source("cert") == ParameterSource.COMMANDLINE != _source("key"):
            # The site's key is that of the site's certificate.
            arguments["key"] = None
        target = Target(**{name: arguments.pop(name) for name in fields})
        try:
            return command(target, **arguments)
        except EtcdException as exc:
            if target.quorum is not None:
                why = lack(target.quorum)
                raise Failure(why or f"{str(exc).rstrip('.')}.") from None
            if not isinstance(exc, EtcdConnectionFailed):
                raise
            if _source("endpoint") is not ParameterSource.DEFAULT:
                raise
            message = (
                f"{str(exc).rstrip('.')}; set --endpoint or TORCHETCD_ENDPOINT "
                f"({_defaults.ENDPOINT} is the default)."
            )
            raise Failure(message) from None

    made: Any = called
    for option in reversed(_OPTIONS):
        made = option(made)
    result: _Command = made
    return result


def _source(option: str) -> ParameterSource | None:
    return click.get_current_context().get_parameter_source(option)


def run_argument(command: _Command) -> _Command:
    """Give a command the argument RUN."""
    return click.argument("run", metavar="RUN", callback=_run, shell_complete=complete_run)(command)


def optional_run(command: _Command) -> _Command:
    """Give a command the argument RUN, which may be left out."""
    return click.argument(
        "run", metavar="[RUN]", required=False, callback=_run, shell_complete=complete_run
    )(command)
