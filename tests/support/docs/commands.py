"""Whether a command of the documentation is one: its program, options and parameters are looked up."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from torch.distributed.elastic.rendezvous.utils import _parse_rendezvous_config
from torch.distributed.run import get_args_parser

from support import ROOT
from torchetcd._endpoints import is_job
from torchetcd._quorum.entries import parse_entries
from torchetcd._rendezvous.options import PARAMETERS
from torchetcd.etcd import Client

# Programs that are not ours are named here with what the pages need of them.
_KUBECTL = {"apply", "create", "logs", "rollout"}
_PACKAGES = {"numpy", "python-etcd"}


class NotACommandError(Exception):
    """Says what is wrong with it."""


def check(source: str, folder: Path = ROOT) -> int:
    """Check each command of a shell block; the number of those that were found."""
    commands = _commands(source)
    for words in commands:
        program, *arguments = words
        if program not in CHECKS:
            message = f"nothing is known of '{program}'; mark the block, or add it to {__name__}"
            raise NotACommandError(message)
        CHECKS[program](arguments, folder)
    return len(commands)


def _commands(source: str) -> list[list[str]]:
    commands = []
    for line in source.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|"):
                # Variables before a command are for it alone.
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words:
                    commands.append(words)
                words = []
            else:
                words.append(word)
    return commands


def _require(condition: object, message: str) -> None:
    if not condition:
        raise NotACommandError(message)


def torchrun(arguments: list[str], _folder: Path) -> None:
    """By torch's own parser, and the parameters by ours."""
    given = [word for word in arguments if word != "..."]
    if not any(word.endswith(".py") for word in given) and "..." in arguments:
        given.append("train.py")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = get_args_parser().parse_args(given)
    except SystemExit as exc:
        raise NotACommandError(said.getvalue()) from exc
    misplaced = [word for word in parsed.training_script_args if word.startswith("--rdzv")]
    _require(not misplaced, f"{misplaced} come after the script")
    if parsed.rdzv_backend in {"etcd-v3", "etcd", "etcd-v2"}:
        if is_job(parsed.rdzv_endpoint):
            # With how many members is a parameter.
            parse_entries(parsed.rdzv_endpoint, 1)
        else:
            Client(parsed.rdzv_endpoint).close()
        rdzv_conf(parsed.rdzv_conf)


def rdzv_conf(text: str) -> None:
    """Names and values of `--rdzv-conf`; files need not be there."""
    parsers = {name: parameter.parse for parameter in PARAMETERS for name in parameter.names}
    for name, value in _parse_rendezvous_config(text).items():
        _require(name in parsers, f"the parameter '{name}' is not known")
        if not value.endswith(".pem") and not name.endswith("_file"):
            try:
                parsers[name](name, value)
            except ValueError as exc:
                raise NotACommandError(str(exc)) from exc


def pip(arguments: list[str], _folder: Path) -> None:
    """Extras must be there."""
    # Python 3.10 has no tomllib.
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]\n")[1]
    extras = re.findall(r"^(\w+) = \[", section.split("\n[")[0], re.MULTILINE)
    _require(arguments[0] in {"install", "uninstall"}, f"pip {arguments[0]}?")
    for word in arguments[1:]:
        name, _, extra = word.partition("[")
        known = name == "torchetcd" and all(
            part in extras for part in extra[:-1].split(",") if part
        )
        _require(known or word in _PACKAGES | {"--yes", "--upgrade"}, f"pip {arguments[0]} {word}?")


def make(arguments: list[str], _folder: Path) -> None:
    """Targets and variables of the Makefile."""
    text = (ROOT / "Makefile").read_text()
    for word in arguments:
        name, variable, _ = word.partition("=")
        wanted = rf"\b{name}\b" if variable else rf"^{re.escape(name)}:"
        _require(re.search(wanted, text, re.MULTILINE), f"the Makefile has no '{name}'")


def kubectl(arguments: list[str], _folder: Path) -> None:
    """Its verb; files must be there, and a secret must be one that a manifest wants."""
    manifests = "".join(path.read_text() for path in (ROOT / "examples/kubernetes").glob("*.yaml"))
    _require(arguments[0] in _KUBECTL, f"kubectl {arguments[0]}?")
    for before, word in itertools.pairwise(arguments):
        if before in {"-f", "--filename"}:
            _require((ROOT / word).is_file(), f"{word} is not there")
        if before == "generic":
            _require(f"secretName: {word}" in manifests, f"no manifest wants the secret {word}")


def script(arguments: list[str], folder: Path) -> None:
    """A file of the repository that is run by an interpreter."""
    names = [word for word in arguments if not word.startswith("-")]
    _require(names and (folder / names[0]).is_file(), f"{arguments} names no file that is there")


def export(arguments: list[str], _folder: Path) -> None:
    """A variable that the reference has."""
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    for word in arguments:
        _require(f"| `{word.partition('=')[0]}` |" in pages, f"{word} is in no table of variables")


def torchetcd(arguments: list[str], _folder: Path) -> None:
    """By the command line's own parser."""
    import click

    from torchetcd.cli.app import app

    name = next((word for word in arguments if not word.startswith("-")), "")
    _require(name in app.commands, f"torchetcd {name}?")
    try:
        app.commands[name].make_context(name, arguments[arguments.index(name) + 1 :])
    except click.UsageError as exc:
        raise NotACommandError(exc.format_message()) from exc
    except click.exceptions.Exit:  # --help
        pass


CHECKS: dict[str, Callable[[list[str], Path], None]] = {
    "torchrun": torchrun,
    "torchetcd": torchetcd,
    "pip": pip,
    "make": make,
    "kubectl": kubectl,
    "sh": script,
    "python": script,
    "export": export,
}
