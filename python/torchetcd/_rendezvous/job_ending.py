"""How a job ended, as the exception tells that is under way when the agent shuts its rendezvous down.

torch's launcher calls `shutdown()` in a `finally` block (torch `launcher/api.py`), so it is called while
the exception that ends the agent goes on, and without one when the workers have succeeded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

#: What torch says of a worker that has left no error (torch `errors/__init__.py`).
_NO_ERROR = "To enable traceback see:"


class _WorkersFailedError(Exception):
    """Workers failed, and nothing is known of how."""


class Ending(NamedTuple):
    """How a job ended."""

    #: `succeeded`, `failed` or `signal`.
    result: str
    #: One clause for people.
    text: str


SUCCEEDED = Ending("succeeded", "the job succeeded")


def ending(exc: BaseException | None, host: str, outer: BaseException | None = None) -> Ending:
    """Say how a job ended. It never raises.

    Args:
        exc: The exception that is under way, if one is.
        host: The name of this host.
        outer: An exception that was being handled before the job began: it says nothing of this job.
    """
    if exc is None or exc is outer:
        return SUCCEEDED
    try:
        return _ending(exc, host, outer)
    except Exception:  # noqa: BLE001 - it is somebody's exception, whose attributes may do anything
        return Ending("failed", type(exc).__name__)


def ending_now(host: str, outer: BaseException | None) -> Ending:
    """Say how the job ends whose agent is shutting its rendezvous down around this call; see `ending`."""
    return ending(failure_of_agent() or under_way(), host, outer)


def ending_of_world(ending: Ending, host: str, broken: tuple[str, str] | None) -> Ending:
    """Say how the whole job ended, of which `ending` is this node's part.

    Args:
        ending: How it ended here.
        host: The name of this host.
        broken: The cause and the reason for which the world is over; `None` while it is whole.
    """
    if ending == SUCCEEDED and broken is not None and broken[0] == "next_round":
        # Workers elsewhere failed after those of this node had succeeded. torchrun must restart them.
        return Ending("failed", f"the workers of {host} succeeded, but not all: {broken[1]}")
    return ending


def under_way() -> BaseException | None:
    """Return the exception that is being handled, in whatever caller."""
    return sys.exc_info()[1]


def failure_of_agent() -> BaseException | None:
    """Return the failure of workers of which an agent around this call has not made an exception.

    The agents of torch 2.4 to 2.6 call `shutdown()` themselves when their workers have failed for good. They
    return the failures then, and the launcher makes an exception of them, which is too late.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_invoke_run":
            # Whatever this is, it may not raise here.
            with contextlib.suppress(Exception):
                known = frame.f_locals
                result = known["run_result"]
                if result.state.name in {"FAILED", "UNHEALTHY"}:
                    return _failure(known["self"], result.failures)
        frame = frame.f_back
    return None


def _failure(agent: Any, failures: dict[int, ProcessFailure]) -> BaseException:
    if not failures:
        return _WorkersFailedError("the workers failed")
    spec = agent._worker_group.spec
    program = spec.entrypoint
    if callable(program):
        name = program.__name__
    elif program == sys.executable:
        name = next((arg for arg in spec.args if not arg.startswith("-")), "")
    else:
        name = str(program)
    made: BaseException = ChildFailedError(name, failures)
    return made


def _ending(exc: BaseException, host: str, outer: BaseException | None) -> Ending:
    # What fails on the way out hides why the agent ended: that is further down the chain.
    for found in _chain(exc, outer):
        if isinstance(found, ChildFailedError):
            return Ending("failed", _of_worker(found, host))
        if isinstance(found, SignalException):
            return Ending("signal", f"the agent got {_signal_name(found.sigval)}")
    if isinstance(exc, _WorkersFailedError):
        return Ending("failed", str(exc))
    if isinstance(exc, KeyboardInterrupt):
        return Ending("signal", "the agent got SIGINT")
    if isinstance(exc, SystemExit) and exc.code in {None, 0}:
        return SUCCEEDED
    text = _first_line(str(exc))
    return Ending("failed", f"{type(exc).__name__}: {text}" if text else type(exc).__name__)


def _chain(exc: BaseException, outer: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = exc
    while current is not None and current is not outer and id(current) not in seen:
        yield current
        seen.add(id(current))
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )


def _of_worker(error: ChildFailedError, host: str) -> str:
    rank, failure = error.get_first_failure()
    name = os.path.basename(error.name) or "a worker"
    text = f"{name} failed on host {host}, rank {rank}, exit code {failure.exitcode}"
    if failure.exitcode < 0:
        return f"{text} ({_signal_name(-failure.exitcode)})"
    message = _message(failure)
    return f"{text}: {message}" if message else text


def _message(failure: ProcessFailure) -> str:
    # A text, or what `@record` has put into the worker's error file.
    message: object = failure.message
    if isinstance(message, dict):
        message = message.get("message")
    line = _first_line(message) if isinstance(message, str) else ""
    return "" if line.startswith(_NO_ERROR) else line


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {int(number)}"
