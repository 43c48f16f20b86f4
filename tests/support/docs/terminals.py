"""Terminals in which the commands of a page are typed, as a reader would."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT
from support.docs.blocks import Block
from support.waiting import eventually
from torchetcd.etcd_server import find_binary, find_free_port

# Interpreters with torch start slowly on a busy machine.
PATIENCE_S = 90


class Terminals:
    """Shells in one folder, with the programs that a page may call."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shells: dict[str, subprocess.Popen[bytes]] = {}
        self._bin = programs(folder)
        (folder / "examples").symlink_to(ROOT / "examples")
        # For the one that pages name.
        with find_free_port() as sock:
            self._port = str(sock.getsockname()[1])

    def save(self, name: str, source: str) -> None:
        (self._folder / name).write_text(source)

    def type(self, block: Block) -> None:
        """Type a block's commands; then wait for what it says."""
        name, _, until = block.marks["terminal"].partition("; until: ")
        before = {log: log.stat().st_size for log in self._folder.glob("*.terminal")}
        shell = self._shells.get(name) or self._open(name)
        assert shell.stdin is not None
        shell.stdin.write(block.source.replace("2379", self._port).encode())
        shell.stdin.flush()
        if until:
            wanted = re.compile(until)
            try:
                eventually(
                    lambda: any(wanted.search(text) for text in self._since(before)), PATIENCE_S
                )
            except AssertionError:
                pytest.fail(f"{block.where}: {until!r} was not shown:\n{self.shown()}")

    def _open(self, name: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.terminal").open("wb") as log:
            self._shells[name] = subprocess.Popen(
                ["bash"],
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(self._bin),
                start_new_session=True,
            )
        return self._shells[name]

    def _since(self, before: dict[Path, int]) -> list[str]:
        return [
            log.read_bytes()[before.get(log, 0) :].decode(errors="replace")
            for log in self._folder.glob("*.terminal")
        ]

    def shown(self) -> str:
        """All that the terminals show."""
        logs = sorted(self._folder.glob("*.terminal"))
        return "\n".join(f"== {log.stem}\n{log.read_text(errors='replace')}" for log in logs)

    def end(self) -> None:
        """End all that runs in the folder: workers have sessions of their own."""

        def nothing_runs() -> bool:
            pids = running_in(self._folder)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for shell in self._shells.values():
                shell.poll()
            return not pids

        eventually(nothing_runs, 30)
        for shell in self._shells.values():
            assert shell.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                shell.stdin.close()
            shell.wait(30)


def programs(folder: Path) -> str:
    """Make a folder with the etcd and etcdctl of the tests; the value of PATH with it."""
    made = folder / "bin"
    made.mkdir()
    for name in ("etcd", "etcdctl"):
        found = Path(find_binary()).with_name(name)
        if found.is_file():
            (made / name).symlink_to(found)
    return os.pathsep.join([str(made), str(Path(sys.executable).parent), os.environ["PATH"]])


def environment(path: str) -> dict[str, str]:
    """What a reader's shell has: nothing of ours."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TORCHETCD_", "ETCD"))}
    return kept | {"PATH": path, "ETCDCTL_API": "3", "OMP_NUM_THREADS": "1"}


def has_etcdctl() -> bool:
    return Path(find_binary()).with_name("etcdctl").is_file()


def running_in(folder: Path) -> list[int]:
    """The processes whose working directory this is."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                where = Path(os.readlink(entry / "cwd"))
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and where.is_relative_to(folder):
                    found.append(int(entry.name))
    return found


BASH = shutil.which("bash") or "bash"
