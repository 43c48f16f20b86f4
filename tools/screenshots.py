"""Draw the pictures of docs/img/ from a real run: real nodes, as processes, on a real etcd.

The story: four nodes are to train, one comes late; one more waits as a spare; a node is killed, and the
spare takes its place; an operator closes the run.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.processes.nodes import Node  # noqa: E402 - found by the line above
from support.processes.nodes import Run as Nodes  # noqa: E402
from torchetcd import aio  # noqa: E402
from torchetcd.cli.timeline.html import as_html  # noqa: E402
from torchetcd.cli.timeline.png import as_png  # noqa: E402
from torchetcd.cli.views.event_text import sentence  # noqa: E402
from torchetcd.cli.views.run_tables import details, screen  # noqa: E402
from torchetcd.diagnosis import explain  # noqa: E402
from torchetcd.etcd_server import EtcdServer  # noqa: E402

RUN = "train-7b"
WIDTH, HEIGHT = 96, 26
# A paragraph, which is to be legible on a telephone too.
NARROW = 64
PATIENCE_S = 60.0
# rich would have the browser load a font: pictures need no network.
_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def main() -> int:
    """Play the story and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "img")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with EtcdServer() as server, server.get_client() as client:
        endpoint = server.get_endpoint()
        watcher = Watcher(endpoint)
        with Nodes(endpoint, client, RUN) as nodes:
            play(nodes, endpoint, out)
        story = asyncio.run(_timeline(endpoint))
        watcher.stop()
    draw(out / "watch.svg", f"torchetcd watch {RUN}", [watcher.screen()])
    (out / "timeline.html").write_text(as_html(story), encoding="utf-8")
    (out / "timeline.png").write_bytes(as_png(story))
    for path in sorted(out.iterdir()):
        print(f"{path} ({path.stat().st_size} bytes)")
    return 0


def play(nodes: Nodes, endpoint: str, out: Path) -> None:
    """Play the story."""

    def start(number: int) -> Node:
        node = nodes.node(4, 4, node_id=f"worker-{number}", keep_alive_ttl=2)
        node.start("join")
        return node

    first = []
    for number in (0, 1, 3):
        first.append(start(number))
        time.sleep(1.1)
    nodes.await_joined(3)
    time.sleep(3)
    run, story = asyncio.run(_described(endpoint)), asyncio.run(_timeline(endpoint))
    draw(out / "why.svg", f"torchetcd why {RUN}", [Text(explain(run, timeline=story))], NARROW)

    first.append(start(2))
    for node in first:
        node.finish(PATIENCE_S)
    time.sleep(2)
    spare = start(4)
    nodes.await_waiting(1)
    time.sleep(2)
    draw(out / "show.svg", f"torchetcd show {RUN}", [details(asyncio.run(_described(endpoint)))])

    first[1].kill()
    left = [first[0], first[2], first[3]]
    for node in left:
        node.call("await_waiting", PATIENCE_S, timeout=PATIENCE_S)
        node.start("join")
        time.sleep(0.7)
    for node in (*left, spare):
        node.finish(PATIENCE_S)
    time.sleep(3)
    asyncio.run(_close(endpoint))
    for node in (*left, spare):
        node.call("shutdown")
        time.sleep(0.3)


async def _described(endpoint: str) -> aio.Run:
    async with aio.Client(endpoint) as client:
        return await client.describe(RUN, leases=True)


async def _timeline(endpoint: str) -> aio.Timeline:
    async with aio.Client(endpoint) as client:
        return await client.timeline(RUN)


async def _close(endpoint: str) -> None:
    async with aio.Client(endpoint) as client:
        await client.close_run(RUN, "the loss is not a number since step 41000", "ann@ops")


class Watcher:
    """Keeps all events of the run, as `torchetcd watch` sees them."""

    def __init__(self, endpoint: str) -> None:
        self._events: list[aio.Event] = []
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._follow(endpoint))
        self._thread = threading.Thread(target=self._turn)
        self._thread.start()

    def _turn(self) -> None:
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        finally:
            self._loop.close()

    async def _follow(self, endpoint: str) -> None:
        async with aio.Client(endpoint) as client:
            async for event in client.watch_run(RUN):
                self._events.append(event)

    def stop(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def screen(self) -> RenderableType:
        """Give the screen right after the second node had come back."""
        for position, event in enumerate(self._events):
            if (
                isinstance(event, aio.Joined)
                and event.run.round == 2
                and len(event.run.joined) == 3
            ):
                past = self._events[1 : position + 1]
                last = [
                    f"{time.strftime('%H:%M:%S', time.gmtime(one.at))}  {sentence(one)}"
                    for one in past
                ]
                return screen(event.run, HEIGHT, last)
        raise RuntimeError("The second round never had three nodes.")


def draw(path: Path, command: str, parts: Sequence[RenderableType], width: int = WIDTH) -> None:
    """Draw what a terminal shows after a command."""
    console = Console(record=True, width=width, file=open("/dev/null", "w"), highlight=False)  # noqa: SIM115
    console.print(Text.assemble(("$ ", "dim"), (command, "bold")))
    for part in parts:
        console.print(part, markup=False)
    drawn = console.export_svg(title="", unique_id=path.stem)
    path.write_text(_FONTS.sub("", drawn), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
