"""What must happen before the interpreter ends: nodes leave their runs, threads end."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchetcd._torchetcd import Rendezvous

_leaving: set[weakref.finalize[[Rendezvous], object]] = set()
#: Those that are about to be out.
_under_way: set[Rendezvous] = set()


def leave_at_end(owner: object, node: Rendezvous) -> None:
    """Let `node` leave its run when `owner` is gone, at the latest when the interpreter ends.

    An agent that ends without `shutdown()` (SIGTERM, an exception, the end of the script) must not
    close the run, but its peers should learn of it at once and not when its lease has run out.
    """
    leaving = weakref.finalize(owner, _leave, node)
    # At the end it is `_end` that calls it, before the native threads end.
    leaving.atexit = False
    _leaving.add(leaving)


def _leave(node: Rendezvous) -> None:
    _leaving.difference_update([leaving for leaving in _leaving if not leaving.alive])
    _under_way.add(node)
    # Nobody reads an error at the exit of the process. A lease that is not released expires.
    with contextlib.suppress(Exception):
        node.leave()
    _under_way.discard(node)


#: What schedulers, terminals and people end a program with. Python makes an exception of SIGINT.
_ENDING = (
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)


@contextlib.contextmanager
def leaving_on_signals(leave: Callable[[], None]) -> Iterator[None]:
    """Leave before a signal ends the process, where nobody handles it; it ends as it would.

    torch's agent handles some of them from the moment that it has started workers (torch
    `multiprocessing/api.py`, `PContext.start`). Until then, so in its first barrier, they would end
    it without a word to the peers.
    """
    unhandled = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
    if not unhandled or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(signum: int, _frame: object) -> None:
        # First, so that a second signal ends the process at once.
        for number in unhandled:
            signal.signal(number, signal.SIG_DFL)
        leave()
        os.kill(os.getpid(), signum)

    for number in unhandled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in unhandled:
            if signal.getsignal(number) is end:
                signal.signal(number, signal.SIG_DFL)


_afterwards: list[Callable[[], None]] = []


def after_leaving(end: Callable[[], None]) -> None:
    """Call `end` when the interpreter ends, after the nodes have left their runs."""
    _afterwards.append(end)


#: Longer than a node takes to leave.
_LEAVE_S = 1.0
#: Long for a thread that runs, nothing for one that ends.
_SETTLE_S = 0.05


@atexit.register
def _end() -> None:
    native = sys.modules.get("torchetcd._torchetcd")
    if native is None:
        # Nothing of it was used, and this is no time to begin.
        return
    # Other threads run on while this one waits: none of them may join again.
    native.begin_end()
    for leaving in list(_leaving):
        leaving()
    # Nodes that another thread was just letting go of.
    deadline = time.monotonic() + _LEAVE_S
    while _under_way and time.monotonic() < deadline:
        time.sleep(0.002)
    for end in _afterwards:
        with contextlib.suppress(Exception):
            end()
    # A native thread that outlives the interpreter can crash it.
    native.shutdown()
    if len(sys._current_frames()) > 1:
        # What waited in a store is not woken any more. A daemon thread that has its answer already
        # must get out of torch's C++ before the interpreter ends: there pybind11 takes the GIL in a
        # destructor, and Python ends the thread that does so later, and the process with it
        # ("terminate called without an active exception").
        time.sleep(_SETTLE_S)
