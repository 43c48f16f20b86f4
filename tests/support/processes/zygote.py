"""Whole Python processes that begin fast: forked with torch imported, and ended as any other.

A child of `multiprocessing` skips the end of the interpreter, which is what is of interest here; a new
process imports torch for seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from types import TracebackType

# Forks at each request; the child leaves the loop and runs what it was given as the program.
_ZYGOTE = """
import faulthandler, gc, json, os, signal, socket, sys, threading, time
import {imports}

# Else the end of each process looks through all of torch: 1 s. What a program makes is collected as ever.
gc.collect()
gc.freeze()

_requests = socket.socket(fileno=int(sys.argv[1]))
while True:
    _message, _fds, _, _ = socket.recv_fds(_requests, 1 << 16, 3)
    if not _message:
        os._exit(0)
    _kind, _rest = json.loads(_message)
    if _kind == "wait":
        _status = os.waitpid(_rest, 0)[1]
        _requests.send(json.dumps(os.waitstatus_to_exitcode(_status)).encode())
        continue
    _pid = os.fork()
    if _pid:
        for _fd in _fds:
            os.close(_fd)
        _requests.send(json.dumps(_pid).encode())
        continue
    _requests.close()
    os.setpgid(0, 0)
    for _number, _fd in enumerate(_fds):
        os.dup2(_fd, _number)
        os.close(_fd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1)
    _source, sys.argv, _environ = _rest
    if _environ is not None:
        os.environ.clear()
        os.environ.update(_environ)
    break
exec(compile(_source, "<program>", "exec"))
"""


_IMPORTS = "torch.distributed, torchetcd.etcd_rendezvous, torchetcd.etcd_store"


class Zygote:
    """Starts processes, in which `imports` is imported; in a `with` block it runs."""

    def __init__(self, imports: str = _IMPORTS, **env: str) -> None:
        self._source = _ZYGOTE.replace("{imports}", imports)
        self._env = os.environ | env

    def __enter__(self) -> Zygote:
        #: Those whose end was not waited for, because their test failed.
        self.running: set[Program | Forked] = set()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-W", "ignore", "-c", self._source, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=self._env)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.end_all()
        self._socket.close()
        self._process.wait(30)

    def end_all(self) -> None:
        """End what runs still."""
        for program in list(self.running):
            program.kill()

    def ask(self, request: object, fds: tuple[int, ...] = (), limit: float = 180) -> int | None:
        """Send a request and return its answer; `None` when there is none in time."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], list(fds))
        return self.answer(limit)

    def answer(self, limit: float) -> int | None:
        if not select.select([self._socket], [], [], limit)[0]:
            return None
        return int(json.loads(self._socket.recv(1 << 10)))


class Program:
    """A process that runs a program, with pipes as its standard streams."""

    def __init__(self, zygote: Zygote, source: str, *args: object) -> None:
        self._zygote = zygote
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        ours_err, theirs_err = os.pipe()
        request = ("start", [textwrap.dedent(source), ["program", *map(str, args)], None])
        fds = (theirs_in, theirs_out, theirs_err)
        pid = zygote.ask(request, fds)
        assert pid is not None
        self.pid = pid
        zygote.running.add(self)
        for fd in fds:
            os.close(fd)
        self._in, self._out, self._err = ours_in, ours_out, os.fdopen(ours_err, "r")
        self._unread = b""

    def line(self, limit: float = 60) -> str:
        """Return the next line that it writes; fails when it ends before or takes longer."""
        while b"\n" not in self._unread:
            assert select.select([self._out], [], [], limit)[0], f"silent for {limit} s"
            read = os.read(self._out, 1 << 16)
            assert read, self._err.read()
            self._unread += read
        found, _, self._unread = self._unread.partition(b"\n")
        return found.decode()

    def go_on(self) -> None:
        """Send a line to its standard input."""
        os.write(self._in, b"\n")

    def signal(self, signum: signal.Signals) -> None:
        os.kill(self.pid, signum)

    def kill(self) -> None:
        """End it and whatever it has forked."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._zygote.ask(("wait", self.pid))
        self._close()

    def end(self, limit: float = 30) -> tuple[int, str]:
        """Wait for its end; its exit code and what it wrote to its standard error."""
        code = self._zygote.ask(("wait", self.pid), limit=limit)
        if code is None:
            # Where it stands: all threads, by faulthandler.
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGUSR1)
                self._zygote.answer(1)
                os.killpg(self.pid, signal.SIGKILL)
            self._zygote.answer(30)
        errors = self._close()
        assert code is not None, f"no end within {limit} s:\n{errors}"
        return code, errors

    def _close(self) -> str:
        self._zygote.running.discard(self)
        os.close(self._in)
        os.close(self._out)
        with self._err:
            # Its own children may hold the pipe open, so no reading to the end.
            os.set_blocking(self._err.fileno(), False)
            with contextlib.suppress(BlockingIOError):
                return os.read(self._err.fileno(), 1 << 16).decode()
            return ""


class Forked:
    """A process that runs a program and writes into files: what of `subprocess.Popen` its tests use."""

    def __init__(
        self,
        zygote: Zygote,
        source: str,
        args: list[str],
        env: dict[str, str],
        output: int,
        errors: int | None = None,
    ) -> None:
        self._zygote = zygote
        self.returncode: int | None = None
        with open(os.devnull) as nothing:
            fds = (nothing.fileno(), output, output if errors is None else errors)
            pid = zygote.ask(("start", [source, ["program", *args], env]), fds)
        assert pid is not None
        self.pid = pid
        self._ended = os.pidfd_open(pid)
        zygote.running.add(self)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("program", timeout or 0)
            self.returncode = self._zygote.ask(("wait", self.pid))
            assert self.returncode is not None
            os.close(self._ended)
            self._zygote.running.discard(self)
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, signum: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_forked(
    zygote: Zygote, source: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, and return what it has written."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        files = out.fileno(), errors.fileno()
        code = Forked(zygote, source, [], dict(os.environ) if env is None else env, *files).wait(
            120
        )
        for file in (out, errors):
            file.seek(0)
        return subprocess.CompletedProcess(source, code, out.read(), errors.read())
