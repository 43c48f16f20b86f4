"""The command `watch`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

import click
from rich.live import Live
from rich.text import Text

from torchetcd import aio
from torchetcd._phrasing import clock, plain
from torchetcd.aio import Event, Run, RunNotFoundError
from torchetcd.cli.exit_codes import OK
from torchetcd.cli.interruptible import wait
from torchetcd.cli.options import run_argument, with_target
from torchetcd.cli.output import console, document, write_json_line
from torchetcd.cli.quorum_news import News, with_news
from torchetcd.cli.target import Target
from torchetcd.cli.views.event_text import sentence
from torchetcd.cli.views.run_tables import screen

# Events come in bursts of a thousand: a screen that shows each of them would be late for the last one.
_FRAME_S = 0.05
_LAST = 20


@click.command(short_help="Follow a run as things happen.")
@run_argument
@click.option("--once", is_flag=True, help="Show the run as it is now, and end.")
@with_target
def watch(target: Target, run: str, *, once: bool) -> int:
    """Follow a run: a screen in a terminal, a line for each event over a pipe.

    Nothing is asked again and again: etcd tells what happens. It goes on until Ctrl-C, also before the
    first node has come.
    """
    if target.json:
        wait(_lines(target, run, once=once, json=True))
    elif sys.stdout.isatty():
        wait(_screen(target, run, once=once))
    else:
        wait(_lines(target, run, once=once, json=False))
    return OK


async def _lines(target: Target, run: str, *, once: bool, json: bool) -> None:
    async with contextlib.aclosing(_told(target, run, once=once)) as events:
        async for event in events:
            if json:
                write_json_line(line_of(event))
            else:
                print(f"{clock(event.at)}  {_text(event)}", flush=True)
            if once:
                return


def _told(target: Target, run: str, *, once: bool) -> AsyncGenerator[Event | News, None]:
    events = events_of(target, run)
    # The first event says what the run is.
    return events if once else with_news(events, target)


def _text(event: Event | News) -> str:
    return event.text if isinstance(event, News) else sentence(event)


async def _screen(target: Target, run: str, *, once: bool) -> None:
    out = console()
    last: deque[str] = deque(maxlen=_LAST)
    changed = asyncio.Event()
    shown: list[Run] = []
    #: What is wrong with the quorum of a job, by entry.
    trouble: dict[str | None, str] = {}

    async def follow() -> None:
        async with contextlib.aclosing(_told(target, run, once=once)) as events:
            async for event in events:
                if not isinstance(event, aio.Snapshot):
                    last.append(f"{clock(event.at).split()[1]}  {_text(event)}")
                if not isinstance(event, News):
                    shown[:] = [event.run]
                elif event.is_whole:
                    trouble.clear()
                elif event.kind in ("MemberGone", "MajorityLost"):
                    trouble[event.entry] = event.text
                changed.set()
                if once:
                    return

    following = asyncio.create_task(follow())
    following.add_done_callback(lambda _: changed.set())
    try:
        with Live(
            Text(f"Waiting for run '{plain(run)}' ..."),
            console=out,
            auto_refresh=False,
            screen=not once,
            vertical_overflow="crop",
        ) as live:
            while True:
                await changed.wait()
                changed.clear()
                if shown:
                    live.update(
                        screen(shown[0], out.size.height, last, [*trouble.values()]), refresh=True
                    )
                if following.done():
                    break
                await asyncio.sleep(_FRAME_S)
    finally:
        following.cancel()
    await following


async def events_of(target: Target, run: str) -> AsyncGenerator[Event, None]:
    """Tell what happens in a run; that etcd is out of reach at the start is an error."""
    async with target.client() as client:
        # A watch waits for an etcd that is out of reach. At the start that is an error.
        with contextlib.suppress(RunNotFoundError):
            await client.describe(run, prefix=target.prefix)
        async for event in client.watch_run(run, prefix=target.prefix):
            yield event


def line_of(event: Event | News) -> dict[str, Any]:
    """Make the JSON of an event. The whole run is in snapshots only: it can have thousands of nodes."""
    if isinstance(event, News):
        named = {"event": event.kind, "at": event.at, "entry": event.entry}
        return {**named, "text": event.text}
    run = event.run
    fields: dict[str, Any] = {"event": type(event).__name__}
    for name in event.__dataclass_fields__:
        if name != "run":
            value = getattr(event, name)
            fields[name] = document(value) if isinstance(value, aio.Node) else value
    fields["state"] = run.state
    fields["run_round"] = run.round
    fields["counts"] = {
        "joined": len(run.joined),
        "members": len(run.members),
        "waiting": len(run.waiting),
        "spares": len(run.spares),
        "missing": len(run.missing),
    }
    fields["text"] = sentence(event)
    if isinstance(event, aio.Snapshot):
        fields["run"] = document(run)
    return fields
