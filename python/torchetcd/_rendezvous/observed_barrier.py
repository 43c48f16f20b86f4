"""What is reported of barriers: counters, torch's metrics, and spans."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.distributed.elastic import metrics as torchs
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousStateError,
    RendezvousTimeoutError,
)

from torchetcd import _run_counts
from torchetcd._environment import METRICS_ADDRESS, METRICS_PORT
from torchetcd.tracing import BarrierSpan, Phases

if TYPE_CHECKING:
    from types import TracebackType

    from torchetcd._torchetcd import Rendezvous

_logger = logging.getLogger(__name__)

#: The name of our group of torch's metrics.
_GROUP = "torchetcd"

_OUTCOMES = (
    (RendezvousClosedError, "closed"),
    (RendezvousTimeoutError, "timeout"),
    (RendezvousConnectionError, "unreachable"),
    (RendezvousStateError, "unreadable"),
    (Exception, "failed"),
)


def serve_metrics_if_asked() -> None:
    """Serve metrics if the environment says so, once in a process.

    What stands against it is logged: sites set the variable for images without prometheus-client too, and
    Kubernetes sets it to an address where a Service is named torchetcd-metrics.
    """
    if ports := METRICS_PORT.get():
        from torchetcd import metrics  # noqa: PLC0415 - heavy, and most agents do not need it

        try:
            if metrics.served_at() is None:
                metrics.serve(ports, METRICS_ADDRESS.get() or metrics.LOOPBACK)
        except Exception as exc:  # noqa: BLE001 - no measuring may end a training
            _logger.warning("Metrics are not served, and the training goes on: %s", exc)


class ObservedBarrier:
    """A `with` block around a barrier. Whatever goes wrong here does not reach the barrier.

    >>> with ObservedBarrier("run", node, 2, 4) as barrier:
    ...     barrier.completed(round_, rank, world_size)
    """

    def __init__(self, run_id: str, node: Rendezvous, least: int, most: int) -> None:
        self._run_id = run_id
        self._node = node
        self._nodes = (least, most)
        self._place: tuple[int, int, int] | None = None
        self._span: BarrierSpan | None = None

    def completed(self, round_: int, rank: int, world_size: int) -> None:
        """Say what came of it."""
        self._place = (round_, rank, world_size)

    def __enter__(self) -> ObservedBarrier:
        """Begin the span."""
        self._began = time.monotonic()
        least, most = self._nodes
        with _contained():
            self._span = BarrierSpan(
                {"run_id": self._run_id, "min_nodes": least, "max_nodes": most}
            )
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Count it, and end the span."""
        seconds = time.monotonic() - self._began
        with _contained():
            phases = self._phases()
            outcome = "completed" if exc is None else _outcome(exc)
            last_call = None if exc or phases is None else _last_call(phases)
            _barrier_ended(self._run_id, outcome, seconds, last_call, self._place)
            if self._span is not None:
                self._span.end(phases, self._attributes(outcome), exc)

    def _phases(self) -> Phases | None:
        try:
            return self._node.phases()
        except RuntimeError:
            # A forked child has no part in it.
            return None

    def _attributes(self, outcome: str) -> dict[str, str | int]:
        attributes: dict[str, str | int] = {"outcome": outcome}
        if self._place:
            attributes |= dict(zip(("round", "rank", "world_size"), self._place, strict=True))
        return attributes


def _outcome(exc: BaseException) -> str:
    return next((name for kind, name in _OUTCOMES if isinstance(exc, kind)), "interrupted")


def _last_call(phases: Phases) -> float | None:
    _, _, since, ended = phases
    return None if since is None or ended is None else ended - since


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    try:
        yield
    except Exception:
        _logger.warning(
            "The metrics or the span of a barrier could not be recorded.", exc_info=True
        )


def _barrier_ended(
    run_id: str,
    outcome: str,
    seconds: float,
    last_call_s: float | None,
    place: tuple[int, int, int] | None,
) -> None:
    _run_counts.barrier_ended(run_id, outcome, seconds, last_call_s, place)
    told = {f"barrier.{outcome}": 1, "barrier.duration.ms": round(seconds * 1000)}
    if last_call_s is not None:
        told["last_call.duration.ms"] = round(last_call_s * 1000)
    if place:
        told |= {"round": place[0], "world_size": place[2]}
    _put(told)


def world_changes(run_id: str, cause: str) -> None:
    """Count a round of this node that is over, or must be formed again.

    Args:
        run_id: The run.
        cause: One of `_run_counts.CAUSES`.
    """
    _run_counts.world_changes(run_id, cause)
    _put({f"world_change.{cause}": 1})


def run_closed(run_id: str) -> None:
    """Count a close."""
    _run_counts.run_closed(run_id)
    _put({"run.closed": 1})


#: The values of the native counters that torch's metrics have received.
_published: dict[str, int] = {}


def _put(told: dict[str, int]) -> None:
    """Give torch's handler of metrics what has happened, and by how much each counter has grown."""
    if isinstance(torchs.getStream(_GROUP).handler, torchs.NullMetricHandler):
        return
    told = dict(told)
    for name, number in _flat(_run_counts.native()).items():
        grown = number - _published.get(name, 0)
        if grown:
            told[name] = grown
            _published[name] = number
    try:
        for name, value in told.items():
            torchs.put_metric(name, value, _GROUP)
    except Exception:
        _logger.warning("A handler of torch's metrics failed.", exc_info=True)


def _flat(counted: dict[str, Any]) -> dict[str, int]:
    flat = {
        f"rpcs.{rpc}.{result}": number
        for rpc, calls in counted["rpcs"].items()
        for result, number in calls["results"].items()
    }
    for name, (group, _) in _run_counts.NATIVE.items():
        flat |= {f"{name}.{label}": number for label, number in counted[group].items()}
    return flat


def _begin_in_child() -> None:
    global _published  # noqa: PLW0603 - a process's own
    _published = {}


os.register_at_fork(after_in_child=_begin_in_child)
