"""How long N agents take until the last one has its rank, and what that costs.

    python benches/rendezvous.py --n 2 8 32 64 128 256 --repeat 3
    python benches/rendezvous.py --peers DIR    # the other packages' folder: see `.bench` in the Makefile

Each agent is a process, forked after torch was imported, with min = max = N. Right after its rendezvous it
does what torchrun's agent always does next, with torch's own code: `_assign_worker_ranks`, through the store
that the rendezvous returned. The backends take turns; each run has an etcd of its own.

Names are not looked up: opening a TCPStore asks for one, and where a resolver drops some of many questions
glibc waits 5 s, which says nothing about a store. For that the benchmark starts itself again in a mount
namespace whose nsswitch.conf says `hosts: files`; `--look-ups` leaves that out. torchft and NVRx come from
the folder of the peers, too; torchft has no store, so that nothing is assigned there. Columns:

- seconds: from the start until the last agent has its rank; ratio: to torchetcd's etcd-v3 at this N.
- assign_s: from then until the last agent has its assignment; total_s: both.
- agent_cpu_ms: per agent, until its own rank. all_cpu_s, in the JSON: of all until the last assignment,
  c10d's store included, which is in the first agent.
- server_cpu_s: of etcd, or of torchft's lighthouse, in all, until the last rank; rpcs, bytes, puts: per node,
  counted by etcd until then. They are from one more run in which the agents wait for each other before the
  assignment. A call of the v2 API counts as an RPC; etcd does not count its bytes. assign_rpcs, in the JSON:
  those of the assignment.

Seconds are medians. A backend that failed or took longer than the limit is not run with more agents.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import peers
from backends import Backend, Creator, all_backends
from etcd_load import Load, load
from forked import Forked, be_silent
from lighthouse import Lighthouse
from look_ups import without_look_ups
from report import Report, Row, arguments, median
from torch.distributed.elastic.agent.server.api import SimpleElasticAgent
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

from torchetcd.etcd_server import EtcdServer

# From when the last agent says that it goes to the gate until all of them wait there.
SETTLE_S = 0.2
SETUP_S = 120


class FailedError(Exception):
    """A rendezvous that was not complete."""


class Gate:
    """What forked processes wait at until it is opened: the end of a pipe, which wakes all at once."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def wait(self) -> None:
        """In a child, once; the gate is open when all children are here and the parent opens it."""
        os.close(self._write)
        os.read(self._read, 1)

    def open(self) -> None:
        os.close(self._write)
        self._write = -1

    def close(self) -> None:
        os.close(self._read)
        if self._write != -1:
            os.close(self._write)


def agent(
    connection: Connection,
    create: Creator,
    params: RendezvousParameters,
    start: Gate,
    ranked: Gate | None,
) -> None:
    """One agent: says None when it stands at a gate, at last its result or what went wrong."""
    # torch's own etcd rendezvous logs every step of every agent to stderr, torchft's native half too.
    logging.disable(logging.WARNING)
    be_silent()
    # Its lease threads end with a traceback: python-etcd cannot refresh a directory.
    threading.excepthook = lambda _: None
    connection.send(None)
    start.wait()
    handlers: list[RendezvousHandler] = []
    try:
        connection.send(_take_part(connection, lambda: create(params), handlers, ranked))
    except Exception as exc:
        connection.send(f"{type(exc).__name__}: {exc}"[:200])
    # Until it is killed: the others may need the store that one of them hosts.
    connection.poll(None)


def _take_part(
    connection: Connection,
    create: Callable[[], RendezvousHandler],
    handlers: list[RendezvousHandler],
    ranked: Gate | None,
) -> dict[str, Any]:
    """Puts its handler into `handlers`: whose handler is gone has left the world."""
    before = time.process_time()
    handlers.append(create())
    info = handlers[0].next_rendezvous()
    ranked_at = time.monotonic()
    cpu_s = time.process_time() - before
    if ranked is not None:
        connection.send(None)
        ranked.wait()
    place = info.rank, info.world_size
    if info.store is not None:
        # torch's own method, which uses nothing of its agent.
        (worker,) = SimpleElasticAgent._assign_worker_ranks(
            None, info.store, *place, SimpleNamespace(role="bench", local_world_size=1)
        )
        if (worker.global_rank, worker.world_size) != place:
            raise FailedError(f"{place} became {worker.global_rank, worker.world_size}")
    return {
        "rank": info.rank,
        "world_size": info.world_size,
        "ranked_at": ranked_at,
        "assigned_at": time.monotonic(),
        "cpu_s": cpu_s,
    }


