"""How long N agents take until the last one has its rank, and what that costs.

    python benches/rendezvous.py --n 2 8 32 128 256 --repeat 3
    pip install --target peers python-etcd && python benches/rendezvous.py --peers peers

Each agent is a process, forked after torch was imported, with min = max = N. Right after its rendezvous it
does what torchrun's agent always does next, with torch's own code: `_assign_worker_ranks`, through the store
that the rendezvous returned. The backends take turns; each run has an etcd of its own. Columns:

- seconds: from the start until the last agent has its rank; ratio: to torchetcd's etcd-v3 at this N.
- assign_s: from then until the last agent has its assignment; total_s: both.
- agents_cpu_s: of all agents, each until its own rank. all_cpu_s, in the JSON: until the last assignment,
  c10d's store included, which is in the first agent.
- rpcs, bytes, puts: per node, counted by etcd until the last rank; etcd_cpu_s: in all, until then. They are
  from one more run in which the agents wait for each other before the assignment. A call of the v2 API counts
  as an RPC; etcd does not count its bytes. assign_rpcs, in the JSON: those of the assignment.

Seconds are medians. A backend that failed or took longer than the limit is not run with more agents.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import selectors
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import peers
from etcd_load import Load, load
from forked import Forked
from report import Report, Row, arguments, median
from torch.distributed.elastic.agent.server.api import SimpleElasticAgent
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

from torchetcd import etcd_rendezvous, etcd_rendezvous_backend
from torchetcd.etcd_server import find_free_port

Creator = Callable[[RendezvousParameters], RendezvousHandler]

# From when the last agent says that it goes to the gate until all of them wait there.
SETTLE_S = 0.2
SETUP_S = 120


class FailedError(Exception):
    """A rendezvous that was not complete."""


@dataclass
class Backend:
    """Where a handler comes from, and how its creator names the seconds that a round may take."""

    package: str
    name: str
    create: Creator | None
    timeout: str = "join_timeout"
    v2: bool = False

    @property
    def full_name(self) -> str:
        return f"{self.package}:{self.name}"


def _dynamic(create_backend: Callable[[RendezvousParameters], Any]) -> Creator:
    def create(params: RendezvousParameters) -> RendezvousHandler:
        backend, store = create_backend(params)
        return create_handler(store, backend, params)

    return create


def backends(with_v2: bool) -> list[Backend]:
    """All of them, or all that do without python-etcd.

    They are had from their creators: what the names "etcd" and "etcd-v2" stand for depends on what is
    installed. Their modules are imported here, before the agents are forked.
    """
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend

    known = [
        Backend("torchetcd", "etcd-v3", etcd_rendezvous.create_rdzv_handler),
        Backend("torchetcd", "etcd-v2", _dynamic(etcd_rendezvous_backend.create_backend)),
        Backend("torch", "c10d", _dynamic(create_backend)),
    ]
    if with_v2:
        from torch.distributed.elastic.rendezvous import etcd_rendezvous as torch_etcd
        from torch.distributed.elastic.rendezvous import etcd_rendezvous_backend as torch_backend

        known += [
            Backend("torch", "etcd", torch_etcd.create_rdzv_handler, "timeout", v2=True),
            Backend("torch", "etcd-v2", _dynamic(torch_backend.create_backend), v2=True),
        ]
    return known


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
    # torch's own etcd rendezvous logs every step of every agent to stderr.
    logging.disable(logging.WARNING)
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
    # torch's own method, which uses nothing of its agent.
    (worker,) = SimpleElasticAgent._assign_worker_ranks(
        None,
        info.store,
        info.rank,
        info.world_size,
        SimpleNamespace(role="bench", local_world_size=1),
    )
    return {
        "rank": info.rank,
        "world_size": info.world_size,
        "worker": (worker.global_rank, worker.world_size),
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


def run(backend: Backend, n: int, limit_s: float, counted: bool) -> Row:
    """One rendezvous: its times, or with `counted` what it cost at etcd."""
    with peers.etcd_server() as server:
        start, ranked = Gate(), Gate() if counted else None
        agents: list[Forked] = []
        try:
            for params in parameters(backend, n, server.get_endpoint(), limit_s):
                agents.append(Forked(agent, backend.create, params, start, ranked))
            collect(agents, SETUP_S)
            time.sleep(SETTLE_S + n / 500)
            cpu_before = sum(one.cpu_s() for one in agents)
            before = load(server.get_endpoint())
            began = time.monotonic()
            start.open()
            if ranked is not None:
                collect(agents, limit_s)
                at_ranks = load(server.get_endpoint())
                ranked.open()
            results = collect(agents, limit_s, since=began)
            check(results, n)
            if ranked is not None:
                row = cost(backend, n, at_ranks - before)
                row["assign_rpcs"] = (load(server.get_endpoint()) - at_ranks).rpcs / n
                return row
            ranked_at = max(result["ranked_at"] for result in results)
            assigned_at = max(result["assigned_at"] for result in results)
            return {
                "seconds": ranked_at - began,
                "assign_s": assigned_at - ranked_at,
                "total_s": assigned_at - began,
                "agents_cpu_s": sum(result["cpu_s"] for result in results),
                "all_cpu_s": sum(one.cpu_s() for one in agents) - cpu_before,
                "all_etcd_cpu_s": (load(server.get_endpoint()) - before).cpu_s,
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
    if backend.name == "c10d":
        with find_free_port() as sock:
            endpoint = f"localhost:{sock.getsockname()[1]}"
    found = []
    for number in range(n):
        # The host of the store is an agent: a TCPStore does not outlive a fork.
        host = {"is_host": number == 0} if backend.name == "c10d" else {}
        found.append(RendezvousParameters(backend.name, endpoint, **common, **config, **host))
    return found


def check(results: list[dict[str, Any]], n: int) -> None:
    ranks = sorted(result["rank"] for result in results)
    worlds = {result["world_size"] for result in results}
    if ranks != list(range(n)) or worlds != {n}:
        raise FailedError(f"ranks {ranks} in worlds of {sorted(worlds)}")
    if any(result["worker"] != (result["rank"], n) for result in results):
        raise FailedError("wrong worker ranks")


def cost(backend: Backend, n: int, spent: Load) -> Row:
    row: Row = {
        "rpcs": spent.rpcs / n,
        "puts": (spent.v2_writes if backend.v2 else spent.puts) / n,
        "etcd_cpu_s": spent.cpu_s,
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
                elif backend.name != "c10d":
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
            row |= {key: median(one[key] for one in runs[name]) for key in runs[name][0]}
            row["runs_s"] = [one["seconds"] for one in runs[name]]
            row |= costs.get(name, {})
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--n", type=int, nargs="+", default=[2, 8, 32, 128, 256])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit", type=float, default=120, help="seconds that a run may take")
    parser.add_argument("--only", nargs="+", metavar="PACKAGE:BACKEND", help="such as torch:c10d")
    peers.add_argument(parser)
    args = parser.parse_args()
    # It skips the step that is measured.
    os.environ.pop("TORCH_ELASTIC_WORKER_IDENTICAL", None)
    missing = peers.missing(args.peers)
    chosen = backends(missing is None)
    why_not: dict[str, str] = {}
    if missing is not None:
        for name in ("etcd", "etcd-v2"):
            chosen.append(Backend("torch", name, None, v2=True))
            why_not[chosen[-1].full_name] = missing
    if args.only:
        if unknown := set(args.only) - {backend.full_name for backend in chosen}:
            parser.error(f"there is no {', '.join(sorted(unknown))}")
        chosen = [backend for backend in chosen if backend.full_name in args.only]
    columns = "package backend n complete seconds ratio assign_s total_s agents_cpu_s etcd_cpu_s "
    columns += "rpcs bytes puts note"
    report = Report("rendezvous", columns.split(), args.json)
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


if __name__ == "__main__":
    main()
