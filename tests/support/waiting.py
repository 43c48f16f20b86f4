"""Waiting for what no event announces."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def eventually(condition: Callable[[], object], timeout: float = 30.0) -> None:
    """Wait for what no event announces, such as the end of another process.

    Other tests may keep the machine busy for many seconds.
    """
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s"
        pause.wait(0.02)
