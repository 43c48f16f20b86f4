"""What torchetcd counts in this process: calls to etcd, connections, leases, barriers.

Three ways out: `snapshot()` as plain values; torch's `torch.distributed.elastic.metrics`, where anything is
put at transitions only (group "torchetcd"); and Prometheus, by `Collector` or over HTTP by `serve`
(`pip install 'torchetcd[metrics]'`). docs/reference/metrics.md has the list.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client.core import Metric

__all__ = ["METRICS", "Collector", "Description", "serve", "served_at", "snapshot", "stop_serving"]

_logger = logging.getLogger(__name__)

_PORT, _ADDRESS = "TORCHETCD_METRICS_PORT", "TORCHETCD_METRICS_ADDRESS"
_LOOPBACK = "127.0.0.1"
_GROUP = "torchetcd"


@dataclasses.dataclass(frozen=True)
class Description:
    """One metric: its name without `torchetcd_` and the suffix of its kind, and what it says."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def full_name(self) -> str:
        """The name that Prometheus shows."""
        return f"torchetcd_{self.name}{'_total' if self.kind == 'counter' else ''}"


METRICS = (
    Description("build_info", "gauge", ("version",), "1, with the version of torchetcd."),
    Description(
        "rpcs", "counter", ("rpc", "result"), "Requests to etcd, each with all its attempts."
    ),
    Description(
        "rpc_duration_seconds",
        "histogram",
        ("rpc",),
        "How long requests took, with the waits between their attempts.",
    ),
    Description(
        "rpc_retries",
        "counter",
        ("cause",),
        "Attempts after which a request was tried again or given up.",
    ),
    Description(
        "connections",
        "counter",
        ("result",),
        "Attempts to connect to an endpoint: first and again are connections.",
    ),
    Description(
        "logins", "counter", ("result",), "Log-ins in place of a token that etcd took no more."
    ),
    Description(
        "watches", "counter", ("event",), "Watches that were opened, resumed, or ended by etcd."
    ),
    Description(
        "lease_renewals",
        "counter",
        ("result",),
        "Renewals of leases; late: more than two thirds of the TTL after the last one.",
    ),
    Description(
        "barrier_duration_seconds",
        "histogram",
        ("run_id", "outcome"),
        "How long this node was in the barrier of a round.",
    ),
    Description(
        "last_call_duration_seconds",
        "histogram",
        ("run_id",),
        "From when enough nodes had joined until the round was complete; none where all came at once.",
    ),
    Description("round", "gauge", ("run_id",), "The round that this node was in last."),
    Description("world_size", "gauge", ("run_id",), "The nodes of that round."),
    Description("rank", "gauge", ("run_id",), "The rank of this node in that round."),
    Description(
        "world_changes",
        "counter",
        ("run_id", "cause"),
        "Rounds that this node was told are over or to be formed anew.",
    ),
    Description("closes", "counter", ("run_id",), "How often this node closed the run."),
)

_BY_NAME = {metric.name: metric for metric in METRICS}
#: What the native half counts, by the name of the metric, with the name of its label.
_NATIVE = {
    "rpc_retries": ("retries", "cause"),
    "connections": ("connections", "result"),
    "logins": ("logins", "result"),
    "watches": ("watches", "event"),
    "lease_renewals": ("lease_renewals", "result"),
}
_BOUNDS_S = (
    0.01,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    1800.0,
)
#: Why a round is over, and words of the native half that say so.
OTHERS = "next_round"
CAUSES = {
    "member_lost": "was lost",
    "lease_lost": "lost its lease",
    "nodes_waiting": "waiting",
    OTHERS: "opened round",
}
#: A process that makes one handler after the other must not grow.
_RUNS = 64


