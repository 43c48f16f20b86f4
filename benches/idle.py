"""What agents cost that only wait: CPU, calls to etcd, threads, memory; and the time of the import.

    python benches/idle.py                               # 100 agents, 60 s: about six minutes
    python benches/idle.py --agents 10 --seconds 10 --waiting 50 --imports 3

The agents are processes, forked after torch was imported, past the barrier of one world, with default
parameters. They are watched while

- idle: nobody calls anything;
- polled: each asks `num_nodes_waiting()` every 100 ms, as torchrun does it with its default
  `--monitor-interval`;
- the loop alone: the same loop without the call, because Python's own wake-ups are most of it.

Then so many nodes *wait*, half of them in the barrier of a round that is not full, half as spares of a
complete world; ten processes hold them, each node with its own client and connection. CPU time is the
kernel's, per process; calls, messages and CPU of etcd are from its metrics.
Threads, memory and import times are of fresh interpreters that have imported all that torchrun imports,
one node each; the same for c10d (its TCPStore host) where that has a meaning.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from etcd_load import Load, load
from forked import Forked
from report import Report, arguments, median
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

import torchetcd
from torchetcd.etcd import EtcdKeyNotFound
from torchetcd.etcd_server import EtcdServer, find_free_port

PROBE = Path(__file__).with_name("idle_probe.py")
LIMIT_S = 180
#: Before and after each time of watching, so that its begin and end are not in it.
MARGIN_S = 2
#: What follows a barrier: the first keep-alive opens a stream, and each node renews the run's lease once.
SETTLE_S = 12
POLL_S = 0.1
HOLDERS = 10


def parameters(endpoint: str, run_id: str, nodes: int) -> RendezvousParameters:
    return RendezvousParameters(
        "etcd-v3", endpoint, run_id, nodes, nodes, local_addr="127.0.0.1", join_timeout=3600
    )


def agent(connection: Connection, params: RendezvousParameters) -> None:
    handler = get_rendezvous_handler(params)
    handler.next_rendezvous()
    connection.send("joined")
    while True:
        way, seconds = connection.recv()
        deadline = time.monotonic() + seconds
        if way == "polled":
            _until(deadline, handler.num_nodes_waiting)
        elif way == "loop":
            _until(deadline, lambda: 0)


def _until(deadline: float, ask: Callable[[], int]) -> None:
    while time.monotonic() < deadline:
        if ask():
            raise RuntimeError("the world is no longer whole")
        time.sleep(POLL_S)


def holder(connection: Connection, nodes: list[RendezvousParameters]) -> None:
    """Many nodes that wait, without a thread for each to wait in."""
    handlers = []
    for params in nodes:
        handler = get_rendezvous_handler(params)
        handler._rdzv_impl._node.join("127.0.0.1", 1)
        handlers.append(handler)
    connection.send("waiting")
    while handlers:
        signal.pause()


class Watched:
    """What some processes and etcd did in a time."""

    def __init__(self, endpoint: str, processes: list[Forked], seconds: float) -> None:
        time.sleep(MARGIN_S)
        began, streams, load_before = time.monotonic(), messages(endpoint), load(endpoint)
        if not (load_before.revision and load_before.rpcs and streams):
            # A metric with another name would make a fine zero of anything.
            raise RuntimeError("this etcd does not tell its revision, calls or messages")
        before = [process.cpu_s() for process in processes]
        time.sleep(seconds)
        after = [process.cpu_s() for process in processes]
        self.seconds = time.monotonic() - began
        self.etcd: Load = load(endpoint) - load_before
        self.streams = messages(endpoint) - streams
        spent = (late - early for early, late in zip(before, after, strict=True))
        self.cpu_percent = [100 * cpu / self.seconds for cpu in spent]
        time.sleep(MARGIN_S)


def messages(endpoint: str) -> Counter[str]:
    """Messages on etcd's streams so far: one for what a client sent, one for what it got."""
    found: Counter[str] = Counter()
    with urllib.request.urlopen(f"http://{endpoint}/metrics") as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("grpc_server_msg_") and 'grpc_type="bidi_stream"' in line:
                name, _, value = line.rpartition(" ")
                found[name.split('grpc_method="')[1].split('"')[0]] += int(float(value))
    return found


