"""The commands together, and how they end: an exit code and, after an error, one sentence."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence

import click
from click.core import ParameterSource
from click.shell_completion import shell_complete

from torchetcd._environment import DEBUG
from torchetcd._version import version
from torchetcd.cli.command_group import Group
from torchetcd.cli.commands.close import close
from torchetcd.cli.commands.deny_list import allow, evict
from torchetcd.cli.commands.doctor import doctor
from torchetcd.cli.commands.nodes import nodes
from torchetcd.cli.commands.purge import purge
from torchetcd.cli.commands.reopen import reopen
from torchetcd.cli.commands.runs import runs
from torchetcd.cli.commands.serve import serve
from torchetcd.cli.commands.show import show
from torchetcd.cli.commands.timeline import timeline
from torchetcd.cli.commands.wait import wait_command
from torchetcd.cli.commands.watch import watch
from torchetcd.cli.commands.why import why
from torchetcd.cli.completion import VARIABLE, completion
from torchetcd.cli.exit_codes import ERROR, INTERRUPTED, OK, USAGE, Failure

_EPILOG = (
    "Exit codes: 0 done; 1 error; 2 usage; 3 there is no such run; 4 the barrier is not complete (why), the "
    "time is up (wait), nobody was taken out (evict) or something is wrong (doctor); 5 the run is closed "
    "(why, wait); 130 interrupted."
)


@click.group(
    cls=Group,
    options_metavar="[OPTIONS]",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(version(), "-V", "--version", prog_name="torchetcd")
def app() -> None:
    """See, understand and steer torchrun jobs that meet through etcd.

    `torchetcd why RUN` says who is missing when a job hangs at start.
    """


for command in (
    runs,
    nodes,
    show,
    why,
    watch,
    wait_command,
    timeline,
    close,
    reopen,
    evict,
    allow,
    purge,
    doctor,
    serve,
    completion,
):
    app.add_command(command)


def run(args: Sequence[str] | None) -> int:  # noqa: PLR0911 - one line for each way to end
    """Run a command; see `torchetcd.cli.main`."""
    if sys.stdout is None:
        # Connections would get its number, too, and what is printed then would go into one.
        return _failed("Standard output is closed: there is nowhere to print to.", ERROR)
    try:
        code = _invoke(sys.argv[1:] if args is None else args)
        sys.stdout.flush()
    except click.exceptions.Exit as exc:  # `--help`
        return exc.exit_code
    except click.UsageError as exc:
        path = exc.ctx.command_path if exc.ctx else "torchetcd"
        _name_the_source(exc)
        return _failed(f"{_sentence(exc.format_message())} See `{path} --help`.", USAGE)
    except click.ClickException as exc:
        return _failed(_sentence(exc.format_message()), ERROR)
    except Failure as exc:
        return _failed(str(exc), exc.code)
    except click.Abort:  # Ctrl-C where something was asked
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read has seen enough.
        _drop_output()
        return OK
    except Exception as exc:
        if DEBUG.is_on():
            raise
        return _failed(_sentence(_what_failed(exc)), ERROR)
    return code if isinstance(code, int) else OK


# Commands write files and ask etcd with errors of their own: of these only the output is left.
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _what_failed(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.errno in _NOT_WRITTEN:
        _drop_output()
        return f"The output cannot be written: {exc.strerror}"
    return str(exc) or type(exc).__name__


def _drop_output() -> None:
    """Let what is still buffered not fail once more at the end of the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _invoke(args: Sequence[str]) -> object:
    """Do what `app.main` does, except for Ctrl-C, at which that prints an empty line."""
    if instruction := os.environ.get(VARIABLE):
        return shell_complete(app, {}, "torchetcd", VARIABLE, instruction)
    # Of no arguments click makes an error whose text is the help (click 8.2), or the help (before).
    with app.make_context("torchetcd", list(args) or ["--help"]) as context:
        return app.invoke(context)


def _name_the_source(exc: click.UsageError) -> None:
    """Have an error name the environment variable that a value came from, and not an option nobody gave."""
    if not isinstance(exc, click.BadParameter) or exc.param is None or exc.ctx is None:
        return
    source = exc.ctx.get_parameter_source(exc.param.name or "")
    names = exc.param.envvar or ()
    names = [names] if isinstance(names, str) else names
    found = [name for name in names if os.environ.get(name)]
    if source is ParameterSource.ENVIRONMENT and found:
        exc.param_hint = found[0]
    elif exc.param_hint is None and isinstance(exc.param, click.Option):
        # The option alone: click would add its variable.
        exc.param_hint = click.Parameter.get_error_hint(exc.param, exc.ctx)


def _failed(message: str, code: int) -> int:
    if sys.stdout is not None:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
    if sys.stderr is not None:  # or it would go to standard output
        print(f"torchetcd: {message}", file=sys.stderr)
    return code


def _sentence(text: str) -> str:
    line = " ".join(text.split())
    return line if line.endswith((".", "?", "!")) else f"{line}."
