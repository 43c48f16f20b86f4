"""What an operation of the store takes, beside torch's stores and etcd's own client.

    python benches/store.py --seconds 2 --raw PATH    # PATH: the Rust program with etcd-client's bare calls
    pip install --target peers python-etcd && python benches/store.py --peers peers

- Latency, in one process: median, mean and 99th percentile in microseconds of set, get, check, add, and of
  multi_get, multi_set and wait for 1,000 existing keys. Values have 45 bytes. TCPStore's set and
  multi_set return when the request is sent, without an answer.
- "wake get" and "wake wait": from right before set() in one process until get() or wait() has returned in
  another, which has been waiting for some milliseconds; "wake set" is what set() took meanwhile. "wake
  busy" is "wake get" while a third process sets another key every millisecond or so.
- "add x N": calls per second of N processes that add to one key. The sum is checked.
- RPCs of a call, counted by etcd; "wait 1" and "wait 1000" are waits for absent keys, and their RPCs only
  those of two seconds in the midst of it.

The stores take turns in short slices, so that what else the machine does hits all alike. The columns raw,
raw_mt, TCPStore and torch are torchetcd's figure divided by theirs: of times, below 1 is faster than they; of
rates, above 1. raw is a client on a runtime of one thread, raw_mt on one of several. They stand for a put
beside set, for a get beside get and check, and beside a wake for a put and 1.5 gets, each after a pause of
5 ms. Their medians and percentiles are the medians of those of the slices.
"""

from __future__ import annotations

import gc
import json
import logging
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import peers
from etcd_load import Load, load
from forked import Forked
from report import Report, Row, arguments, median
from torch.distributed import Store, TCPStore

from torchetcd.etcd import Client
from torchetcd.etcd_store import EtcdStore

VALUE = b"value of the key that is measured: " + b"x" * 10
MANY = 1000
MANY_KEYS = [f"key-{number}" for number in range(MANY)]
TIMEOUT = timedelta(seconds=120)
# How long the waiting process gets until it really waits.
BLOCKED_S = 0.005
DISTURB_S = 0.001
WAIT_S = 2.0
SLICE_S = 0.2
# A process with a connection needs longer to start; and torch's add sleeps up to 0.1 s after a conflict.
RATE_SLICE_S = 1.0
LIMIT_S = 300.0
OWN = "torchetcd"
TCP = "TCPStore"
TORCH = "torch"
RAW = {"current_thread": "raw", "multi_thread": "raw_mt"}

Samples = dict[tuple[str, str], list[float]]


@dataclass
class Where:
    """What a process needs to connect to all stores."""

    endpoint: str
    tcp_port: int
    stores: list[str]
    raw: Path | None

    @property
    def etcd_port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])


class Stores:
    """The connections of one process, and stores with names of their own."""

    def __init__(self, where: Where) -> None:
        # torch's etcd modules log to stderr.
        logging.disable(logging.WARNING)
        self._client = Client(port=where.etcd_port)
        self._tcp = TCPStore("localhost", where.tcp_port, wait_for_workers=False, timeout=TIMEOUT)
        self._peer = None
        if TORCH in where.stores:
            import etcd

            self._peer = etcd.Client(port=where.etcd_port, allow_reconnect=True)

    @contextmanager
    def open(self, name: str, prefix: str) -> Iterator[Store]:
        """A store of the keys below a prefix; TCPStore has only one, with all keys."""
        if name == TCP:
            yield self._tcp
        elif name == TORCH:
            from torch.distributed.elastic.rendezvous.etcd_store import EtcdStore as TorchStore

            yield TorchStore(self._peer, f"/bench/torch/{prefix}", TIMEOUT)
        else:
            with EtcdStore(self._client, f"/bench/{prefix}", TIMEOUT) as store:
                yield store


def serve(connection: Connection) -> None:
    """TCPStore's server: in a process of its own, as it does not outlive a fork."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
    connection.send(store.port)
    connection.poll(None)


def operations(one: Store, many: Store) -> dict[str, Callable[[], object]]:
    """Calls by their names; `many` has 1,000 keys, which torch's EtcdStore reads at every call."""
    values = [VALUE] * MANY
    one.set("key", VALUE)
    many.multi_set(MANY_KEYS, values)
    return {
        "set": lambda: one.set("key", VALUE),
        "get": lambda: one.get("key"),
        "check": lambda: one.check(["key"]),
        "add": lambda: one.add("counter", 1),
        "multi_get": lambda: many.multi_get(MANY_KEYS),
        "multi_set": lambda: many.multi_set(MANY_KEYS, values),
        "wait": lambda: many.wait(MANY_KEYS),
    }


