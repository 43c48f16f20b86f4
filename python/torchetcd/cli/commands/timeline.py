"""The command `timeline`."""

from __future__ import annotations

from pathlib import Path

import click

from torchetcd.aio import RunNotFoundError, Timeline
from torchetcd.cli.exit_codes import OK, Failure
from torchetcd.cli.interruptible import wait
from torchetcd.cli.lookups import not_found
from torchetcd.cli.options import run_argument, with_target
from torchetcd.cli.output import document, emit, write_json
from torchetcd.cli.target import Target
from torchetcd.cli.timeline.html import as_html
from torchetcd.cli.timeline.png import as_png
from torchetcd.cli.timeline.table import as_table


@click.command(short_help="Show what happened in a run, and when.")
@run_argument
@click.option(
    "--html",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Write the timeline as one HTML file.",
)
@click.option(
    "--png",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Write the timeline as a picture (needs torchetcd[plot]).",
)
@with_target
def timeline(target: Target, run: str, html: str | None, png: str | None) -> int:
    """Show what happened in a run: which nodes joined, left or were lost, and when.

    It is made of etcd's own history, as far as that is not compacted; of what was before only the
    completed rounds are known.
    """
    if html and png:
        message = "Give --html or --png, not both."
        raise click.UsageError(message)
    found = wait(_timeline(target, run))
    if html:
        _write(html, as_html(found).encode())
    elif png:
        _write(png, as_png(found))
    if target.json:
        write_json({"timeline": document(found)})
    elif html or png:
        print(f"Wrote {html or png}.")
    else:
        emit(*as_table(found))
    return OK


async def _timeline(target: Target, run: str) -> Timeline:
    async with target.client() as client:
        try:
            return await client.timeline(run, prefix=target.prefix)
        except RunNotFoundError:
            raise not_found(target, run) from None


def _write(path: str, content: bytes) -> None:
    try:
        Path(path).write_bytes(content)
    except OSError as exc:
        message = f"The file {path} cannot be written: {exc.strerror}."
        raise Failure(message) from None
