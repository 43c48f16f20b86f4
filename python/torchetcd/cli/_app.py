"""The commands together, and how they end: an exit code and, after an error, one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click
from click.shell_completion import shell_complete

from torchetcd import __version__
from torchetcd._environment import DEBUG
from torchetcd.cli._completion import VARIABLE, completion
from torchetcd.cli._doctor import doctor
from torchetcd.cli._exits import ERROR, INTERRUPTED, OK, USAGE, Failure
from torchetcd.cli._follow import timeline, watch
from torchetcd.cli._look import runs, show, why
from torchetcd.cli._serve import serve
from torchetcd.cli._steer import allow, close, evict, purge, reopen

_EPILOG = (
    "Exit codes: 0 done; 1 error; 2 usage; 3 there is no such run; 4 the barrier is not complete (why) or "
    "something is wrong (doctor); 5 the run is closed (why); 130 interrupted."
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(__version__, "-V", "--version", prog_name="torchetcd")
def app() -> None:
    """See, understand and steer torchrun jobs that meet through etcd.

    `torchetcd why RUN` says who is missing when a job hangs at start.
    """


for command in (
    runs,
    show,
    why,
    watch,
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
    try:
        code = _invoke(sys.argv[1:] if args is None else args)
        sys.stdout.flush()
    except click.exceptions.Exit as exc:  # `--help`
        return exc.exit_code
    except click.UsageError as exc:
        path = exc.ctx.command_path if exc.ctx else "torchetcd"
        return _failed(f"{_sentence(exc.format_message())} See `{path} --help`.", USAGE)
    except click.ClickException as exc:
        return _failed(_sentence(exc.format_message()), ERROR)
    except Failure as exc:
        return _failed(str(exc), exc.code)
    except click.Abort:  # Ctrl-C where something was asked
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read has seen enough. What is still buffered must not fail at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as exc:
        if DEBUG.is_on():
            raise
        text = str(exc) or type(exc).__name__
        return _failed(_sentence(text), ERROR)
    return code if isinstance(code, int) else OK


def _invoke(args: Sequence[str]) -> object:
    """Do what `app.main` does, but for Ctrl-C, at which that prints an empty line."""
    if instruction := os.environ.get(VARIABLE):
        return shell_complete(app, {}, "torchetcd", VARIABLE, instruction)
    # Of no arguments click makes an error whose text is the help (click 8.2), or the help (before).
    with app.make_context("torchetcd", list(args) or ["--help"]) as context:
        return app.invoke(context)


def _failed(message: str, code: int) -> int:
    sys.stdout.flush()
    print(f"torchetcd: {message}", file=sys.stderr)
    return code


def _sentence(text: str) -> str:
    line = " ".join(text.split())
    return line if line.endswith((".", "?", "!")) else f"{line}."