def collect(agents: list[Forked], limit_s: float, since: float | None = None) -> list[Any]:
    """One message of each agent."""
    deadline = (time.monotonic() if since is None else since) + limit_s
    messages = []
    # Registered once: this process must not take the cores from hundreds of agents.
    with selectors.DefaultSelector() as waiting:
        for one in agents:
            waiting.register(one.connection, selectors.EVENT_READ)
        while waiting.get_map():
            ready = waiting.select(max(deadline - time.monotonic(), 0))
            if not ready:
                count = len(waiting.get_map())
                raise FailedError(f"{count} of {len(agents)} agents not done in {limit_s:g} s")
            for key, _ in ready:
                waiting.unregister(key.fileobj)
                try:
                    message = key.fileobj.recv()
                except (EOFError, ConnectionError):
                    raise FailedError("an agent died") from None
                if isinstance(message, str):
                    # What another agent says may be the cause of it.
                    raise FailedError("; ".join([message, *failures(waiting)]))
                messages.append(message)
    return messages


def failures(waiting: selectors.BaseSelector) -> list[str]:
    """What else went wrong at the same time."""
    found = []
    for key, _ in waiting.select(1):
        with contextlib.suppress(EOFError, ConnectionError):
            message = key.fileobj.recv()
            if isinstance(message, str) and message not in found:
                found.append(message)
    return found


