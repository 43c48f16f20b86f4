"""How long N agents take until the last one has its rank, and what it costs at etcd.

    python benches/rendezvous.py 2 32 256            # torchetcd
    python benches/rendezvous.py 2 32 --peer c10d    # and torch's c10d in the same run

Each agent is a process, forked after torch was imported, with min = max = N. Calls to etcd are counted
at etcd (its metrics). Prints a table, and JSON with `--json FILE`.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import time
import urllib.request
from collections import Counter
from pathlib import Path

from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

import torchetcd
from torchetcd.etcd_server import EtcdServer, find_free_port

LIMIT_S = 180


def calls(endpoint: str) -> Counter[str]:
    """What etcd has been asked so far, by method; bytes it sent and received."""
    found: Counter[str] = Counter()
    with urllib.request.urlopen(f"http://{endpoint}/metrics") as answer:
        for line in answer.read().decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name.startswith("grpc_server_started_total"):
                found[name.split('grpc_method="')[1].split('"')[0]] += int(float(value))
            elif name.startswith("etcd_network_client_grpc_"):
                found[name.removeprefix("etcd_network_client_grpc_")] += int(float(value))
    return found


def agent(params: RendezvousParameters, start, results, end) -> None:
    start.wait()
    handler = get_rendezvous_handler(params)
    try:
        info = handler.next_rendezvous()
        results.put((info.rank, info.world_size, time.monotonic()))
    except Exception as exc:
        results.put((type(exc).__name__, 0, time.monotonic()))
    end.wait()
    # Without the interpreter's end: N of them at once say nothing about a rendezvous.
    os._exit(0)


def measure(backend: str, n: int, server: EtcdServer) -> dict[str, object]:
    context = multiprocessing.get_context("fork")
    start, end, results = context.Event(), context.Event(), context.Queue()
    endpoint = server.get_endpoint()
    if backend == "c10d":
        with find_free_port() as sock:
            endpoint = f"localhost:{sock.getsockname()[1]}"
    agents = []
    for number in range(n):
        extra = {"is_host": number == 0} if backend == "c10d" else {}
        params = RendezvousParameters(backend, endpoint, f"{backend}-{n}", n, n, **extra)
        agents.append(context.Process(target=agent, args=(params, start, results, end)))
    for process in agents:
        process.start()
    time.sleep(1 + n / 100)  # until all of them wait for the start
    before = calls(server.get_endpoint())
    began = time.monotonic()
    start.set()
    try:
        places = [results.get(timeout=LIMIT_S) for _ in agents]
    finally:
        after = calls(server.get_endpoint())
        end.set()
        for process in agents:
            process.join()
    ranks = sorted(str(rank) for rank, _, _ in places)
    complete = ranks == sorted(map(str, range(n)))
    row: dict[str, object] = {"backend": backend, "n": n, "complete": complete}
    row["seconds"] = round(max(at for _, _, at in places) - began, 3)
    if backend != "c10d":
        spent = after - before
        row["rpcs"] = round(sum(v for k, v in spent.items() if "bytes" not in k) / n, 2)
        row["bytes"] = round(sum(v for k, v in spent.items() if "bytes" in k) / n)
        row["methods"] = {k: round(v / n, 2) for k, v in sorted(spent.items()) if "bytes" not in k}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", type=int, nargs="*", default=[2, 8, 32, 128, 256])
    parser.add_argument("--peer", action="append", default=[], help="also measure this backend")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torchetcd.register()
    gc.collect()
    gc.freeze()
    rows = []
    print(f"{'backend':10} {'N':>5} {'seconds':>8} {'RPCs/node':>10} {'bytes/node':>11}")
    for n in args.n:
        for backend in ["etcd-v3", *args.peer]:
            with EtcdServer() as server:
                row = measure(backend, n, server)
            rows.append(row)
            seconds = row["seconds"] if row["complete"] else "failed"
            print(
                f"{backend:10} {n:5} {seconds:>8} {row.get('rpcs', ''):>10} {row.get('bytes', ''):>11}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
