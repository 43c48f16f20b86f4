"""The folder of a member: one agent has it at a time, nobody else can change it, and old data is deleted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from torchetcd._quorum.folder import STALE_S, Folder, FolderError, open_folder, private_folder

_HOLDS = """\
import sys
from pathlib import Path
from torchetcd._quorum.folder import open_folder
folder = open_folder(Path(sys.argv[1]), "entry")
print("held" if folder else "not held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    taken = open_folder(tmp_path, "entry")
    assert taken is not None
    yield taken
    taken.close(remove=False)


def _with_data(folder: Folder, member: int) -> None:
    folder.keep(member)
    (folder.data / "member" / "wal").mkdir(parents=True)


def _again(folder: Folder) -> Folder:
    folder.close(remove=False)
    taken = open_folder(folder.path.parent, folder.path.name)
    assert taken is not None
    return taken


def _made_older(folder: Folder, seconds: float) -> None:
    for name in ("member.json", "quorum"):
        path = folder.path / name
        if path.exists():
            then = path.stat().st_mtime - seconds
            os.utime(path, (then, then))


class TestLock:
    def test_another_process_has_it(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", _HOLDS, str(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            assert open_folder(tmp_path, "entry") is None
            free = open_folder(tmp_path, "another entry")
            assert free is not None
            free.close(remove=True)
            # Nobody holds it for a process that was killed.
            other.kill()
            other.wait()
        taken = open_folder(tmp_path, "entry")
        assert taken is not None
        taken.close(remove=True)

    def test_another_process_does_not_get_it(self, folder: Folder) -> None:
        told = subprocess.run(
            [sys.executable, "-c", _HOLDS, str(folder.path.parent)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )
        assert told.stdout == b"not held\n"

    def test_another_thread_has_it(self, tmp_path: Path, folder: Folder) -> None:
        found: list[Folder | None] = []
        thread = threading.Thread(target=lambda: found.append(open_folder(tmp_path, "entry")))
        thread.start()
        thread.join()
        assert found == [None]
        # The attempt has not released it either: the kernel's lock is of the process.
        assert open_folder(tmp_path, "entry") is None

    def test_it_can_be_taken_again(self, folder: Folder) -> None:
        taken = _again(folder)
        taken.close(remove=False)
        taken.close(remove=True)  # it is not its own any more
        assert folder.path.is_dir()


class TestData:
    def test_there_is_none_at_first(self, folder: Folder) -> None:
        assert folder.member is None
        assert not folder.knows

    def test_whose_it_is(self, folder: Folder) -> None:
        folder.keep(1 << 63)
        assert folder.member is None  # etcd has not made anything
        _with_data(folder, 1 << 63)
        assert _again(folder).member == 1 << 63

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"member": null}'])
    def test_data_of_nobody_is_none(self, folder: Folder, text: str) -> None:
        _with_data(folder, 5)
        (folder.path / "member.json").write_text(text)
        assert folder.member is None

    def test_what_is_known_outlives_the_data(self, folder: Folder) -> None:
        _with_data(folder, 5)
        folder.learn()
        folder.clear()
        assert folder.member is None
        assert not folder.data.exists()
        assert _again(folder).knows

    def test_stale_data_is_deleted(self, folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
        _with_data(folder, 5)
        folder.learn()
        _made_older(folder, STALE_S + 60)
        taken = _again(folder)
        assert taken.member is None
        assert not taken.knows
        assert not taken.data.exists()
        assert "is of an earlier job and is deleted" in caplog.text
        taken.close(remove=False)

    @pytest.mark.parametrize("used", ["in_use", "learn"])
    def test_what_was_used_since_is_not(self, folder: Folder, used: str) -> None:
        _with_data(folder, 5)
        folder.learn()
        _made_older(folder, STALE_S + 60)
        getattr(folder, used)()
        taken = _again(folder)
        assert taken.member == 5
        assert taken.knows
        taken.close(remove=False)

    def test_younger_data_stays(self, folder: Folder) -> None:
        _with_data(folder, 5)
        _made_older(folder, STALE_S - 60)
        taken = _again(folder)
        assert taken.member == 5
        taken.close(remove=False)

    def test_without_data_nothing_is_noted(self, folder: Folder) -> None:
        folder.in_use()
        folder.clear()
        assert folder.age_s() is None


class TestRemoval:
    def test_nothing_is_left(self, tmp_path: Path) -> None:
        base = private_folder(str(tmp_path))
        taken = open_folder(base, "entry")
        assert taken is not None
        _with_data(taken, 5)
        taken.close(remove=True)
        assert list(tmp_path.iterdir()) == []

    def test_other_jobs_stay(self, tmp_path: Path) -> None:
        base = private_folder(str(tmp_path))
        one, other = open_folder(base, "entry"), open_folder(base, "other")
        assert one is not None
        assert other is not None
        one.close(remove=True)
        assert [path.name for path in base.iterdir()] == ["other"]
        other.close(remove=True)


class TestSpace:
    _Usage = namedtuple("_Usage", "total used free")

    def _has(self, monkeypatch: pytest.MonkeyPatch, mib: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: self._Usage(1 << 40, 0, mib << 20))

    def test_a_disk_that_is_full(self, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        self._has(monkeypatch, 199)
        said = f"'{folder.path}' has 199 MiB left.* needs 200 MiB.*'quorum_dir'"
        with pytest.raises(FolderError, match=said):
            folder.check_space()

    def test_enough(self, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        self._has(monkeypatch, 200)
        folder.check_space()


class TestPrivate:
    def test_it_is_for_this_user_alone(self, tmp_path: Path) -> None:
        base = private_folder(str(tmp_path / "deep" / "er"))
        assert base == tmp_path / "deep" / "er" / f"torchetcd-quorum-{os.getuid()}"
        assert base.stat().st_mode & 0o777 == 0o700
        assert private_folder(str(tmp_path / "deep" / "er")) == base

    def test_without_one_it_is_temporary(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        assert private_folder(None).parent == tmp_path

    def test_another_mode_is_refused(self, tmp_path: Path) -> None:
        private_folder(str(tmp_path)).chmod(0o750)
        with pytest.raises(FolderError, match="belongs to this user alone"):
            private_folder(str(tmp_path))

    def test_another_owner_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mine = os.getuid()
        base = private_folder(str(tmp_path))
        base.rename(tmp_path / f"torchetcd-quorum-{mine + 1}")
        monkeypatch.setattr(os, "getuid", lambda: mine + 1)
        with pytest.raises(FolderError, match="belongs to this user alone"):
            private_folder(str(tmp_path))

    def test_a_link_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir(mode=0o700)
        (tmp_path / f"torchetcd-quorum-{os.getuid()}").symlink_to(tmp_path / "real")
        with pytest.raises(FolderError, match="belongs to this user alone"):
            private_folder(str(tmp_path))

    def test_a_file_is_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(FolderError, match="cannot be made: Not a directory"):
            private_folder(str(tmp_path / "file"))

    def test_a_file_is_in_the_place_of_an_entry(self, tmp_path: Path) -> None:
        (tmp_path / "entry").touch()
        with pytest.raises(FolderError, match=f"'{tmp_path}/entry'.* cannot be used"):
            open_folder(tmp_path, "entry")