def _quiet_port() -> int:
    """A free port below the range of outgoing connections: nobody takes it before the store listens."""
    while True:
        port = random.randrange(15000, 32000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Server:
    """Whom the nodes of a run meet at, and what it was asked."""

    def __init__(self, backend: Backend, etcd: EtcdServer, lighthouse: Lighthouse | None) -> None:
        self._backend = backend
        self._etcd = etcd
        self._lighthouse = lighthouse

    @property
    def address(self) -> str:
        if self._lighthouse is not None:
            return self._lighthouse.address
        if self._backend.server == "first":
            return f"localhost:{_quiet_port()}"
        return self._etcd.get_endpoint()

    def load(self) -> Load:
        return load(self._etcd.get_endpoint())

    def cpu_s(self) -> float:
        return self._lighthouse.cpu_s() if self._lighthouse is not None else self.load().cpu_s


@contextlib.contextmanager
def served(backend: Backend, n: int) -> Iterator[Server]:
    """Run what the nodes meet at."""
    with contextlib.ExitStack() as stack:
        etcd = stack.enter_context(peers.etcd_server())
        lighthouse = None
        if backend.server == "lighthouse":
            lighthouse = stack.enter_context(contextlib.closing(Lighthouse(n)))
        yield Server(backend, etcd, lighthouse)


def run(backend: Backend, n: int, limit_s: float, counted: bool) -> Row:
    """One rendezvous: its times, or with `counted` what it cost at the server."""
    with served(backend, n) as server:
        start, ranked = Gate(), Gate() if counted else None
        agents: list[Forked] = []
        try:
            for params in parameters(backend, n, server.address, limit_s):
                agents.append(Forked(agent, backend.create, params, start, ranked))
            collect(agents, SETUP_S)
            time.sleep(SETTLE_S + n / 500)
            cpu_before = sum(one.cpu_s() for one in agents)
            before, server_cpu_before = server.load(), server.cpu_s()
            began = time.monotonic()
            start.open()
            if ranked is not None:
                collect(agents, limit_s)
                at_ranks, server_cpu = server.load(), server.cpu_s()
                ranked.open()
            results = collect(agents, limit_s, since=began)
            check(results, n)
            if ranked is not None:
                row = cost(backend, n, at_ranks - before) if backend.server == "etcd" else {}
                row["server_cpu_s"] = server_cpu - server_cpu_before
                row["assign_rpcs"] = (server.load() - at_ranks).rpcs / n
                return row
            ranked_at = max(result["ranked_at"] for result in results)
            assigned_at = max(result["assigned_at"] for result in results)
            return {
                "seconds": ranked_at - began,
                # torchft has no store to assign anything by.
                "assign_s": assigned_at - ranked_at if backend.server != "lighthouse" else None,
                "total_s": assigned_at - began,
                "agent_cpu_ms": sum(result["cpu_s"] for result in results) / n * 1000,
                "all_cpu_s": sum(one.cpu_s() for one in agents) - cpu_before,
                "all_server_cpu_s": server.cpu_s() - server_cpu_before,
            }
        finally:
            # All at once: one that is left alone says so at length.
            for one in agents:
                with contextlib.suppress(ProcessLookupError):
                    one.signal(signal.SIGKILL)
            for one in agents:
                one.kill()
            start.close()
            if ranked is not None:
                ranked.close()


def parameters(
    backend: Backend, n: int, endpoint: str, limit_s: float
) -> list[RendezvousParameters]:
    # Only so that no agent outlives this process for long; the limit is kept by `collect`.
    config: dict[str, Any] = {backend.timeout: int(limit_s) + 10}
    # As torch would find it by itself, without asking a name server.
    common = {"run_id": f"bench-{n}", "min_nodes": n, "max_nodes": n, "local_addr": "127.0.0.1"}
    found = []
    for number in range(n):
        # The host of the store is an agent: a TCPStore does not outlive a fork.
        host = {"is_host": number == 0} if backend.server == "first" else {}
        found.append(RendezvousParameters(backend.name, endpoint, **common, **config, **host))
    return found


def check(results: list[dict[str, Any]], n: int) -> None:
    ranks = sorted(result["rank"] for result in results)
    worlds = {result["world_size"] for result in results}
    if ranks != list(range(n)) or worlds != {n}:
        raise FailedError(f"ranks {ranks} in worlds of {sorted(worlds)}")


def cost(backend: Backend, n: int, spent: Load) -> Row:
    row: Row = {
        "rpcs": spent.rpcs / n,
        "puts": (spent.v2_writes if backend.v2 else spent.puts) / n,
        "messages": spent.messages / n,
        "methods": {name: count / n for name, count in sorted(spent.calls.items())},
    }
    if not backend.v2:
        row["bytes"] = (spent.received_bytes + spent.sent_bytes) / n
        row["received_bytes"] = spent.received_bytes / n
        row["sent_bytes"] = spent.sent_bytes / n
    return row


def measure(using: list[Backend], n: int, repeat: int, limit_s: float) -> dict[str, Row]:
    """Rows by the full name of a backend."""
    costs: dict[str, Row] = {}
    runs: dict[str, list[Row]] = {backend.full_name: [] for backend in using}
    failed: dict[str, str] = {}
    for number in range(repeat + 1):
        for backend in using:
            name = backend.full_name
            if name in failed:
                continue
            try:
                # The run that counts comes first: it also warms up.
                if number:
                    runs[name].append(run(backend, n, limit_s, counted=False))
                elif backend.server != "first":
                    costs[name] = run(backend, n, limit_s, counted=True)
            except FailedError as exc:
                failed[name] = str(exc)
    rows: dict[str, Row] = {}
    for backend in using:
        name = backend.full_name
        row = rows[name] = {"package": backend.package, "backend": backend.name, "n": n}
        row["complete"] = name not in failed
        if name in failed:
            row["note"] = failed[name]
        elif runs[name]:
            for key, value in runs[name][0].items():
                row[key] = None if value is None else median(one[key] for one in runs[name])
            row["runs_s"] = [one["seconds"] for one in runs[name]]
            row |= costs.get(name, {})
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--n", type=int, nargs="+", default=[2, 8, 32, 64, 128, 256])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit", type=float, default=120, help="seconds that a run may take")
    parser.add_argument("--only", nargs="+", metavar="PACKAGE:BACKEND", help="such as torch:c10d")
    parser.add_argument("--look-ups", action="store_true", help="let names be looked up")
    peers.add_argument(parser)
    args = parser.parse_args()
    # It skips the step that is measured.
    os.environ.pop("TORCH_ELASTIC_WORKER_IDENTICAL", None)
    looks_up = args.look_ups or not without_look_ups()
    missing = peers.missing(args.peers)
    chosen, why_not = all_backends(missing is None)
    why_not |= {one.full_name: missing for one in chosen if one.v2 and missing is not None}
    if args.only:
        if unknown := set(args.only) - {backend.full_name for backend in chosen}:
            parser.error(f"there is no {', '.join(sorted(unknown))}")
        chosen = [backend for backend in chosen if backend.full_name in args.only]
    columns = "package backend n complete seconds ratio assign_s total_s agent_cpu_ms server_cpu_s "
    columns += "rpcs bytes puts note"
    report = Report("rendezvous", columns.split(), args.json, name_look_ups=looks_up)
    # NVRx logs what others log.
    logging.disable(logging.INFO)
    # The agents share the memory of what was imported as long as nobody touches it.
    gc.collect()
    gc.freeze()
    for n in args.n:
        using = [backend for backend in chosen if backend.full_name not in why_not]
        rows = measure(using, n, max(args.repeat, 1), args.limit)
        own = rows.get("torchetcd:etcd-v3", {}).get("seconds")
        for backend in chosen:
            name = backend.full_name
            if name not in rows:
                place = {"package": backend.package, "backend": backend.name, "n": n}
                report.add(**place, complete=None, note=why_not[name])
                continue
            row = rows[name]
            if own and "seconds" in row:
                row["ratio"] = row["seconds"] / own
            if not row["complete"]:
                why_not[name] = f"failed at N = {n}"
            report.add(**row)
    report.end()
    # Without the interpreter's end: what comes with the peers complains then of what it has leaked.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
