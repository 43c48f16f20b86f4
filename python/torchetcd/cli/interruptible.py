"""Running a coroutine such that Ctrl-C ends it at once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


def wait(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine in a loop of its own, and return its result.

    `asyncio.run` alone misses a Ctrl-C that comes right before the loop falls asleep, and then sleeps
    until something else happens. A handler of the loop's own wakes it.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when the coroutine has ended.
    """
    interrupted = False

    async def interruptible() -> _T:
        task = asyncio.current_task()
        assert task is not None

        def interrupt() -> None:
            nonlocal interrupted
            interrupted = True
            task.cancel()

        # Elsewhere than in the main thread nobody is interrupted.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
        return await coroutine

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