def latency(connection: Connection, where: Where, seconds: float) -> None:
    """Send the samples of all operations, in microseconds, and what the raw client said."""
    stores = Stores(where)
    samples: Samples = {}
    raws: list[dict[str, Any]] = []
    with ExitStack() as stack:
        calls = {}
        for name in where.stores:
            one, many = (stack.enter_context(stores.open(name, part)) for part in ("one", "many"))
            for operation, call in operations(one, many).items():
                calls[operation, name] = call
                samples[operation, name] = []
        # By operation and then by store: what is compared is measured close together.
        order = sorted(calls, key=lambda key: list(calls).index((key[0], where.stores[0])))
        spent = dict.fromkeys(order, 0.0)
        while any(took < seconds for took in spent.values()):
            for key in order:
                if spent[key] < seconds:
                    spent[key] += _slice(calls[key], samples[key])
                    # TCPStore may have thousands of sets still to do, at the cost of the next store.
                    calls["check", key[1]]()
            if where.raw is not None:
                raws.append(_raw_latency(where))
    connection.send((samples, raws))


def _slice(call: Callable[[], object], samples: list[float]) -> float:
    began = now = time.perf_counter_ns()
    while now - began < SLICE_S * 1e9:
        before = time.perf_counter_ns()
        call()
        now = time.perf_counter_ns()
        samples.append((now - before) / 1e3)
    return (now - began) / 1e9


def _raw_latency(where: Where) -> dict[str, Any]:
    command = [str(where.raw), "latency", where.endpoint, str(3 * SLICE_S)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def wait_for_keys(
    connection: Connection, ends: tuple[Connection, Connection], where: Where
) -> None:
    """Wait for the keys that `set_keys` is about to set, and tell it when it woke."""
    other, peer = ends
    # So that neither waits for the other when that has died.
    other.close()
    stores = Stores(where)
    connection.send(None)
    while True:
        name, prefix = peer.recv()
        with stores.open(name, prefix) as store:
            while (told := peer.recv()) is not None:
                kind, key = told
                call = store.wait if kind == "wait" else store.get
                peer.send(None)
                call([key] if kind == "wait" else key)
                peer.send(time.monotonic_ns())


def disturb(connection: Connection, ends: tuple[Connection, Connection], where: Where) -> None:
    """Write to a store, while told to, what nobody waits for."""
    other, peer = ends
    other.close()
    stores = Stores(where)
    connection.send(None)
    while True:
        with stores.open(peer.recv(), "disturbing") as store:
            while not peer.poll(DISTURB_S):
                store.set("disturbing", VALUE)
        peer.recv()


def set_keys(
    connection: Connection,
    ends: tuple[Connection, Connection],
    disturber_ends: tuple[Connection, Connection],
    where: Where,
    seconds: float,
) -> None:
    """Send samples of wakes, in microseconds, and of the sets that woke."""
    (peer, other), (disturber, its) = ends, disturber_ends
    other.close()
    its.close()
    stores = Stores(where)
    kinds = ("get", "wait", "busy")
    samples: Samples = {
        (f"wake {what}", name): [] for what in (*kinds, "set") for name in where.stores
    }
    number = 0
    end = time.monotonic() + seconds * len(kinds) * len(where.stores)
    while time.monotonic() < end:
        for kind in kinds:
            for name in where.stores:
                # Keys that stay would make torch's EtcdStore slower with each wake.
                number += 1
                prefix = f"wake-{number}"
                peer.send((name, prefix))
                if kind == "busy":
                    disturber.send(name)
                with stores.open(name, prefix) as store:
                    until = time.monotonic() + SLICE_S
                    count = 0
                    while time.monotonic() < until:
                        count += 1
                        key = f"{prefix}-{count}"
                        peer.send((kind, key))
                        peer.recv()
                        time.sleep(BLOCKED_S)
                        before = time.monotonic_ns()
                        store.set(key, VALUE)
                        after = time.monotonic_ns()
                        samples[f"wake {kind}", name].append((peer.recv() - before) / 1e3)
                        if kind != "busy":
                            samples["wake set", name].append((after - before) / 1e3)
                peer.send(None)
                if kind == "busy":
                    disturber.send(None)
    connection.send(samples)


def adder(connection: Connection, where: Where, key: str) -> None:
    """Add 1 as often as possible during slices that the parent names; at last tell the sum."""
    stores = Stores(where)
    with ExitStack() as stack:
        opened = {name: stack.enter_context(stores.open(name, key)) for name in where.stores}
        connection.send(None)
        while True:
            name, begin, end = connection.recv()
            if begin is None:
                connection.send(opened[name].add(key, 0))
                continue
            time.sleep(max(begin - time.monotonic(), 0))
            in_time = late = 0
            while time.monotonic() < end:
                opened[name].add(key, 1)
                if time.monotonic() < end:
                    in_time += 1
                else:
                    # Begun in time, so it counts in the sum, but not in the rate.
                    late += 1
            connection.send((in_time, in_time + late))


@contextmanager
def forked(*targets: tuple[Any, ...]) -> Iterator[list[Forked]]:
    started: list[Forked] = []
    try:
        for target, *arguments_ in targets:
            started.append(Forked(target, *arguments_))
        yield started
    finally:
        for process in started:
            process.kill()


def contended(where: Where, processes: int, seconds: float) -> list[Row]:
    """Rates of all stores, and of the raw client's processes."""
    rates: dict[str, list[float]] = {name: [] for name in where.stores}
    sums = dict.fromkeys(where.stores, 0)
    raw: dict[str, list[float]] = {"put": [], "add": []}
    with forked(*[(adder, where, f"adds-{processes}")] * processes) as adders:
        for one in adders:
            one.receive(LIMIT_S)
        for _ in range(max(round(seconds / RATE_SLICE_S), 1)):
            for name in where.stores:
                begin = time.monotonic() + 0.1 + processes / 500
                for one in adders:
                    one.connection.send((name, begin, begin + RATE_SLICE_S))
                counts = [one.receive(LIMIT_S) for one in adders]
                rates[name].append(sum(in_time for in_time, _ in counts) / RATE_SLICE_S)
                sums[name] += sum(total for _, total in counts)
            for kind, found in raw.items() if where.raw is not None else ():
                found.append(_raw_rate(where, processes, kind))
        rows = []
        for name in where.stores:
            adders[0].connection.send((name, None, None))
            value = adders[0].receive(LIMIT_S)
            row = {"kind": "rate", "operation": f"add x {processes}", "store": name}
            row |= {"processes": processes, "rate": median(rates[name]), "adds": sums[name]}
            row["exact"] = value == sums[name]
            if not row["exact"]:
                row["note"] = f"WRONG SUM {value}, not {sums[name]}"
            rows.append(row)
    for kind, found in raw.items():
        if found:
            row = {"kind": "rate", "operation": f"{kind} x {processes}", "store": "raw"}
            rows.append(row | {"processes": processes, "rate": median(found)})
    return rows


def _raw_rate(where: Where, processes: int, kind: str) -> float:
    command = [str(where.raw), "rate", where.endpoint, str(RATE_SLICE_S), kind]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(processes)]
    counts = [int(one.communicate()[0]) for one in started]
    if any(one.returncode for one in started):
        raise RuntimeError(f"{command} failed")
    return sum(counts) / RATE_SLICE_S


