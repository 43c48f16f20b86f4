"""The etcd of one member, as a child process of its agent."""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections.abc import Sequence
from subprocess import DEVNULL, STDOUT, Popen, TimeoutExpired
from subprocess import run as run_program

from torchetcd._child_guard import ChildGuard
from torchetcd._etcd_process import find_binary
from torchetcd._quorum.entries import Entries, Entry
from torchetcd._quorum.folder import Folder
from torchetcd._quorum.material import Material
from torchetcd._quorum.places import listening_address

_logger = logging.getLogger("torchetcd.quorum")

#: The leader hands its part over first.
_STOP_S = 5.0
_TAIL = 2000
#: A rendezvous writes little, so what it needs is small: a quota, history of a few minutes, and snapshots
#: that let etcd forget its log of writes.
_SMALL = (
    "--quota-backend-bytes=536870912",
    "--auto-compaction-mode=periodic",
    "--auto-compaction-retention=10m",
    "--snapshot-count=10000",
    # Off in etcd 3.4: a member that comes back does not end the leader's office.
    "--pre-vote=true",
    # The HTTP side of etcd's API, which nobody uses here.
    "--enable-grpc-gateway=false",
    "--logger=zap",
    "--log-level=warn",
)


@functools.cache
def _skips_names(binary: str) -> list[str]:
    """Return the flag that keeps a member from comparing addresses of others with their certificates.

    Whoever has a certificate has the secret. A host with several addresses, or behind a translation of them,
    does not know which one the others see. The flag has another name since etcd 3.6.
    """
    told = run_program([binary, "--help"], capture_output=True, check=False, stdin=DEVNULL)
    names = (
        "--peer-skip-client-san-verification",
        "--experimental-peer-skip-client-san-verification",
    )
    return [f"{name}=true" for name in names if f"{name} ".encode() in told.stdout + told.stderr][
        :1
    ]


class Member:
    """One etcd."""

    def __init__(
        self, entries: Entries, entry: Entry, token: str, material: Material | None
    ) -> None:
        """Describe a member; `start` starts it.

        Args:
            entries: All entries.
            entry: Its own.
            token: The name of the quorum.
            material: The certificates; without them everybody may come.
        """
        self._entries, self._entry, self._token, self._material = entries, entry, token, material
        self._process: Popen[bytes] | None = None
        self._guard: ChildGuard | None = None
        self._folder: Folder | None = None

    @property
    def runs(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process."""
        return None if self._process is None else self._process.pid

    def start(self, folder: Folder, initial_cluster: Sequence[tuple[str, str]] | None) -> None:
        """Start it.

        Args:
            folder: Where its data is.
            initial_cluster: Names and peer URLs of the members that it joins; `None` for one of the first,
                and for one with data.

        Raises:
            OSError: if there is no etcd, or it cannot be started.
        """
        self.stop()
        entry, scheme = self._entry, self._entries.scheme
        address = listening_address(entry.host)
        at = f"[{address}]" if ":" in address else address
        joined = [f"{name}={url}" for name, url in initial_cluster or ()]
        command = [
            find_binary(),
            f"--name={entry.name}",
            f"--data-dir={folder.data}",
            f"--listen-client-urls={scheme}://{at}:{entry.port}",
            f"--advertise-client-urls={entry.client_url(scheme)}",
            f"--listen-peer-urls={scheme}://{at}:{entry.peer_port}",
            f"--initial-advertise-peer-urls={entry.peer_url(scheme)}",
            f"--initial-cluster={','.join(joined) or self._entries.initial_cluster()}",
            f"--initial-cluster-state={'existing' if joined else 'new'}",
            f"--initial-cluster-token={self._token}",
            *_SMALL,
        ]
        if self._material is not None:
            command += _skips_names(command[0])
            for kind in ("", "peer-"):
                command += [
                    f"--{kind}client-cert-auth=true",
                    f"--{kind}trusted-ca-file={self._material.ca}",
                    f"--{kind}cert-file={self._material.cert}",
                    f"--{kind}key-file={self._material.key}",
                ]
        # Variables that configure etcd collide with the flags, which etcd takes for an error.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("ETCD_") or name == "ETCD_UNSUPPORTED_ARCH"
        }
        # Go makes a thread for each core that it may use, and training hosts have hundreds.
        environment.setdefault("GOMAXPROCS", str(min(os.cpu_count() or 1, 4)))
        # Memory of the host is the training's. Of 1,000 nodes this saves up to a quarter, and costs no time.
        environment.setdefault("GOGC", "25")
        _logger.debug("Starting a member: %s", command)
        self._folder = folder
        with folder.log.open("wb") as log:
            self._process = Popen(
                command,
                stdin=DEVNULL,
                stdout=log,
                stderr=STDOUT,
                env=environment,
                # Ctrl-C goes to the whole foreground group; the member must outlive the handlers.
                start_new_session=True,
            )
        keys = os.path.dirname(self._material.ca) if self._material is not None else ""
        self._guard = ChildGuard(self._process.pid, keys)

    def stop(self, *, kill: bool = False) -> None:
        """End it, in order unless `kill`. Without a process this does nothing."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
                try:
                    process.wait(_STOP_S)
                except TimeoutExpired:
                    process.kill()
                    process.wait()
            else:
                process.wait()
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.release()

    def tail(self) -> str:
        """Return the end of what it has printed."""
        if self._folder is None or not self._folder.log.is_file():
            return ""
        return self._folder.log.read_bytes()[-_TAIL:].decode(errors="replace").strip()
