"""The wheel with etcd: its licenses, what the check of it sees, and the package in it.

The wheel itself is built, installed and used by `make test-etcd-wheel`, which needs Go and its registry.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import check_etcd_wheel
import etcd_licenses
import etcd_wheel
from check_wheel import WrongPackageError
from support import ROOT

PACKAGE = ROOT / "packaging" / "etcd"
MIT = "Permission is hereby granted, free of charge, to any person"
BSD_2 = (
    "Redistributions of source code must retain the above\n notice. Redistributions in binary form"
)
BSD_3 = f"{BSD_2}\n * Neither the name of Nobody nor"
APACHE = "Apache License\n    Version 2.0, January 2004"
MPL = "Mozilla Public License Version 2.0"


class TestKinds:
    @pytest.mark.parametrize(
        ("text", "kinds"),
        [
            (MIT, {"MIT"}),
            (APACHE, {"Apache-2.0"}),
            ("Licensed under the Apache License, Version 2.0", {"Apache-2.0"}),
            (BSD_2, {"BSD-2-Clause"}),
            (BSD_3, {"BSD-3-Clause"}),
            (f"{BSD_3} and {BSD_2}", {"BSD-2-Clause", "BSD-3-Clause"}),
            (f"{MIT}\n{APACHE}", {"MIT", "Apache-2.0"}),
            (MPL, {"MPL-2.0"}),
            ("GNU LESSER GENERAL PUBLIC LICENSE Version 3", {"GPL"}),
            ("Permission to use, copy, modify, and distribute this software", {"ISC"}),
            ("All rights reserved.", set()),
        ],
    )
    def test_of_a_text(self, text: str, kinds: set[str]) -> None:
        assert etcd_licenses.kinds_of(text) == kinds

    def test_of_real_texts(self) -> None:
        assert etcd_licenses.kinds_of((ROOT / "LICENSE").read_text()) == {"BSD-3-Clause"}


class Modules:
    """Modules of Go in a folder, and what `go list` would print of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listed = ""

    def add(self, module: str, texts: dict[str, str], *packages: str) -> None:
        root = self.folder / f"{module}@v1.2.3"
        for name, text in texts.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        for package in packages or ("",):
            (root / package).mkdir(parents=True, exist_ok=True)
            told = {"Path": module, "Version": "v1.2.3", "Dir": str(root)}
            self._list(Dir=str(root / package), ImportPath=f"{module}/{package}", Module=told)

    def add_others(self) -> None:
        """Add Go's own library, and the module that is built."""
        (self.folder / "go").mkdir()
        (self.folder / "go" / "LICENSE").write_text(BSD_3)
        (self.folder / "go" / "PATENTS").write_text("No patents.")
        self._list(Dir=str(self.folder / "go" / "os"), ImportPath="os", Standard=True)
        self._list(Dir="/nowhere", ImportPath="built", Module={"Path": "built", "Main": True})

    def _list(self, **package: Any) -> None:
        self.listed += json.dumps(package, indent=1) + "\n"

    def collect(self, allowed: str = "Apache-2.0 BSD-3-Clause MIT") -> dict[str, str]:
        """Collect, and return what lies there, without the list of modules."""
        into = self.folder / "collected"
        found = etcd_licenses.packages(self.listed, self.folder / "go", "1.26.8")
        number = etcd_licenses.collect(found, into, set(allowed.split()))
        self.list = (into / "MODULES.txt").read_text().splitlines()
        assert len(self.list) == number
        return {
            path.relative_to(into).as_posix(): path.read_text()
            for path in into.rglob("*/*")
            if path.is_file()
        }


@pytest.fixture
def modules(tmp_path: Path) -> Modules:
    return Modules(tmp_path)


