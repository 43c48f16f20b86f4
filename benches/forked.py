"""Processes of a benchmark that are forked after torch was imported, so that many of them start fast."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_CONTEXT = multiprocessing.get_context("fork")
_PR_SET_PDEATHSIG = 1
_CPUCLOCK_SCHED = 2


class Forked:
    """A process that runs `target(connection, *args)`, and the other end of its connection.

    One pipe for each: a process that is killed while it writes to a queue takes the queue's lock along.
    """

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_run, args=(target, theirs, args), daemon=True)
        self._process.start()
        theirs.close()
        self.pid: int = self._process.pid or -1

    def receive(self, timeout: float) -> Any:
        if not self.connection.poll(timeout):
            raise TimeoutError(f"process {self.pid} said nothing for {timeout} s")
        return self.connection.recv()

    def signal(self, signum: signal.Signals) -> float:
        """Send a signal, and return when."""
        at = time.monotonic()
        os.kill(self.pid, signum)
        return at

    def cpu_s(self) -> float:
        """CPU time of the process so far, of all its threads."""
        # What clock_getcpuclockid(3) gives: in nanoseconds, where /proc/PID/stat counts in ticks of 10 ms.
        return time.clock_gettime(~self.pid << 3 | _CPUCLOCK_SCHED)

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def be_silent() -> None:
    """Write to stderr no more, in native code either."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _run(target: Callable[..., None], connection: Connection, args: tuple[Any, ...]) -> None:
    # If the benchmark dies, so does this one.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        target(connection, *args)
    except Exception:
        traceback.print_exc()
    finally:
        # Without the interpreter's end: N of them at once say nothing about what is measured.
        os._exit(0)
