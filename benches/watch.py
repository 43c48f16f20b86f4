"""How long after an event `watch_run` reports it, and `torchetcd watch` shows it, in a run of many nodes.

    python benches/watch.py                       # 1,000 nodes, 100 events each: a minute
    python benches/watch.py --nodes 10000 --events 50

The nodes are keys, each under a lease of its own, as agents write them. Then one more node comes, again
and again: the time is that from before its key is sent to etcd until the event is there, and until its
name has come out of `torchetcd watch` on a terminal of 60 lines, which redraws 20 times a second at most.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Iterator

from report import Report, Row, arguments, median

from torchetcd import aio
from torchetcd._defaults import PREFIX
from torchetcd._torchetcd import run_lease
from torchetcd.aio._run_keys import RunKeys
from torchetcd.etcd import Client
from torchetcd.etcd_server import EtcdServer

LIMIT_S = 60
PAUSE_S = 0.1
AT_ONCE = 100


class Barrier:
    """An open round that nodes join."""

    def __init__(self, client: Client) -> None:
        self.run_id = uuid.uuid4().hex
        self._native = client._native
        self._keys = RunKeys.of(self.run_id, PREFIX)
        lease = run_lease(self._keys.base)
        self._native.lease_grant(3600, lease)
        control = {
            "v": 1,
            "round": 1,
            "state": "open",
            "previous": None,
            "by": "a",
            "at": 1,
            "why": "b",
        }
        self._native.txn([], [("put", self._keys.control, json.dumps(control).encode(), lease)], [])

    def join(self, hosts: list[str]) -> float:
        """Let nodes join, and return when their keys were sent."""
        puts = []
        for host in hosts:
            lease = self._native.lease_grant(3600)
            key = f"{self._keys.rdzv}round/1/join/{lease:016x}".encode()
            record = {
                "v": 1, "host": host, "pid": 1, "master_addr": host, "master_port": 1,
                "at": int(time.time()), "until": int(time.time()) + 600,
            }  # fmt: skip
            puts.append(("put", key, json.dumps(record).encode(), lease))
        sent = time.perf_counter()
        self._native.txn([], puts, [])
        return sent


def fill(barrier: Barrier, nodes: int) -> None:
    for first in range(0, nodes, AT_ONCE):
        barrier.join([f"host-{n:05}" for n in range(first, min(nodes, first + AT_ONCE))])


async def by_events(client: Client, barrier: Barrier, events: int) -> list[float]:
    """Seconds until `watch_run` has reported each event."""
    taken = []
    async with aio.Client(client.base_uri) as watcher:
        told = watcher.watch_run(barrier.run_id)
        await anext(told)
        for number in range(events):
            following = asyncio.ensure_future(anext(told))
            # It waits at etcd, as it does for most of its time.
            await asyncio.sleep(PAUSE_S)
            sent = await asyncio.to_thread(barrier.join, [f"event-{number:05}"])
            event = await following
            taken.append(time.perf_counter() - sent)
            assert isinstance(event, aio.Joined), event
        await told.aclose()
    return taken


def by_screen(client: Client, barrier: Barrier, events: int) -> list[float]:
    """Seconds until `torchetcd watch` has shown each event."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, 120, 0, 0))
    environment = os.environ | {"TORCHETCD_ENDPOINT": client.base_uri, "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "torchetcd.cli", "watch", barrier.run_id]
    with subprocess.Popen(
        command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        try:
            _await_text(ours, b"host-")
            taken = []
            for number in range(events):
                time.sleep(PAUSE_S)
                name = f"screen-{number:05}"
                sent = barrier.join([name])
                _await_text(ours, name.encode())
                taken.append(time.perf_counter() - sent)
        finally:
            process.kill()
            os.close(ours)
            os.close(theirs)
    return taken


def _await_text(terminal: int, text: bytes) -> None:
    shown = b""
    deadline = time.monotonic() + LIMIT_S
    while text not in shown:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([terminal], [], [], left)[0]:
            message = f"{text!r} is not shown after {LIMIT_S} s; at last {shown[-2000:]!r}"
            raise TimeoutError(message)
        shown = shown[-(1 << 16) :] + os.read(terminal, 1 << 16)


def _row(what: str, nodes: int, taken: list[float]) -> Row:
    ranked = sorted(taken)
    return {
        "what": what,
        "nodes": nodes,
        "events": len(taken),
        "median_ms": round(median(taken) * 1000, 2),
        "p99_ms": round(ranked[min(len(ranked) - 1, int(len(ranked) * 0.99))] * 1000, 2),
        "max_ms": round(ranked[-1] * 1000, 2),
    }


def rows(nodes: int, events: int, screen: bool) -> Iterator[Row]:
    with EtcdServer() as server, server.get_client() as client:
        barrier = Barrier(client)
        fill(barrier, nodes)
        yield _row("watch_run", nodes, asyncio.run(by_events(client, barrier, events)))
        if screen:
            yield _row("torchetcd watch", nodes, by_screen(client, barrier, events))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--no-screen", action="store_true", help="only the API")
    options = parser.parse_args()
    columns = ["what", "nodes", "events", "median_ms", "p99_ms", "max_ms"]
    report = Report("watch", columns, options.json)
    for row in rows(options.nodes, options.events, not options.no_screen):
        report.add(**row)
    report.end()


if __name__ == "__main__":
    main()