class TestCollect:
    def test_all_of_them(self, modules: Modules) -> None:
        modules.add("example.com/a", {"LICENSE": APACHE, "NOTICE.txt": "a by A", "license.go": ""})
        modules.add("example.com/b/v2", {"COPYING.md": MIT, "AUTHORS": "B"})
        modules.add_others()
        assert modules.collect() == {
            "example.com__a/LICENSE": APACHE,
            "example.com__a/NOTICE.txt": "a by A",
            "example.com__b__v2/COPYING.md": MIT,
            "go/LICENSE": BSD_3,
            "go/PATENTS": "No patents.",
        }
        assert modules.list == [
            "example.com/a v1.2.3 Apache-2.0",
            "example.com/b/v2 v1.2.3 MIT",
            "go 1.26.8 BSD-3-Clause",
        ]

    def test_a_package_with_one_of_its_own(self, modules: Modules) -> None:
        """Of those packages alone that are linked in."""
        texts = {"LICENSE": APACHE, "x/LICENSE": MIT, "y/LICENSE": MPL}
        modules.add("example.com/a", texts, "", "x/deep")
        assert set(modules.collect()) == {"example.com__a/LICENSE", "example.com__a/x__LICENSE"}
        assert modules.list == ["example.com/a v1.2.3 Apache-2.0 AND MIT"]

    def test_files_of_gos_cache_are_read_only(self, modules: Modules) -> None:
        modules.add("example.com/a", {"LICENSE": MIT})
        (modules.folder / "example.com/a@v1.2.3/LICENSE").chmod(0o444)
        modules.collect()
        assert os.stat(modules.folder / "collected/example.com__a/LICENSE").st_mode & 0o200

    @pytest.mark.parametrize(
        ("texts", "said"),
        [
            ({"README": MIT}, "example.com/a v1.2.3 has no license"),
            ({"NOTICE": "a by A"}, "example.com/a v1.2.3 has no license"),
            ({"LICENSE": "Ask us."}, "LICENSE is no license that"),
            ({"LICENSE": MPL}, "is under MPL-2.0, which the wheel does not name"),
        ],
    )
    def test_what_stops_the_build(self, modules: Modules, texts: dict[str, str], said: str) -> None:
        modules.add("example.com/a", texts)
        with pytest.raises(etcd_licenses.LicenseError, match=re.escape(said)):
            modules.collect()

    def test_a_go_without_its_license(self, modules: Modules) -> None:
        modules.add_others()
        (modules.folder / "go" / "LICENSE").unlink()
        with pytest.raises(etcd_licenses.LicenseError, match=r"install Go from https://go\.dev"):
            modules.collect()