def count_calls(connection: Connection, where: Where) -> None:
    """Send rows with what operations cost at etcd."""
    stores = Stores(where)
    rows = []
    for name in where.stores:
        if name == TCP:
            continue
        with stores.open(name, "count-one") as one, stores.open(name, "count-many") as many:
            calls = operations(one, many)
            for operation in ("set", "get", "check", "add", "multi_get", "multi_set", "wait"):
                # torch's multi_get reads all 1,000 keys for each of them.
                times = 1 if name == TORCH and operation.startswith("multi") else 5
                before = load(where.endpoint)
                for _ in range(times):
                    calls[operation]()
                spent = load(where.endpoint) - before
                rows.append(_counted(operation, name, spent, times))
            for count in (1, MANY):
                rows.append(_count_blocked(where, one, name, [f"absent-{i}" for i in range(count)]))
    connection.send(rows)


def _counted(operation: str, name: str, spent: Load, times: int) -> Row:
    return {
        "kind": "rpcs",
        "operation": operation,
        "store": name,
        "rpcs": spent.rpcs / times,
        "messages": spent.messages / times,
        "methods": {method: count / times for method, count in spent.calls.items()},
    }


def _count_blocked(where: Where, store: Store, name: str, keys: list[str]) -> Row:
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            store.wait(keys, timedelta(seconds=60))
        except Exception as exc:
            failed.append(exc)

    waiting = threading.Thread(target=wait, daemon=True)
    began = load(where.endpoint)
    waiting.start()
    time.sleep(1.0)
    before = load(where.endpoint)
    time.sleep(WAIT_S)
    blocked = load(where.endpoint) - before
    still = waiting.is_alive()
    # A lease that an earlier call took out; no part of the wait.
    kept = blocked.calls.pop("LeaseKeepAlive", 0)
    row = _counted(f"wait {len(keys)}", name, blocked, 1)
    row["keep_alives"] = kept
    row["setup_rpcs"] = (before - began).rpcs
    row["note"] = f"{WAIT_S:g} s of waiting, after {row['setup_rpcs']} RPCs"
    for key in keys:
        store.set(key, VALUE)
    waiting.join(60)
    if not still or failed or waiting.is_alive():
        row["note"] = f"did not wait: {failed}"
    return row