def agents(report: Report, count: int, seconds: float) -> None:
    processes: list[Forked] = []
    with EtcdServer() as server:
        endpoint = server.get_endpoint()
        try:
            params = parameters(endpoint, "idle", count)
            processes += [Forked(agent, params) for _ in range(count)]
            for process in processes:
                assert process.receive(LIMIT_S) == "joined"
            # Now and at the end, less the one thread that a forked process begins with.
            threads = [process.threads() - 1 for process in processes]
            time.sleep(SETTLE_S)
            for way in ("idle", "polled", "loop"):
                for process in processes:
                    process.connection.send((way, seconds + 2 * MARGIN_S))
                _agents_rows(report, way, Watched(endpoint, processes, seconds), count)
            threads += [process.threads() - 1 for process in processes]
            report.add(value=max(threads), unit="", target="<= 4",
                       what=f"threads of the extension in an agent, the most of {count} agents")  # fmt: skip
        finally:
            for process in processes:
                process.kill()


def _agents_rows(report: Report, way: str, seen: Watched, count: int) -> None:
    names = {"idle": "idle", "polled": "num_nodes_waiting() 10 times a second"}
    name, target = names.get(way, "that loop without the call"), "<= 0.1" if way == "idle" else None
    cpu = seen.cpu_percent
    report.add(value=median(cpu), unit="%", target=target, what=f"CPU of an agent, {name}: median")
    report.add(value=max(cpu), unit="%", target=target, what=f"CPU of an agent, {name}: most")
    if way != "loop":
        _etcd_rows(report, seen, count, f"{count} agents, {name}")


def _etcd_rows(report: Report, seen: Watched, count: int, name: str) -> None:
    per_node = count * seen.seconds
    calls = ", ".join(f"{method} {number}" for method, number in sorted(seen.etcd.calls.items()))
    report.add(value=seen.etcd.rpcs / per_node, unit="/node/s", target="0",
               what=f"RPCs and new streams at etcd; {name} ({calls or 'none'})")  # fmt: skip
    for method, number in sorted(seen.streams.items()):
        report.add(value=number / per_node, unit="/node/s", target=None,
                   what=f"{method} messages, sent and received; {name}")  # fmt: skip
    report.add(value=(seen.etcd.received_bytes + seen.etcd.sent_bytes) / per_node, unit="B/node/s",
               target=None, what=f"bytes at etcd, sent and received; {name}")  # fmt: skip
    report.add(value=seen.etcd.revision, unit="", target="0",
               what=f"revisions etcd made in {seen.seconds:.0f} s; {name}")  # fmt: skip
    report.add(value=100 * seen.etcd.cpu_s / seen.seconds, unit="%", target=None,
               what=f"CPU of etcd; {name}")  # fmt: skip


