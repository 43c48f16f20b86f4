"""The command `doctor`."""

from __future__ import annotations

import dataclasses

import click
from rich.text import Text

from torchetcd._phrasing import count, listed
from torchetcd.cli.doctor.judgements import findings
from torchetcd.cli.doctor.observations import Finding
from torchetcd.cli.doctor.probes import observe
from torchetcd.cli.exit_codes import FINDINGS, OK
from torchetcd.cli.interruptible import wait
from torchetcd.cli.lookups import see_quorum
from torchetcd.cli.options import with_target
from torchetcd.cli.output import emit, table, write_json
from torchetcd.cli.target import Target

_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "bold red"}


@click.command(short_help="Check etcd itself, and say what to do.")
@click.argument("run", metavar="[RUN]", required=False)
@with_target
def doctor(target: Target, run: str | None) -> int:
    """Look at etcd: reach, latency, version, TLS, users, rights, alarms, space, runs, clocks, quorum.

    It needs no root rights on etcd, says what it may not look at, and leaves nothing behind. With RUN
    the rights are tried below that run only, which is all that a role for one run has.
    """
    found = findings(wait(observe(target, run, see_quorum(target))))
    worst = OK if all(finding.level != "problem" for finding in found) else FINDINGS
    if target.json:
        write_json({"findings": [dataclasses.asdict(finding) for finding in found]})
        return worst
    made = table("", "", "")
    made.show_header = False
    for finding in found:
        text = Text(finding.text)
        if finding.advice:
            text.append(f"\n-> {finding.advice}", style="dim")
        made.add_row(Text(finding.level, style=_STYLES[finding.level]), finding.topic, text)
    emit(made, Text(), Text(_summary(found)))
    return worst


def _summary(found: list[Finding]) -> str:
    counts = {
        level: sum(finding.level == level for finding in found) for level in ("problem", "warning")
    }
    told = [count(number, level) for level, number in counts.items() if number]
    return f"{listed(told)}." if told else "Nothing is wrong."