def latency_rows(samples: Samples, raws: list[dict[str, Any]]) -> list[Row]:
    rows: list[Row] = []
    for (operation, store), found in samples.items():
        row = {"kind": "latency", "operation": operation, "store": store, "n": len(found)}
        row["median_us"] = median(found)
        # Where a few calls wait for something, they are not seen in the median.
        row["mean_us"], row["max_us"] = statistics.mean(found), max(found)
        if len(found) >= 100:
            row["p99_us"] = statistics.quantiles(found, n=100)[98]
        rows.append(row)
    for runtime, store in RAW.items():
        for call in raws[0].get(runtime, {}) if raws else ():
            told = [raw[runtime][call] for raw in raws]
            row = {"kind": "latency", "operation": call, "store": store}
            row["n"] = sum(one.get("n", 0) for one in told) or None
            for figure in ("median_us", "p99_us"):
                if all(one.get(figure) is not None for one in told):
                    row[figure] = median(one[figure] for one in told)
            rows.append(row)
    return rows


def add_ratios(rows: list[Row]) -> None:
    """To the rows of torchetcd: its figures divided by those of the others."""
    for figure in ("median_us", "rate"):
        found = {(row["operation"], row["store"]): row[figure] for row in rows if figure in row}
        for row in rows:
            if row["store"] != OWN or figure not in row:
                continue
            operation = row["operation"]
            others = {store: found.get((operation, store)) for store in (TCP, TORCH, "raw")}
            if figure == "median_us":
                others |= {store: _floor(found, operation, store) for store in RAW.values()}
            row |= {store: row[figure] / other for store, other in others.items() if other}


def _floor(found: dict[tuple[str, str], float], operation: str, store: str) -> float | None:
    """What etcd's own client takes for the same."""
    put, get = found.get(("put", store)), found.get(("get", store))
    # A wake comes after a pause of some milliseconds: everything sleeps, the raw client's etcd as well.
    paced_put, paced_get = found.get(("paced_put", store)), found.get(("paced_get", store))
    if operation in {"wake get", "wake wait", "wake busy"}:
        return paced_put + 1.5 * paced_get if paced_put and paced_get else None
    same = {"set": put, "wake set": paced_put, "get": get, "check": get}
    return same.get(operation) or found.get((operation, store))


def measure(where: Where, args: Any) -> Iterator[list[Row]]:
    """Rows, one part of the benchmark after the other."""
    with forked((latency, where, args.seconds)) as (process,):
        samples, raws = process.receive(LIMIT_S + 100 * args.seconds)
    ends, disturber_ends = Pipe(), Pipe()
    setting = (set_keys, ends, disturber_ends, where, args.seconds)
    helping = (wait_for_keys, ends, where), (disturb, disturber_ends, where)
    with forked(*helping, setting) as (*helpers, setter):
        for end in (*ends, *disturber_ends):
            end.close()
        for helper in helpers:
            helper.receive(LIMIT_S)
        wakes = setter.receive(LIMIT_S + 100 * args.seconds)
    rows = latency_rows(samples, raws) + latency_rows(wakes, [])
    # An operation's rows one below the other; the sort is stable.
    order = list(dict.fromkeys(row["operation"] for row in rows))
    yield sorted(rows, key=lambda row: order.index(row["operation"]))
    for processes in args.processes:
        yield contended(where, processes, args.seconds)
    with forked((count_calls, where)) as (process,):
        yield process.receive(LIMIT_S)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=2, help="per operation and store")
    parser.add_argument("--processes", type=int, nargs="*", default=[2, 16, 64])
    parser.add_argument("--raw", type=Path, help="the program with etcd-client's bare calls")
    peers.add_argument(parser)
    args = parser.parse_args()
    missing = peers.missing(args.peers)
    columns = "operation store n median_us mean_us p99_us rate rpcs raw raw_mt TCPStore torch note"
    report = Report("store", columns.split(), args.json)
    if missing:
        print(f"torch's EtcdStore is left out: {missing}")
    stores = [OWN, TCP, *([] if missing else [TORCH])]
    gc.collect()
    gc.freeze()
    with peers.etcd_server() as server, forked((serve,)) as (tcp,):
        where = Where(server.get_endpoint(), tcp.receive(LIMIT_S), stores, args.raw)
        for rows in measure(where, args):
            add_ratios(rows)
            for row in rows:
                report.add(**row)
    report.end()
    if not all(row.get("exact", True) for row in report.rows):
        sys.exit("A sum is wrong.")


if __name__ == "__main__":
    main()
