"""What torchetcd counts in this process: calls to etcd, connections, leases, barriers.

Three ways out: `snapshot()` as plain values; torch's `torch.distributed.elastic.metrics`, where anything is
put at transitions only (group "torchetcd"); and Prometheus, by `Collector` or over HTTP by `serve`
(`pip install 'torchetcd[metrics]'`). docs/reference/metrics.md has the list.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from torchetcd import _run_counts
from torchetcd._environment import METRICS_PORT
from torchetcd._version import version

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client.core import Metric

__all__ = ["METRICS", "Collector", "Description", "serve", "served_at", "snapshot", "stop_serving"]

_logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


class Description(NamedTuple):
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
        "Attempts to connect to an endpoint; `first` and `again` are the successful ones.",
    ),
    Description(
        "logins", "counter", ("result",), "Re-authentications after etcd rejected the token."
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
        "How often this node learned that its round is over or that another one must be formed.",
    ),
    Description("closes", "counter", ("run_id",), "How often this node closed the run."),
    Description(
        "quorum_member",
        "gauge",
        ("run_id",),
        "1 if this agent runs a member of the quorum of its job, else 0.",
    ),
    Description(
        "quorum_members",
        "gauge",
        ("run_id",),
        "Members of that quorum that run, as this agent has seen it last.",
    ),
    Description("quorum_size", "gauge", ("run_id",), "Members that it should have."),
    Description(
        "quorum_replacements",
        "counter",
        ("run_id",),
        "How often this agent has taken the place of a member that was gone.",
    ),
    Description(
        "quorum_member_restarts",
        "counter",
        ("run_id",),
        "How often this agent has started its member again because it had ended or hung.",
    ),
)

_BY_NAME = {metric.name: metric for metric in METRICS}


def snapshot() -> dict[str, dict[tuple[str, ...], Any]]:
    """Return all metrics of this process by their full names; asks nobody.

    >>> from torchetcd import metrics
    >>> any(name.startswith("torchetcd_") for name in metrics.snapshot())
    True

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
    native = _run_counts.native()
    values: dict[str, dict[tuple[str, ...], Any]] = {metric.name: {} for metric in METRICS}
    values["build_info"][version(),] = 1
    for rpc, calls in native["rpcs"].items():
        for result, number in calls["results"].items():
            values["rpcs"][rpc, result] = number
        of_rpc = (native["bounds_s"], calls["classes"], calls["seconds"])
        values["rpc_duration_seconds"][rpc,] = of_rpc
    for name, (group, _) in _run_counts.NATIVE.items():
        values[name] = {(label,): number for label, number in native[group].items()}
    with _run_counts.barriers.all() as runs:
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
            if run.quorum is not None:
                _add_quorum(values, run_id, run.quorum)
    return values


def _add_quorum(
    values: dict[str, dict[tuple[str, ...], Any]], run_id: str, quorum: _run_counts.OfQuorum
) -> None:
    values["quorum_member"][run_id,] = int(quorum.runs_member)
    if quorum.members is not None:
        values["quorum_members"][run_id,] = quorum.members
    values["quorum_size"][run_id,] = quorum.size
    values["quorum_replacements"][run_id,] = quorum.replacements
    values["quorum_member_restarts"][run_id,] = quorum.restarts


def _frozen(durations: _run_counts.Durations) -> tuple[tuple[float, ...], list[int], float]:
    return _run_counts.BOUNDS_S, list(durations.classes), durations.seconds


class Collector:
    """A collector for `prometheus_client`: `registry.register(Collector())`."""

    def collect(self) -> Iterator[Metric]:
        """Give all metrics as they are now."""
        families = _prometheus_client().core
        values = _values()
        for metric in METRICS:
            name = f"torchetcd_{metric.name}"
            if metric.kind == "histogram":
                histogram = families.HistogramMetricFamily(
                    name, metric.meaning, labels=metric.labels
                )
                for labels, value in values[metric.name].items():
                    shown = _histogram(*value)
                    buckets = [(_bound(bound), count) for bound, count in shown["buckets"]]
                    histogram.add_metric(labels, buckets, shown["sum"])
                yield histogram
                continue
            counts = metric.kind == "counter"
            family = families.CounterMetricFamily if counts else families.GaugeMetricFamily
            numbers = family(name, metric.meaning, labels=metric.labels)
            for labels, value in values[metric.name].items():
                numbers.add_metric(labels, value)
            yield numbers


def _prometheus_client() -> Any:
    import prometheus_client.core  # noqa: PLC0415 - optional, comes with an extra

    return prometheus_client


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(bound)


class _Server(NamedTuple):
    address: str
    http: WSGIServer
    thread: threading.Thread


_server: _Server | None = None


def _begin_in_child() -> None:
    global _server  # noqa: PLW0603 - a process's own
    # Its thread is not here.
    _server = None


os.register_at_fork(after_in_child=_begin_in_child)


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


def serve(ports: str = "0", address: str = LOOPBACK) -> int | None:
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
        prometheus = _prometheus_client()
    except ImportError:
        message = (
            "Metrics can only be served with prometheus-client: pip install 'torchetcd[metrics]'."
        )
        raise RuntimeError(message) from None
    # Of its own: what else the program counts is for it to show.
    registry = prometheus.CollectorRegistry()
    registry.register(Collector())
    prometheus.ProcessCollector(registry=registry)
    reason: OSError | None = None
    for port in wanted:
        try:
            http, thread = prometheus.start_http_server(port, address, registry)
        except OSError as exc:
            reason = exc
            continue
        stop_serving()
        _server = _Server(address, http, thread)
        _logger.info("Metrics are served at http://%s:%d/metrics.", address, http.server_port)
        return int(http.server_port)
    _logger.warning(
        "Metrics are not served: no port of %s is free at %s (%s).", ports, address, reason
    )
    return None


def _ports(text: str) -> range:
    first, dash, last = str(text).strip().partition("-")
    try:
        ports = range(int(first), int(last if dash else first) + 1)
    except ValueError:
        ports = range(0)
    if not ports or not 0 <= ports[0] <= ports[-1] <= 65535:
        message = f"{METRICS_PORT.name} must be a port, 0 for any, or first-last, not {text!r}."
        raise ValueError(message)
    return ports