def waiting(report: Report, count: int, seconds: float) -> None:
    processes: list[Forked] = []
    with EtcdServer() as server, server.get_client() as client:
        endpoint = server.get_endpoint()

        def keys(run_id: str, kind: str) -> int:
            path = f"/torchelastic/p2p/run_{run_id}/rdzv/round/1/{kind}"
            try:
                return sum(not leaf.dir for leaf in client.read(path, recursive=True).leaves)
            except EtcdKeyNotFound:
                return 0

        try:
            processes.append(Forked(agent, parameters(endpoint, "full", 1)))
            assert processes[0].receive(LIMIT_S) == "joined"
            joining, spare = count - count // 2, count // 2
            nodes = [parameters(endpoint, "not-full", joining + 1)] * joining
            nodes += [parameters(endpoint, "full", 1)] * spare
            holders = [Forked(holder, nodes[number::HOLDERS]) for number in range(HOLDERS)]
            processes += holders
            for process in holders:
                assert process.receive(LIMIT_S) == "waiting"
            deadline = time.monotonic() + LIMIT_S
            while (keys("not-full", "join"), keys("full", "waiting")) != (joining, spare):
                if time.monotonic() > deadline:
                    raise TimeoutError("not all of the nodes came to wait")
                time.sleep(0.2)
            time.sleep(SETTLE_S)
            seen = Watched(endpoint, holders, seconds)
            report.add(value=sum(seen.cpu_percent) / count, unit="%", target=None,
                       what=f"CPU of a node, {count} that wait in {HOLDERS} processes: mean")  # fmt: skip
            _etcd_rows(report, seen, count, f"{count} waiting nodes")
        finally:
            for process in processes:
                process.kill()


def interpreters(report: Report, count: int) -> None:
    found: dict[str, list[dict[str, Any]]] = {"etcd-v3": [], "c10d": []}
    with EtcdServer() as server:
        for number in range(count + 1):
            for backend, results in found.items():
                endpoint = server.get_endpoint()
                if backend == "c10d":
                    with find_free_port() as sock:
                        endpoint = f"127.0.0.1:{sock.getsockname()[1]}"
                result = probe(backend, endpoint)
                if number:  # the first one compiles the modules and fills the page cache
                    results.append(result)
    ours = found["etcd-v3"]
    parts = {
        "torchetcd": "import torchetcd, after torch",
        "register": "torchetcd.register()",
        "etcd_rendezvous": "import torchetcd.etcd_rendezvous, after torchrun's imports",
        "extension": "loading the extension",
    }
    for part, what in parts.items():
        each = [1000 * result["seconds"][part] for result in ours]
        report.add(value=median(each), unit="ms", target=None, what=what)
    each = [1000 * sum(result["seconds"].values()) for result in ours]
    report.add(value=median(each), unit="ms", target="< 30",
               what=f"all of that, median of {count} interpreters")  # fmt: skip
    for key, unit, target, what in (
        ("threads", "", "<= 4", "threads added by the first barrier"),
        ("VmRSS", "MiB", "<= 10", "resident memory added by import and first barrier"),
        ("VmRSS of imports", "MiB", None, "of that by the imports"),
        ("Private_Dirty", "MiB", "<= 10", "private dirty memory added by import and first barrier"),
        ("Private_Dirty of imports", "MiB", None, "of that by the imports"),
    ):
        for backend, results in found.items():
            value = median(result[key] for result in results)
            report.add(value=value, unit=unit, target=target if backend == "etcd-v3" else None,
                       what=what if backend == "etcd-v3" else f"the same, {backend}")  # fmt: skip


def probe(backend: str, endpoint: str) -> dict[str, Any]:
    # An installed package has its bytecode, so it is to be written here as well.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, str(PROBE), backend, endpoint]
    answer = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
    return json.loads(answer.stdout)


def extension(report: Report) -> None:
    from torchetcd import _torchetcd

    size = Path(_torchetcd.__file__).stat().st_size / 2**20
    report.add(value=size, unit="MiB", target=None, what="size of the extension")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60, help="of each time of watching")
    parser.add_argument("--waiting", type=int, default=1000, help="nodes that wait; 0 for none")
    parser.add_argument("--imports", type=int, default=10, help="fresh interpreters of each kind")
    args = parser.parse_args()
    # So that everything is put away when the benchmark is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    torchetcd.register()
    # What it is stands last: that text is long.
    report = Report("idle", ["value", "unit", "target", "what"], args.json)
    extension(report)
    if args.imports:
        interpreters(report, args.imports)
    if args.agents:
        agents(report, args.agents, args.seconds)
    if args.waiting:
        waiting(report, args.waiting, args.seconds)
    report.end()


if __name__ == "__main__":
    main()
