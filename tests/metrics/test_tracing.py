"""OpenTelemetry spans of real barriers."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from torch.distributed.elastic.rendezvous import RendezvousParameters, RendezvousTimeoutError

from support.waiting import eventually
from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler
from torchetcd.etcd_server import EtcdServer

Make = Callable[..., EtcdRendezvousHandler]
NAME = "torchetcd.rendezvous"


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """A provider is set once in a process."""
    made = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    trace.set_tracer_provider(provider)
    return made


class Spans:
    """What was exported: the barriers in their order, each with its phases."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter
        exporter.clear()

    def barriers(self) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == NAME]

    def phases(self, barrier: ReadableSpan) -> list[ReadableSpan]:
        found = [
            span
            for span in self._exporter.get_finished_spans()
            if span.parent and span.parent.span_id == barrier.context.span_id
        ]
        return sorted(found, key=lambda span: span.start_time or 0)

    def names(self, barrier: ReadableSpan) -> list[str]:
        return [span.name.removeprefix(f"{NAME}.") for span in self.phases(barrier)]


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    return Spans(exporter)


@pytest.fixture
def make(etcd_server: EtcdServer, run_id: str) -> Iterator[Make]:
    made = []

    def handler(least: int, most: int, **config: Any) -> EtcdRendezvousHandler:
        defaults = {"last_call_timeout": 0, "join_timeout": 60}
        endpoint = etcd_server.get_endpoint()
        parameters = RendezvousParameters(
            "etcd-v3", endpoint, run_id, least, most, local_addr="127.0.0.1", **(defaults | config)
        )
        made.append(create_rdzv_handler(parameters))
        return made[-1]

    yield handler
    for each in made:
        each.shutdown()


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_a_barrier(make: Make, spans: Spans, run_id: str) -> None:
    make(1, 1, user="ann", password="hunter2").next_rendezvous()
    (barrier,) = spans.barriers()
    assert barrier.attributes == {
        "torchetcd.run_id": run_id,
        "torchetcd.min_nodes": 1,
        "torchetcd.max_nodes": 1,
        "torchetcd.outcome": "completed",
        "torchetcd.round": 1,
        "torchetcd.rank": 0,
        "torchetcd.world_size": 1,
    }
    assert barrier.status.status_code is StatusCode.UNSET
    assert spans.names(barrier) == ["join", "wait"]
    assert "hunter2" not in barrier.to_json()


def test_phases_follow_each_other(make: Make, spans: Spans) -> None:
    make(1, 2, last_call_timeout=1).next_rendezvous()
    (barrier,) = spans.barriers()
    assert spans.names(barrier) == ["join", "wait", "last_call"]
    phases = spans.phases(barrier)
    assert phases[0].start_time == barrier.start_time
    assert phases[-1].end_time == barrier.end_time
    for before, after in itertools.pairwise(phases):
        assert before.end_time == after.start_time
    # etcd's clock of leases has whole seconds.
    assert seconds(phases[-1]) > 0.5


def test_a_spare(make: Make, spans: Spans) -> None:
    first, second = make(1, 1), make(1, 1)
    first.next_rendezvous()
    told: list[int] = []
    import threading

    waiting = threading.Thread(target=lambda: told.append(second.next_rendezvous().rank))
    waiting.start()
    eventually(lambda: second._rdzv_impl._node.progress()[3], 30)
    first._rdzv_impl.leave()
    waiting.join(60)
    assert told == [0]
    barrier = spans.barriers()[-1]
    names = spans.names(barrier)
    assert names[:2] == ["join", "spare"]
    assert names[-1] == "wait"


def test_a_barrier_that_fails(make: Make, spans: Spans) -> None:
    with pytest.raises(RendezvousTimeoutError):
        make(2, 2, join_timeout=1).next_rendezvous()
    (barrier,) = spans.barriers()
    assert barrier.status.status_code is StatusCode.ERROR
    assert "1 of at least 2 nodes joined" in (barrier.status.description or "")
    assert barrier.attributes is not None
    assert barrier.attributes["error.type"] == "RendezvousTimeoutError"
    assert barrier.attributes["torchetcd.outcome"] == "timeout"
    assert "torchetcd.rank" not in barrier.attributes


def test_it_is_a_part_of_what_the_program_does(make: Make, spans: Spans) -> None:
    with trace.get_tracer("program").start_as_current_span("launch") as launch:
        make(1, 1).next_rendezvous()
    (barrier,) = spans.barriers()
    assert barrier.parent is not None
    assert barrier.parent.span_id == launch.get_span_context().span_id


def test_without_opentelemetry_and_prometheus(etcd_server: EtcdServer, run_id: str) -> None:
    """Neither is needed; and asking for what is not there is answered in one sentence."""
    source = f"""
import os, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("opentelemetry", "prometheus_client"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torchetcd.etcd_rendezvous import create_rdzv_handler
parameters = RendezvousParameters(
    "etcd-v3", "{etcd_server.get_endpoint()}", "{run_id}", 1, 1, local_addr="127.0.0.1", last_call_timeout=0
)
handler = create_rdzv_handler(parameters)
assert handler.next_rendezvous().world_size == 1
os.environ["TORCHETCD_METRICS_PORT"] = "0"
create_rdzv_handler(parameters)
handler.shutdown()
"""
    done = subprocess.run(
        [sys.executable, "-c", source], check=False, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "could not be recorded" not in done.stderr
    assert "the training goes on" in done.stderr
    assert done.stderr.rstrip().endswith("pip install 'torchetcd[metrics]'.")