class TestBuild:
    def test_the_version_of_the_wheel_is_etcds(self) -> None:
        assert etcd_wheel.wheel_version("3.6.16", 0) == "3.6.16"
        assert etcd_wheel.wheel_version("3.6.16", 2) == "3.6.16.post2"

    @pytest.mark.parametrize("etcd", ["3.6", "4.0.0", "3.6.0-rc.1", "latest", ""])
    def test_what_is_no_release(self, etcd: str) -> None:
        with pytest.raises(etcd_wheel.BuildError, match="is no release of etcd 3"):
            etcd_wheel.wheel_version(etcd, 0)

    def test_server_and_client_are_pinned_alike(self) -> None:
        go_mod = (PACKAGE / "go.mod").read_text()
        assert set(re.findall(r"go\.etcd\.io/etcd/\w+/v3 (v\S+)", go_mod)) == {
            f"v{etcd_wheel.pinned(go_mod)}"
        }
        assert f"go.etcd.io/etcd/etcdctl/v3 v{etcd_wheel.pinned(go_mod)}" in go_mod

    def test_without_go(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, ROOT / "tools" / "etcd_wheel.py", "--out", tmp_path],
            env={"PATH": "/nowhere"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr == (
            "etcd_wheel: There is no Go to build etcd with: install Go 1.26 or later "
            "from https://go.dev/dl/.\n"
        )

    def _go(self, folder: Path, script: str) -> str:
        (folder / "bin").mkdir()
        go = folder / "bin" / "go"
        go.write_text(f"#!/bin/sh\n{script}\n")
        go.chmod(0o755)
        return f"{go.parent}:/usr/bin:/bin"

    def test_another_version_changes_a_copy(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        before = {path: path.read_bytes() for path in PACKAGE.rglob("*") if path.is_file()}
        monkeypatch.setenv("PATH", self._go(tmp_path, 'echo "$@" >> calls; test -f go.mod'))
        copy = tmp_path / "copy"
        etcd_wheel.stage("3.99.1", copy)
        assert (copy / "calls").read_text().splitlines() == [
            "get go.etcd.io/etcd/server/v3@v3.99.1 go.etcd.io/etcd/etcdctl/v3@v3.99.1",
            "mod tidy",
        ]
        # Nothing of the pinned version is left, whose modules may be newer.
        assert (
            copy / "go.mod"
        ).read_text() == "module github.com/torchetcd/torchetcd/packaging/etcd\n"
        assert not (copy / "go.sum").exists()
        assert {path: path.read_bytes() for path in before} == before

    def test_the_pinned_version_is_taken_as_it_is(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        etcd_wheel.stage(etcd_wheel.pinned((PACKAGE / "go.mod").read_text()), tmp_path / "copy")
        for name in ("go.mod", "go.sum", "README.md"):
            assert (tmp_path / "copy" / name).read_bytes() == (PACKAGE / name).read_bytes()
        assert (tmp_path / "copy" / "LICENSE").is_file()

    def test_a_failure_of_go_is_said(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", self._go(tmp_path, "exit 3"))
        with pytest.raises(etcd_wheel.BuildError, match=r"`go mod tidy` ended with exit code 3"):
            etcd_wheel.Go(tmp_path)("mod", "tidy")


def _program(machine: int = 62, *, segment: int = 1) -> bytes:
    """Make the beginning of an ELF file with one segment; 3 asks for a dynamic linker."""
    header = b"\x7fELF\x02".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    return header + struct.pack("<I", segment).ljust(56, b"\0")


class TestCheck:
    """That the check of a wheel sees what is wrong."""

    X86 = "manylinux_2_17_x86_64.manylinux2014_x86_64.musllinux_1_1_x86_64"

    def _wheel(
        self,
        folder: Path,
        *,
        tag: str = X86,
        version: str = "3.6.16",
        mode: int = 0o755,
        program: bytes = _program(),
        without: str = "",
        told: str = "3.6.16",
    ) -> Path:
        path = folder / f"torchetcd_etcd-{version}-py3-none-{tag}.whl"
        info = f"torchetcd_etcd-{version}.dist-info"
        modules = ["go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/etcdctl/v3", "example.com/a", "go"]
        files: dict[str, str | bytes] = {
            "torchetcd_etcd/__init__.py": "",
            "torchetcd_etcd/bin/etcd": program,
            "torchetcd_etcd/bin/etcdctl": program,
            f"{info}/METADATA": f"Version: {version}\nLicense-Expression: MIT\n\n",
            f"{info}/licenses/modules/MODULES.txt": "".join(
                f"{name} v{told} MIT\n" for name in modules
            ),
        }
        for module in modules:
            files[f"{info}/licenses/modules/{etcd_licenses.flat(module)}/LICENSE"] = MIT
        with zipfile.ZipFile(path, "w") as wheel:
            for name, content in files.items():
                if not without or without not in name:
                    entry = zipfile.ZipInfo(name)
                    entry.external_attr = (0o100000 | (mode if "/bin/" in name else 0o644)) << 16
                    wheel.writestr(entry, content)
        return path

    @pytest.mark.parametrize(
        "good",
        [
            {},
            {"version": "3.6.16.post1"},
            {"tag": X86.replace("x86_64", "aarch64"), "program": _program(183)},
            {"tag": "macosx_12_0_arm64", "program": b"\xcf\xfa\xed\xfe"},
        ],
    )
    def test_a_good_one(self, tmp_path: Path, good: dict[str, Any]) -> None:
        check_etcd_wheel.check_etcd_wheel(self._wheel(tmp_path, **good))

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"mode": 0o644}, "bin/etcd is not executable"),
            ({"program": _program(183)}, "bin/etcd is for the processor 183"),
            ({"program": _program(segment=3)}, "bin/etcd is not static"),
            ({"program": b"#!/bin/sh"}, "bin/etcd is no ELF program"),
            ({"without": "bin/etcdctl"}, "lacks torchetcd_etcd/bin/etcdctl"),
            ({"without": "MODULES.txt"}, "lacks the list of its modules"),
            ({"without": "example.com__a"}, "lacks the licenses of ['example.com/a']"),
            ({"without": "modules/go/"}, "lacks the licenses of ['go']"),
            ({"told": "3.6.15"}, "has not go.etcd.io/etcd/server/v3 v3.6.16"),
            ({"version": "0.1"}, "is no wheel of torchetcd-etcd"),
        ],
    )
    def test_a_wrong_one(self, tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
        with pytest.raises(WrongPackageError, match=re.escape(said)):
            check_etcd_wheel.check_etcd_wheel(self._wheel(tmp_path, **wrong))


class TestPackage:
    def _run(self, folder: Path, source: str, *args: str) -> subprocess.CompletedProcess[str]:
        """Run Python with a package whose programs tell what they were given."""
        package = folder / "torchetcd_etcd"
        (package / "bin").mkdir(parents=True)
        (package / "__init__.py").write_text(
            (PACKAGE / "src" / "torchetcd_etcd" / "__init__.py").read_text()
        )
        program = package / "bin" / "etcd"
        program.write_text('#!/bin/sh\necho "$$ $*"\nexit 7\n')
        program.chmod(0o755)
        return subprocess.run(
            [sys.executable, "-c", f"import os, torchetcd_etcd\n{source}", *args],
            env={"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_the_path_of_a_program(self, tmp_path: Path) -> None:
        done = self._run(tmp_path, "print(torchetcd_etcd.binary())")
        assert done.stdout == f"{tmp_path}/torchetcd_etcd/bin/etcd\n", done.stderr

    def test_a_program_that_it_has_not(self, tmp_path: Path) -> None:
        done = self._run(tmp_path, "torchetcd_etcd.binary('etcdutl')")
        assert (
            "FileNotFoundError: The package torchetcd-etcd has no program 'etcdutl'" in done.stderr
        )

    def test_the_command_becomes_the_program(self, tmp_path: Path) -> None:
        """Signals, exit codes and the number of the process are the program's own."""
        source = "print(os.getpid(), flush=True); torchetcd_etcd._etcd()"
        done = self._run(tmp_path, source, "--name", "a b")
        pid = done.stdout.partition("\n")[0]
        assert done.stdout == f"{pid}\n{pid} --name a b\n"
        assert done.returncode == 7
