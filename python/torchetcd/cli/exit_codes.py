"""Exit codes, and how a command ends with one sentence."""

from __future__ import annotations

OK = 0
ERROR = 1
USAGE = 2
NOT_FOUND = 3
#: `why`: the barrier is not complete, or members of the run are gone. `doctor`: something is wrong.
FINDINGS = 4
#: `why`: the run is closed.
CLOSED = 5
INTERRUPTED = 130


class Failure(Exception):  # noqa: N818 - it ends a command, and is no error of ours
    """Ends a command: one sentence for standard error, and an exit code."""

    def __init__(self, message: str, code: int = ERROR) -> None:
        super().__init__(message)
        self.code = code
