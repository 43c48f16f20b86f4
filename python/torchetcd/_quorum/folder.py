"""Where a member keeps its data: a private folder for each entry of a job, which one agent uses at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

_logger = logging.getLogger("torchetcd.quorum")

#: etcd writes its log of writes in files of 64 MB and makes the next one in advance.
_LEAST_FREE = 200 << 20
#: The run has nothing left in etcd by then (`run_ttl`), so what is there belongs to an earlier job.
STALE_S = 7200.0


#: Of this process: the kernel's locks do not tell its threads apart.
_held: set[Path] = set()


class FolderError(Exception):
    """Why there can be no member: a sentence that names the folder."""


class Folder:
    """The folder of one entry. Its lock is held until `close`, at the latest until the process ends."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path, self._lock = path, lock

    @property
    def data(self) -> Path:
        """Etcd's own folder."""
        return self.path / "data"

    @property
    def log(self) -> Path:
        """What etcd prints."""
        return self.path / "etcd.log"

    @property
    def member(self) -> int | None:
        """The id of the member whose data is here; `None` without data."""
        if not (self.data / "member" / "wal").is_dir():
            return None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads(self._record.read_text())["member"])
        return None

    @property
    def knows(self) -> bool:
        """Whether an agent has heard of the quorum here. It outlives the data."""
        return self._mark.exists()

    def learn(self) -> None:
        """Note that there is a quorum, as of now."""
        is_new = not self.knows
        self._mark.touch()
        if is_new:
            self._sync(self._mark)

    @property
    def _mark(self) -> Path:
        return self.path / "quorum"

    @property
    def _record(self) -> Path:
        return self.path / "member.json"

    def _sync(self, path: Path) -> None:
        """Let a file outlive a loss of power, as the data of etcd does."""
        for each, flags in ((path, os.O_RDONLY), (self.path, os.O_RDONLY | os.O_DIRECTORY)):
            opened = os.open(each, flags)
            try:
                os.fsync(opened)
            finally:
                os.close(opened)

    def keep(self, member: int) -> None:
        """Note whose data is made here now."""
        temporary = self.path / "member.json.new"
        temporary.write_text(json.dumps({"member": member}))
        self._sync(temporary)
        temporary.replace(self._record)
        self._sync(self._record)

    def in_use(self) -> None:
        """Note that the data is of now."""
        with contextlib.suppress(OSError):
            os.utime(self._record)

    def age_s(self) -> float | None:
        """Return for how long nobody has used what is here; `None` if nothing is."""
        used = []
        for each in (self._record, self._mark):
            with contextlib.suppress(OSError):
                used.append(each.stat().st_mtime)
        return time.time() - max(used) if used else None

    def forget(self) -> None:
        """Forget that there was a quorum: what is here is of an earlier job."""
        self._mark.unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete the data, and nothing else."""
        with contextlib.suppress(FileNotFoundError):
            self._record.unlink()
        shutil.rmtree(self.data, ignore_errors=True)

    def check_space(self) -> None:
        """Refuse a disk that is as good as full.

        Raises:
            FolderError: if a member would soon end for lack of space.
        """
        free = shutil.disk_usage(self.path).free
        if free < _LEAST_FREE:
            message = (
                f"The file system of '{self.path}' has {free >> 20} MiB left, and a member of the quorum "
                f"needs {_LEAST_FREE >> 20} MiB: make room, or give another folder by the rendezvous "
                "parameter 'quorum_dir'."
            )
            raise FolderError(message)

    def close(self, *, remove: bool) -> None:
        """Release the folder, and delete it if it is of no more use."""
        if self._lock < 0:
            return
        if remove:
            shutil.rmtree(self.path, ignore_errors=True)
            with contextlib.suppress(OSError):  # those of other jobs are in it
                self.path.parent.rmdir()
        os.close(self._lock)
        self._lock = -1
        _held.discard(self.path)


def private_folder(given: str | None) -> Path:
    """Return the folder for the folders of all jobs of this user, which nobody else can change.

    Raises:
        FolderError: if there is none.
    """
    base = Path(given or tempfile.gettempdir()) / f"torchetcd-quorum-{os.getuid()}"
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = base.lstat()
    except OSError as exc:
        message = f"The folder '{base}' for the quorum cannot be made: {exc.strerror}."
        raise FolderError(message) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        message = (
            f"'{base}' must be a folder that belongs to this user alone (mode 0700), because a member of the "
            "quorum keeps its data there: remove it, or give another one by the rendezvous parameter "
            "'quorum_dir'."
        )
        raise FolderError(message)
    return base


def delete_stale(base: Path) -> None:
    """Delete the folders of earlier jobs that nobody uses, as of those that were ended by a signal."""
    with contextlib.suppress(OSError):
        for path in base.iterdir():
            if path.is_dir() and time.time() - path.stat().st_mtime > STALE_S:
                _delete_if_stale(path)


def _delete_if_stale(path: Path) -> None:
    if path in _held:
        return
    with contextlib.suppress(OSError):
        lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            old_s = Folder(path, lock).age_s()
            if old_s is None or old_s > STALE_S:
                shutil.rmtree(path, ignore_errors=True)
                _logger.info("'%s' was of an earlier job and is deleted.", path)
        finally:
            os.close(lock)


def open_folder(base: Path, name: str) -> Folder | None:
    """Take a folder; `None` if another process has it.

    Raises:
        FolderError: if it cannot be made.
    """
    path = base / name
    if path in _held:
        return None
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        message = f"The folder '{path}' for the quorum cannot be used: {exc.strerror}."
        raise FolderError(message) from None
    try:
        # Of the process: what is forked does not hold it, and nobody holds it for a process that was killed.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    _held.add(path)
    folder = Folder(path, lock)
    old_s = folder.age_s()
    if old_s is not None and old_s > STALE_S:
        _logger.warning(
            "The data in '%s' is %.0f h old, so it is of an earlier job and is deleted.",
            path,
            old_s / 3600,
        )
        folder.clear()
        folder.forget()
    return folder
