"""A server ends with its owner, however that ends, and lives on once its guard has been released."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.waiting import eventually

#: Says that it runs, and waits for ever: it is a session of its own, so only the guard ends it.
SERVER = "echo ready; while :; do sleep 600 & wait $!; done"
DEAF = f"trap '' TERM; {SERVER}"
OWNER = """\
import subprocess, sys
from torchetcd._child_guard import ChildGuard
server = subprocess.Popen(
    ["/bin/sh", "-c", sys.argv[1]], stdout=subprocess.PIPE, start_new_session=True
)
server.stdout.readline()
guard = ChildGuard(server.pid, sys.argv[2])
print(server.pid, flush=True)
if sys.stdin.readline() == "release\\n":
    guard.release()
    print("released", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def _owner(server: str, folder: str = "") -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-c", OWNER, server, folder]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        try:
            yield owner, pid
        finally:
            owner.kill()
            with contextlib.suppress(ProcessLookupError):
                # With its children, which are of its group.
                os.killpg(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    """Whether a process runs; a zombie, which is left where nobody waits for orphans, does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def _is_killed(owner: subprocess.Popen[str]) -> None:
    owner.kill()
    owner.wait()


def _ends(owner: subprocess.Popen[str]) -> None:
    owner.communicate("")


@pytest.mark.parametrize("end", [_is_killed, _ends])
def test_it_ends_with_its_owner(end: Callable[[subprocess.Popen[str]], None]) -> None:
    with _owner(SERVER) as (owner, pid):
        assert _lives(pid)
        end(owner)
        eventually(lambda: not _lives(pid))


def test_one_that_ignores_sigterm_is_killed_and_its_folder_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "its folder"
    folder.mkdir()
    (folder / "file").touch()
    with _owner(DEAF, str(folder)) as (owner, pid):
        _is_killed(owner)
        eventually(lambda: not _lives(pid))
        eventually(lambda: not folder.exists())


def test_a_folder_is_deleted_with_a_server_that_ends_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "its folder"
    folder.mkdir()
    with _owner(SERVER, str(folder)) as (owner, pid):
        _is_killed(owner)
        eventually(lambda: not _lives(pid) and not folder.exists())


def _write(owner: subprocess.Popen[str], line: str) -> None:
    assert owner.stdin is not None
    owner.stdin.write(f"{line}\n")
    owner.stdin.flush()


def test_once_released_it_outlives_its_owner() -> None:
    with _owner(SERVER) as (owner, pid):
        _write(owner, "release")
        assert owner.stdout is not None
        assert owner.stdout.readline() == "released\n"  # the guard has ended
        _is_killed(owner)
        assert _lives(pid)
