"""Ends a server when the process that owns it is gone, whatever ended that."""

from __future__ import annotations

import contextlib
from subprocess import DEVNULL, PIPE, Popen

# Waits for the end of its input. With a line before that the server was stopped in order; without
# one its owner died (SIGKILL, a crash), and the server goes too. This is a process of its own
# because PR_SET_PDEATHSIG needs code between fork and exec, which is not safe with threads, and
# fires when the *thread* that started the server ends.
_GUARD = """\
read -r _ && exit
kill -TERM "$1" || exit
n=0
while kill -0 "$1" && [ $n -lt 50 ]; do sleep 0.1; n=$((n + 1)); done
kill -KILL "$1"
if [ -n "$2" ]; then rm -rf -- "$2"; fi
"""


class ChildGuard:
    """Guards one server, until `release`."""

    def __init__(self, pid: int, folder: str = "") -> None:
        """Begin.

        Args:
            pid: The server's process.
            folder: What is deleted with it.
        """
        self._process: Popen[bytes] | None = None
        with contextlib.suppress(OSError):  # without a shell there is no guard
            self._process = Popen(
                ["/bin/sh", "-c", _GUARD, "sh", str(pid), folder],
                stdin=PIPE,
                stdout=DEVNULL,
                stderr=DEVNULL,
                start_new_session=True,
            )

    def release(self) -> None:
        """Guard nothing any more."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.communicate(b"stop\n")