class Durations:
    """A histogram."""

    def __init__(self) -> None:
        self.classes = [0] * (len(_BOUNDS_S) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.classes[bisect_left(_BOUNDS_S, seconds)] += 1
        self.seconds += seconds


class _OfRun:
    def __init__(self) -> None:
        self.barriers: dict[str, Durations] = {}
        self.last_calls = Durations()
        self.place: tuple[int, int, int] | None = None
        self.changes = dict.fromkeys(CAUSES, 0)
        self.closes = 0


class _Barriers:
    """What this process has seen of its runs; changed at transitions only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, _OfRun] = OrderedDict()

    @contextlib.contextmanager
    def run(self, run_id: str) -> Iterator[_OfRun]:
        with self._lock:
            run = self._runs.setdefault(run_id, _OfRun())
            self._runs.move_to_end(run_id)
            while len(self._runs) > _RUNS:
                self._runs.popitem(last=False)
            yield run

    @contextlib.contextmanager
    def all(self) -> Iterator[Iterable[tuple[str, _OfRun]]]:
        with self._lock:
            yield self._runs.items()


_barriers = _Barriers()


def _begin_in_child() -> None:
    global _barriers, _published, _server
    # The lock may have been held by a thread that is not here.
    _barriers, _published, _server = _Barriers(), {}, None


os.register_at_fork(after_in_child=_begin_in_child)


def barrier_ended(
    run_id: str,
    outcome: str,
    seconds: float,
    last_call_s: float | None,
    place: tuple[int, int, int] | None,
) -> None:
    """Count a barrier, well ended or not; `place` is round, rank and world size."""
    with _barriers.run(run_id) as run:
        run.barriers.setdefault(outcome, Durations()).add(seconds)
        if last_call_s is not None:
            run.last_calls.add(last_call_s)
        run.place = place or run.place
    told = {f"barrier.{outcome}": 1, "barrier.duration.ms": round(seconds * 1000)}
    if last_call_s is not None:
        told["last_call.duration.ms"] = round(last_call_s * 1000)
    if place:
        told |= {"round": place[0], "world_size": place[2]}
    _put(told)


def world_changes(run_id: str, broken: str | None) -> None:
    """Count a round of this node that is over, or to be formed anew.

    Args:
        run_id: The run.
        broken: What the native half says of it; `None` where more nodes wait, and that is all.
    """
    cause = next(
        (cause for cause, words in CAUSES.items() if words in (broken or "waiting")), OTHERS
    )
    with _barriers.run(run_id) as run:
        run.changes[cause] += 1
    _put({f"world_change.{cause}": 1})


def run_closed(run_id: str) -> None:
    """Count a close."""
    with _barriers.run(run_id) as run:
        run.closes += 1
    _put({"run.closed": 1})


#: What torch was told of the native counters.
_published: dict[str, int] = {}


def _put(told: dict[str, int]) -> None:
    """Give torch's handler of metrics what has happened, and by how much each counter has grown."""
    from torch.distributed.elastic import metrics as torchs  # noqa: PLC0415 - imports torch

    if isinstance(torchs.getStream(_GROUP).handler, torchs.NullMetricHandler):
        return
    told = dict(told)
    for name, number in _flat(_native()).items():
        grown = number - _published.get(name, 0)
        if grown:
            told[name] = grown
            _published[name] = number
    try:
        for name, value in told.items():
            torchs.put_metric(name, value, _GROUP)
    except Exception:
        _logger.warning("A handler of torch's metrics failed.", exc_info=True)


def _flat(native: dict[str, Any]) -> dict[str, int]:
    flat = {
        f"rpcs.{rpc}.{result}": number
        for rpc, calls in native["rpcs"].items()
        for result, number in calls["results"].items()
    }
    for name, (group, _) in _NATIVE.items():
        flat |= {f"{name}.{label}": number for label, number in native[group].items()}
    return flat


def _native() -> dict[str, Any]:
    from torchetcd._torchetcd import metrics  # noqa: PLC0415 - loads the native half

    return metrics()


def snapshot() -> dict[str, dict[tuple[str, ...], Any]]:
    """Return all metrics of this process by their full names; asks nobody.

    Returns:
        For each metric its values by the values of its labels: numbers, and for a histogram a dict of
        `count`, `sum` and `buckets`, which has upper bounds with the count up to each.
    """
    return {
        _BY_NAME[name].full_name: {
            labels: _histogram(*value) if isinstance(value, tuple) else value
            for labels, value in values.items()
        }
        for name, values in _values().items()
    }


def _histogram(bounds: Iterable[float], classes: list[int], seconds: float) -> dict[str, Any]:
    total, buckets = 0, []
    for bound, number in zip([*bounds, float("inf")], classes, strict=True):
        total += number
        buckets.append((bound, total))
    return {"count": total, "sum": seconds, "buckets": buckets}


def _values() -> dict[str, dict[tuple[str, ...], Any]]:
    import torchetcd  # noqa: PLC0415 - this module is a part of it

    native = _native()
    values: dict[str, dict[tuple[str, ...], Any]] = {metric.name: {} for metric in METRICS}
    values["build_info"][torchetcd.__version__,] = 1
    for rpc, calls in native["rpcs"].items():
        for result, number in calls["results"].items():
            values["rpcs"][rpc, result] = number
        of_rpc = (native["bounds_s"], calls["classes"], calls["seconds"])
        values["rpc_duration_seconds"][rpc,] = of_rpc
    for name, (group, _) in _NATIVE.items():
        values[name] = {(label,): number for label, number in native[group].items()}
    with _barriers.all() as runs:
        for run_id, run in runs:
            for outcome, durations in run.barriers.items():
                values["barrier_duration_seconds"][run_id, outcome] = _frozen(durations)
            values["last_call_duration_seconds"][run_id,] = _frozen(run.last_calls)
            if run.place:
                round_, rank, world = run.place
                values["round"][run_id,] = round_
                values["rank"][run_id,] = rank
                values["world_size"][run_id,] = world
            for cause, number in run.changes.items():
                values["world_changes"][run_id, cause] = number
            values["closes"][run_id,] = run.closes
    return values


def _frozen(durations: Durations) -> tuple[tuple[float, ...], list[int], float]:
    return _BOUNDS_S, list(durations.classes), durations.seconds


class Collector:
    """A collector for `prometheus_client`: `registry.register(Collector())`."""

    def collect(self) -> Iterator[Metric]:
        """Give all metrics as they are now."""
        from prometheus_client.core import (  # noqa: PLC0415 - comes with an extra
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        values = _values()
        for metric in METRICS:
            name = f"torchetcd_{metric.name}"
            if metric.kind == "histogram":
                histogram = HistogramMetricFamily(name, metric.meaning, labels=metric.labels)
                for labels, value in values[metric.name].items():
                    shown = _histogram(*value)
                    buckets = [(_bound(bound), count) for bound, count in shown["buckets"]]
                    histogram.add_metric(labels, buckets, shown["sum"])
                yield histogram
                continue
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            numbers = family(name, metric.meaning, labels=metric.labels)
            for labels, value in values[metric.name].items():
                numbers.add_metric(labels, value)
            yield numbers


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(bound)


class _Server(NamedTuple):
    address: str
    http: WSGIServer
    thread: threading.Thread


_server: _Server | None = None


def served_at() -> tuple[str, int] | None:
    """Return address and port where this process serves its metrics; `None` where it does not."""
    return None if _server is None else (_server.address, _server.http.server_port)


def stop_serving() -> None:
    """Serve metrics no longer."""
    global _server
    server, _server = _server, None
    if server is not None:
        server.http.shutdown()
        server.http.server_close()
        server.thread.join()


def serve(ports: str = "0", address: str = _LOOPBACK) -> int | None:
    """Serve the metrics of this process over HTTP, as Prometheus reads them; in one place at a time.

    Args:
        ports: A port, 0 for any that is free, or several as "9464-9471", of which the first free one is
            taken: there may be several agents on a host.
        address: Where to listen.

    Returns:
        The port; `None` if none of them was free, which is logged.

    Raises:
        ValueError: if the ports are none.
        RuntimeError: if prometheus-client is not installed.
    """
    global _server  # noqa: PLW0603 - a process's own
    wanted = _ports(ports)
    try:
        from prometheus_client import (  # noqa: PLC0415 - comes with an extra
            CollectorRegistry,
            ProcessCollector,
            start_http_server,
        )
    except ImportError:
        message = (
            "Metrics can only be served with prometheus-client: pip install 'torchetcd[metrics]'."
        )
        raise RuntimeError(message) from None
    # Of its own: what else the program counts is for it to show.
    registry = CollectorRegistry()
    registry.register(Collector())
    ProcessCollector(registry=registry)
    reason: OSError | None = None
    for port in wanted:
        try:
            http, thread = start_http_server(port, address, registry)
        except OSError as exc:
            reason = exc
            continue
        stop_serving()
        _server = _Server(address, http, thread)
        _logger.info("Metrics are served at http://%s:%d/metrics.", address, http.server_port)
        return http.server_port
    _logger.warning(
        "Metrics are not served: no port of %s is free at %s (%s).", ports, address, reason
    )
    return None


def serve_if_asked() -> None:
    """Serve metrics if the environment says so, once in a process.

    Raises:
        ValueError: if TORCHETCD_METRICS_PORT is none.
        RuntimeError: if prometheus-client is not installed.
    """
    ports = os.environ.get(_PORT)
    if ports and _server is None:
        serve(ports, os.environ.get(_ADDRESS) or _LOOPBACK)


def _ports(text: str) -> range:
    first, dash, last = str(text).strip().partition("-")
    try:
        ports = range(int(first), int(last if dash else first) + 1)
    except ValueError:
        ports = range(0)
    if not ports or not 0 <= ports[0] <= ports[-1] <= 65535:
        message = f"{_PORT} must be a port, 0 for any, or first-last, not {text!r}."
        raise ValueError(message)
    return ports
