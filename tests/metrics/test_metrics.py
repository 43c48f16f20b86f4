"""Metrics of real barriers and calls: what is counted, what Prometheus reads, what torch is told."""

from __future__ import annotations

import base64
import json
import logging
import re
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from torch.distributed.elastic import events
from torch.distributed.elastic import metrics as torchs
from torch.distributed.elastic.events import handlers
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousParameters,
    RendezvousTimeoutError,
)

from support import ROOT
from support.network.proxy import Proxy
from support.waiting import eventually
from torchetcd import _run_counts, metrics
from torchetcd._rendezvous import observed_barrier
from torchetcd.etcd import Client, EtcdException
from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler
from torchetcd.etcd_server import EtcdServer

Make = Callable[..., EtcdRendezvousHandler]


@pytest.fixture
def make(etcd_server: EtcdServer, run_id: str) -> Iterator[Make]:
    made = []

    def handler(
        least: int = 1, most: int | None = None, *, endpoint: str | None = None, **config: Any
    ) -> EtcdRendezvousHandler:
        defaults = {"last_call_timeout": 0, "join_timeout": 60}
        parameters = RendezvousParameters(
            "etcd-v3",
            endpoint or etcd_server.get_endpoint(),
            run_id,
            least,
            most or least,
            local_addr="127.0.0.1",
            **(defaults | config),
        )
        made.append(create_rdzv_handler(parameters))
        return made[-1]

    yield handler
    for each in made:
        each.shutdown()


class Grown:
    """How much a counter has grown since this was made: the process has others."""

    def __init__(self) -> None:
        self._before = metrics.snapshot()

    def __call__(self, name: str, *labels: str) -> int:
        return number(metrics.snapshot(), name, labels) - number(self._before, name, labels)


def number(snapshot: dict[str, Any], name: str, labels: tuple[str, ...]) -> int:
    value = snapshot[name].get(labels, 0)
    return value["count"] if isinstance(value, dict) else value


class TestBarriers:
    def test_one_that_completes(self, make: Make, run_id: str) -> None:
        handler = make()
        handler.next_rendezvous()
        handler.next_rendezvous()
        now = metrics.snapshot()
        barriers = now["torchetcd_barrier_duration_seconds"][run_id, "completed"]
        assert barriers["count"] == 2
        assert 0 < barriers["sum"] < 60
        assert barriers["buckets"][-1] == (float("inf"), 2)
        assert now["torchetcd_round"][run_id,] == 2
        assert now["torchetcd_world_size"][run_id,] == 1
        assert now["torchetcd_rank"][run_id,] == 0

    def test_the_last_call(self, make: Make, run_id: str) -> None:
        make(1, 2, last_call_timeout=1).next_rendezvous()
        last_call = metrics.snapshot()["torchetcd_last_call_duration_seconds"][run_id,]
        assert last_call["count"] == 1
        barriers = metrics.snapshot()["torchetcd_barrier_duration_seconds"][run_id, "completed"]
        # etcd's clock of leases has whole seconds.
        assert 0.5 < last_call["sum"] <= barriers["sum"]

    def test_without_a_last_call(self, make: Make, run_id: str) -> None:
        make().next_rendezvous()
        assert metrics.snapshot()["torchetcd_last_call_duration_seconds"][run_id,]["count"] == 0

    def test_one_that_does_not(self, make: Make, run_id: str) -> None:
        handler = make(2, join_timeout=1)
        with pytest.raises(RendezvousTimeoutError):
            handler.next_rendezvous()
        handler.set_closed()
        with pytest.raises(RendezvousClosedError):
            handler.next_rendezvous()
        now = metrics.snapshot()
        barriers = now["torchetcd_barrier_duration_seconds"]
        assert {labels for labels in barriers if labels[0] == run_id} == {
            (run_id, "timeout"),
            (run_id, "closed"),
        }
        assert barriers[run_id, "timeout"]["sum"] >= 1
        assert (run_id,) not in now["torchetcd_round"]
        assert now["torchetcd_closes_total"][run_id,] == 1

    def test_a_node_that_waits(self, make: Make, run_id: str) -> None:
        first, second = make(1, 2), make(1, 2)
        first.next_rendezvous()
        join_in_background(second)
        eventually(first.num_nodes_waiting)
        # Once for a round, however often it is asked.
        assert first.num_nodes_waiting()
        assert changes(run_id) == {"nodes_waiting": 1}

    def test_a_member_that_is_lost(self, make: Make, run_id: str) -> None:
        first, second = make(2), make(2)
        join_in_background(second)
        first.next_rendezvous()
        second._rdzv_impl.leave()
        eventually(first.num_nodes_waiting)
        assert changes(run_id) == {"member_lost": 1}

    def test_a_round_that_others_open(self, make: Make, run_id: str) -> None:
        first, second = make(2), make(2)
        join_in_background(second)
        first.next_rendezvous()
        eventually(lambda: second._rdzv_impl._node.wait_joined(1))
        join_in_background(second)
        eventually(first.num_nodes_waiting)
        assert changes(run_id) == {"next_round": 1}

    def test_a_lease_that_is_lost(self, make: Make, client: Client, run_id: str) -> None:
        handler = make(keep_alive_ttl=2)
        handler.next_rendezvous()
        grown = Grown()
        path = f"/torchelastic/p2p/run_{run_id}/rdzv/round/1/member"
        (member,) = client.read(path, recursive=True).leaves
        client._native.lease_revoke(int(member.key.rpartition("/")[2], 16))
        eventually(lambda: grown("torchetcd_lease_renewals_total", "lost") >= 1, 30)
        eventually(handler.num_nodes_waiting)
        assert changes(run_id) in ({"lease_lost": 1}, {"member_lost": 1})

    def test_only_so_many_runs_are_kept(self) -> None:
        for number in range(100):
            _run_counts.run_closed(f"many-{number}")
        closes = metrics.snapshot()["torchetcd_closes_total"]
        assert len(closes) == 64
        assert ("many-99",) in closes


