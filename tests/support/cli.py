"""The command `torchetcd`: in this process, as a process over a pipe, and in a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from torchetcd.cli import main

# A process has to import; others may need the processor too.
PATIENCE_S = 30.0
_COMMAND = [sys.executable, "-m", "torchetcd.cli"]


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)


class Cli:
    """Runs commands in this process, against one etcd."""

    def __init__(self, endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._endpoint = endpoint
        self._capsys = capsys

    def __call__(self, *args: str) -> Done:
        """Run a command, given the endpoint."""
        return self.bare(*args, "--endpoint", self._endpoint)

    def bare(self, *args: str) -> Done:
        """Run a command as it is."""
        self._capsys.readouterr()
        code = main(args)
        return Done(code, *self._capsys.readouterr())


def environment(endpoint: str, **other: str) -> dict[str, str]:
    """Give a process its etcd, and nothing of what this one was told."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TORCHETCD_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"))
    }
    return {**kept, "TORCHETCD_ENDPOINT": endpoint, "TERM": "xterm-256color", **other}


@contextlib.contextmanager
def piped(endpoint: str, *args: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command whose output goes into a pipe."""
    process = subprocess.Popen(
        [*_COMMAND, *args],
        env=environment(endpoint, **env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class Terminal:
    """A command in a terminal."""

    def __init__(
        self, endpoint: str, *args: str, size: tuple[int, int] = (24, 80), **env: str
    ) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self._ours = ours
        self.shown = ""
        self.process = subprocess.Popen(
            [*_COMMAND, *args],
            env=environment(endpoint, **env),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def await_text(self, text: str, timeout: float = PATIENCE_S) -> float:
        """Wait until this is shown, after what was awaited before; return when."""
        deadline = time.monotonic() + timeout
        while text not in self.shown:
            left = deadline - time.monotonic()
            assert left > 0, f"not shown: {text!r}; shown: {self.shown!r}"
            if select.select([self._ours], [], [], left)[0]:
                self.shown += os.read(self._ours, 1 << 16).decode(errors="replace")
        seen = time.monotonic()
        self.shown = self.shown.split(text, 1)[1]
        return seen

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self._ours, text.encode())

    def end(self, again_s: float = PATIENCE_S) -> int:
        """Press Ctrl-C, once more after some time where that was missed, and return the exit code."""
        for _ in range(1 if again_s == PATIENCE_S else 5):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                return self.wait(again_s)
        raise AssertionError(f"it goes on: {self.shown!r}")

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """Wait for the end."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on: {self.shown!r}"
            # What nobody reads keeps it from ending.
            if select.select([self._ours], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    self.shown += os.read(self._ours, 1 << 16).decode(errors="replace")
        with contextlib.suppress(OSError):
            while select.select([self._ours], [], [], 0)[0]:
                read = os.read(self._ours, 1 << 16).decode(errors="replace")
                if not read:
                    break
                self.shown += read
        return self.process.returncode

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
