"""OpenTelemetry spans of barriers, where the program has opentelemetry-api (`torchetcd[otel]`).

`torchetcd.rendezvous` spans a call of `next_rendezvous()`. Its children are the phases: `.join` until this
node had entered a round, `.spare` while it waited outside of one that was complete, `.wait` for enough
nodes, `.last_call` for more. Nothing is sent anywhere unless the program has set up a tracer provider.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from torchetcd._version import version

if TYPE_CHECKING:
    from types import ModuleType

    from opentelemetry.trace import Span, Tracer

__all__ = ["BarrierSpan", "Phases"]

#: What the native half reports about a barrier: seconds until entered, spare, last call, end.
Phases = tuple[float | None, float | None, float | None, float | None]

_NAME = "torchetcd.rendezvous"


class BarrierSpan:
    """The span of one barrier; does nothing without OpenTelemetry."""

    def __init__(self, attributes: dict[str, str | int]) -> None:
        self._trace = _opentelemetry()
        self._tracer: Tracer | None = None
        if self._trace is not None:
            self._tracer = self._trace.get_tracer("torchetcd", version())
        self._span: Span | None = None
        self._began_ns = time.time_ns()
        if self._tracer is not None:
            self._span = self._tracer.start_span(
                _NAME, attributes=_named(attributes), start_time=self._began_ns
            )

    def end(
        self, phases: Phases | None, attributes: dict[str, str | int], error: BaseException | None
    ) -> None:
        """End it, and report its phases."""
        if self._trace is None or self._tracer is None or self._span is None:
            return
        ended_ns = time.time_ns()
        context = self._trace.set_span_in_context(self._span)
        for name, since_ns, until_ns in self._parts(phases, ended_ns):
            part = self._tracer.start_span(f"{_NAME}.{name}", context=context, start_time=since_ns)
            part.end(until_ns)
        self._span.set_attributes(_named(attributes))
        if error is not None:
            # Its text has names of hosts and endpoints, and never a password.
            self._span.set_attribute("error.type", type(error).__name__)
            self._span.set_status(self._trace.StatusCode.ERROR, str(error))
        self._span.end(ended_ns)

    def _parts(self, phases: Phases | None, ended_ns: int) -> list[tuple[str, int, int]]:
        if phases is None:
            return []
        names = ("wait", "spare", "last_call")
        begun = [(0.0, "join")]
        begun += [
            (since, name) for name, since in zip(names, phases, strict=False) if since is not None
        ]
        times = sorted((self._began_ns + int(since * 1e9), name) for since, name in begun)
        ends = [*(since for since, _ in times[1:]), ended_ns]
        return [
            (name, since, max(since, until))
            for (since, name), until in zip(times, ends, strict=True)
        ]


def _named(attributes: dict[str, str | int]) -> dict[str, str | int]:
    return {f"torchetcd.{name}": value for name, value in attributes.items()}


def _opentelemetry() -> ModuleType | None:
    # Who has set up a tracer provider has loaded it. To load it for nobody would cost each agent more than
    # all else that it does until it joins.
    return sys.modules.get("opentelemetry.trace")