def changes(run_id: str) -> dict[str, int]:
    counted = metrics.snapshot()["torchetcd_world_changes_total"]
    return {cause: count for (run, cause), count in counted.items() if run == run_id and count}


def join_in_background(handler: EtcdRendezvousHandler) -> None:
    handler._rdzv_impl._node.join("127.0.0.1", 1)


class TestCalls:
    def test_by_kind_and_result(self, client: Client) -> None:
        grown = Grown()
        client.write("/metrics/key", "value")
        client.read("/metrics/key")
        assert grown("torchetcd_rpcs_total", "txn", "ok") >= 2
        assert grown("torchetcd_rpc_duration_seconds", "txn") >= 2
        assert grown("torchetcd_connections_total", "first") == 1
        durations = metrics.snapshot()["torchetcd_rpc_duration_seconds"]["txn",]
        assert durations["sum"] > 0
        counts = [count for _, count in durations["buckets"]]
        assert counts == sorted(counts)
        assert counts[-1] == durations["count"]

    def test_a_lease(self, client: Client) -> None:
        grown = Grown()
        client.write("/metrics/lease", "value", ttl=60)
        assert grown("torchetcd_rpcs_total", "lease_grant", "ok") == 1

    def test_nobody_there(self) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            grown = Grown()
            port = sock.getsockname()[1]
            with Client("127.0.0.1", port, read_timeout=1) as client, pytest.raises(EtcdException):
                client.read("/")
        assert grown("torchetcd_rpcs_total", "txn", "unreachable") == 1
        assert grown("torchetcd_connections_total", "failed") >= 1

    def test_a_connection_that_breaks(self, etcd_server: EtcdServer, make: Make) -> None:
        port = int(etcd_server.get_endpoint().rpartition(":")[2])
        with Proxy(port) as proxy:
            handler = make(endpoint=f"127.0.0.1:{proxy.port}")
            store = handler.next_rendezvous().store
            grown = Grown()
            # A value of twelve bytes, as it is written.
            proxy.break_at(base64.b64encode(b"needleneedle"), forward=True)
            store.set("key", b"needleneedle")
            assert proxy.broken == 1
            assert grown("torchetcd_connections_total", "again") == 1
            assert grown("torchetcd_rpc_retries_total", "answer_lost") >= 1
            eventually(lambda: grown("torchetcd_watches_total", "resumed") >= 1, 30)
            handler.shutdown()

    def test_renewals(self, make: Make) -> None:
        grown = Grown()
        make(keep_alive_ttl=2).next_rendezvous()
        eventually(lambda: grown("torchetcd_lease_renewals_total", "in_time") >= 1, 30)


def _with_a_quorum() -> None:
    """As an agent with an endpoint job://... has it (test_quorum_metrics.py)."""
    with _run_counts.quorum("with a quorum", 3) as quorum:
        quorum.members = 3


class TestPrometheus:
    @pytest.fixture(autouse=True)
    def nothing_left(self) -> Iterator[None]:
        yield
        metrics.stop_serving()
        assert metrics.served_at() is None

    @pytest.fixture
    def families(self, make: Make) -> dict[str, Any]:
        make(1, 2).next_rendezvous()
        _with_a_quorum()
        text = exposition()
        return {family.name: family for family in text_string_to_metric_families(text)}

    def test_what_is_exported_is_what_is_documented(self, families: dict[str, Any]) -> None:
        exported = {
            (f"{name}_total" if family.type == "counter" else name): (
                family.type,
                {label for sample in family.samples for label in sample.labels} - {"le"},
                family.documentation,
            )
            for name, family in families.items()
        }
        assert exported == {
            metric.full_name: (metric.kind, set(metric.labels), metric.meaning)
            for metric in metrics.METRICS
        }
        assert documented() == {
            f"| `{metric.full_name}` | {metric.kind} | "
            f"{', '.join(f'`{label}`' for label in metric.labels)} | {metric.meaning} |"
            for metric in metrics.METRICS
        }

    def test_names_are_those_of_prometheus(self) -> None:
        for metric in metrics.METRICS:
            assert re.fullmatch(r"torchetcd_[a-z_]+", metric.full_name)
            assert metric.full_name.endswith("_total") == (metric.kind == "counter")
            assert metric.full_name.endswith("_seconds") == (metric.kind == "histogram")

    def test_every_value_of_a_label_is_documented(self, families: dict[str, Any]) -> None:
        text = (ROOT / "docs/reference/metrics.md").read_text()
        for family in families.values():
            for sample in family.samples:
                values = {sample.labels.get(label) for label in ("rpc", "result", "cause", "event")}
                for value in values - {None}:
                    assert f"`{value}`" in text, (family.name, value)

    def test_over_http(self, monkeypatch: pytest.MonkeyPatch, make: Make) -> None:
        monkeypatch.setenv("TORCHETCD_METRICS_PORT", "0")
        make()
        served = metrics.served_at()
        assert served is not None
        address, port = served
        assert address == "127.0.0.1"
        # Once in a process.
        make()
        assert metrics.served_at() == served
        with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        assert "torchetcd_rpcs_total{" in text
        assert "process_cpu_seconds_total" in text

    def test_nothing_is_served_unless_asked_for(
        self, monkeypatch: pytest.MonkeyPatch, make: Make
    ) -> None:
        monkeypatch.delenv("TORCHETCD_METRICS_PORT", raising=False)
        make()
        assert metrics.served_at() is None

    def test_a_port_that_is_taken(self, caplog: pytest.LogCaptureFixture) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert metrics.serve(str(port)) is None
        assert f"no port of {port} is free at 127.0.0.1" in caplog.text

    def test_the_first_port_that_is_free(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            found = metrics.serve(f"{port}-{port + 50}")
        assert found is not None
        assert port < found <= port + 50
        assert metrics.served_at() == ("127.0.0.1", found)

    @pytest.mark.parametrize(
        "ports", ["x", "9464-", "-1", "9-8", "65536", "9464-99999", "1.5", "tcp://10.43.1.39:9464"]
    )
    def test_ports_that_are_none(
        self,
        monkeypatch: pytest.MonkeyPatch,
        make: Make,
        caplog: pytest.LogCaptureFixture,
        ports: str,
    ) -> None:
        with pytest.raises(ValueError, match=f"TORCHETCD_METRICS_PORT must be.*, not '{ports}'"):
            metrics.serve(ports)
        monkeypatch.setenv("TORCHETCD_METRICS_PORT", ports)
        make()
        assert metrics.served_at() is None
        told = [record for record in caplog.records if record.levelname == "WARNING"]
        assert (
            f"TORCHETCD_METRICS_PORT must be a port, 0 for any, or first-last, not '{ports}'"
            in (told[0].getMessage())
        )

    def test_without_prometheus_client(
        self, monkeypatch: pytest.MonkeyPatch, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setitem(sys.modules, "prometheus_client", None)
        monkeypatch.setenv("TORCHETCD_METRICS_PORT", "0")
        make()
        assert "the training goes on: Metrics can only be served with prometheus" in caplog.text


def exposition() -> str:
    registry = CollectorRegistry()
    registry.register(metrics.Collector())
    return generate_latest(registry).decode()


def documented() -> set[str]:
    text = (ROOT / "docs/reference/metrics.md").read_text()
    table = text.split("<!-- metrics -->")[1].split("<!-- /metrics -->")[0]
    return set(table.strip().splitlines()[2:])


class TestTorch:
    class Handler(torchs.MetricHandler):
        def __init__(self) -> None:
            self.told: list[tuple[str, int]] = []

        def emit(self, metric_data: torchs.MetricData) -> None:
            assert metric_data.group_name == "torchetcd"
            self.told.append((metric_data.name, metric_data.value))

    @pytest.fixture
    def told(self) -> Iterator[list[tuple[str, int]]]:
        handler = self.Handler()
        torchs.configure(handler, "torchetcd")
        yield handler.told
        torchs.configure(torchs.NullMetricHandler(), "torchetcd")

    def test_transitions(
        self, make: Make, told: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(observed_barrier, "_published", {})
        handler = make()
        handler.next_rendezvous()
        first = dict(told)
        assert first["barrier.completed"] == 1
        assert first["round"] == first["world_size"] == 1
        assert first["barrier.duration.ms"] >= 0
        assert first["rpcs.txn.ok"] > 0
        del told[:]
        for _ in range(10):
            handler.num_nodes_waiting()
        # Not on what an agent asks ten times a second.
        assert told == []
        handler.next_rendezvous()
        handler.set_closed()
        second = dict(told)
        assert second["round"] == 2
        assert second["run.closed"] == 1
        # By how much it has grown each time.
        sent = first["rpcs.txn.ok"] + sum(value for name, value in told if name == "rpcs.txn.ok")
        assert sent <= metrics.snapshot()["torchetcd_rpcs_total"]["txn", "ok"]

    def test_a_handler_that_fails(self, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        class Broken(torchs.MetricHandler):
            def emit(self, metric_data: torchs.MetricData) -> None:
                raise OSError("no way out")

        torchs.configure(Broken(), "torchetcd")
        try:
            handler = make()
            assert handler.next_rendezvous().world_size == 1
            handler.set_closed()
        finally:
            torchs.configure(torchs.NullMetricHandler(), "torchetcd")
        assert caplog.text.count("A handler of torch's metrics failed") == 2
        assert "no way out" in caplog.text


class TestEvents:
    @pytest.fixture
    def heard(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
        """What torch records; it makes the logger at the first event."""
        found: list[dict[str, Any]] = []

        class Listener(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                found.append(json.loads(record.getMessage()))

        listener = Listener()
        monkeypatch.setitem(handlers._log_handlers, "dynamic_rendezvous", listener)
        monkeypatch.setattr(events, "_events_loggers", {})
        yield found
        for logger in events._events_loggers.values():
            logger.removeHandler(listener)

    def test_transitions(self, make: Make, heard: list[dict[str, Any]]) -> None:
        first, second = make(2), make(2)
        join_in_background(second)
        first.next_rendezvous()
        second._rdzv_impl.leave()
        eventually(first.num_nodes_waiting)
        first.num_nodes_waiting()
        first.set_closed()
        with pytest.raises(RendezvousClosedError):
            first.next_rendezvous()
        wanted = [
            ("next_rendezvous", "RUNNING", "attempts to join"),
            ("next_rendezvous", "RUNNING", "has joined round 1"),
            ("num_nodes_waiting", "RUNNING", "was lost"),
            ("set_closed", "SUCCEEDED", "has closed"),
            ("next_rendezvous", "RUNNING", "attempts to join"),
            ("next_rendezvous", "FAILED", "RendezvousClosedError"),
        ]
        told = [(event["name"].rpartition(".")[2], event["node_state"]) for event in heard]
        assert told == [(name, state) for name, state, _ in wanted]
        for event, (_, _, part) in zip(heard, wanted, strict=True):
            assert part in event["message"]
            assert event["run_id"] == first.get_run_id()


@pytest.fixture
def dashboard() -> dict[str, Any]:
    return dict(json.loads((ROOT / "examples/grafana/torchetcd.json").read_text()))


@pytest.fixture
def expressions(dashboard: dict[str, Any]) -> list[str]:
    found = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]
    assert len(found) > 10
    return found


class TestDashboard:
    def test_it_has_what_grafana_needs(self, dashboard: dict[str, Any]) -> None:
        assert dashboard["schemaVersion"] >= 39
        assert dashboard["title"]
        # Grafana gives one itself; a number here would be that of somebody's server.
        assert dashboard.get("id") is None
        panels = dashboard["panels"]
        ids = [panel["id"] for panel in panels]
        assert len(set(ids)) == len(ids)
        for panel in panels:
            assert panel["type"] in {"row", "stat", "timeseries"}
            assert set(panel["gridPos"]) == {"h", "w", "x", "y"}
            assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
            references = [target["refId"] for target in panel.get("targets", [])]
            assert len(set(references)) == len(references)
            assert references or panel["type"] == "row"
        corners = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
        assert len(set(corners)) == len(corners)

    def test_variables(self, dashboard: dict[str, Any], expressions: list[str]) -> None:
        variables = {variable["name"] for variable in dashboard["templating"]["list"]}
        assert variables == {"datasource", "run_id", "instance"}
        for expression in expressions:
            assert set(re.findall(r"\$(\w+)", expression)) <= variables | {"__rate_interval"}
        used = [panel["datasource"] for panel in dashboard["panels"] if "datasource" in panel]
        used += [t["datasource"] for p in dashboard["panels"] for t in p.get("targets", [])]
        assert used
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in used)

    def test_metrics_and_labels_are_there(
        self, dashboard: dict[str, Any], expressions: list[str], make: Make
    ) -> None:
        make(1, 2).next_rendezvous()
        _with_a_quorum()
        exported: dict[str, set[str]] = {}
        for family in text_string_to_metric_families(exposition()):
            for sample in family.samples:
                # The instance is the scrape's.
                exported.setdefault(sample.name, {"instance"}).update(sample.labels)
        variables = [v.get("definition", "") for v in dashboard["templating"]["list"]]
        for expression in [*expressions, *filter(None, variables)]:
            names = re.findall(r"torchetcd_\w+", expression)
            assert names, expression
            labels = set(re.findall(r'(\w+)\s*(?:=|!=|=~|!~)\s*"', expression))
            labels |= {
                label.strip()
                for inner in re.findall(r"by \(([^)]*)\)", expression)
                for label in inner.split(",")
            }
            for name in names:
                assert name in exported, expression
                assert labels <= exported[name], expression
            assert expression.count("(") == expression.count(")")
            assert expression.count("{") == expression.count("}")

    def test_every_metric_is_shown(self, expressions: list[str]) -> None:
        shown = " ".join(expressions)
        assert [metric.name for metric in metrics.METRICS if metric.full_name not in shown] == []
