"""Build the wheel torchetcd-etcd: etcd and etcdctl from Go's modules, and the licenses of both.

    python tools/etcd_wheel.py --out dist                    # the version that packaging/etcd/go.mod names
    python tools/etcd_wheel.py --out dist --version 3.7.3

It needs Go, its module proxy and PyPI. `GOOS` and `GOARCH` choose another platform.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from etcd_licenses import FIELDS, LicenseError, collect, packages

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "packaging" / "etcd"
PROGRAMS = ("etcd", "etcdctl")
# Programs without C run with any libc. macOS 12 is what Go 1.26 asks for.
PLATFORMS = {
    "linux/amd64": "manylinux_2_17_x86_64.manylinux2014_x86_64.musllinux_1_1_x86_64",
    "linux/arm64": "manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64",
    "darwin/amd64": "macosx_12_0_x86_64",
    "darwin/arm64": "macosx_12_0_arm64",
}


class BuildError(Exception):
    """Says why there is no wheel."""


def pinned(go_mod: str) -> str:
    """Read from go.mod which etcd it names."""
    found = re.search(r"^\s*go\.etcd\.io/etcd/server/v3 v(\S+)$", go_mod, re.MULTILINE)
    assert found
    return found[1]


def wheel_version(etcd: str, post: int) -> str:
    """Give the version of the wheel: etcd's, and a number if the same etcd is packed again."""
    if not re.fullmatch(r"3\.\d+\.\d+", etcd):
        message = f"'{etcd}' is no release of etcd 3, such as 3.6.16"
        raise BuildError(message)
    return f"{etcd}.post{post}" if post else etcd


def license_expression(pyproject: str) -> set[str]:
    """Read from pyproject.toml the licenses that the wheel names."""
    found = re.search(r'^license = "(.+)"$', pyproject, re.MULTILINE)
    assert found
    return set(found[1].split(" AND "))


class Go:
    """The command `go` in the folder of one build."""

    def __init__(self, folder: Path) -> None:
        """Find it."""
        program = shutil.which("go")
        if program is None:
            wanted = re.search(r"^go (\d+\.\d+)", (SOURCES / "go.mod").read_text(), re.MULTILINE)
            assert wanted
            message = (
                f"There is no Go to build etcd with: install Go {wanted[1]} or later "
                "from https://go.dev/dl/"
            )
            raise BuildError(message)
        self._program = program
        self._folder = folder
        self._environment = os.environ | {
            # Static programs.
            "CGO_ENABLED": "0",
            # A workspace around this folder would choose other versions.
            "GOWORK": "off",
            # The oldest processors that the wheel's tag allows.
            "GOAMD64": "v1",
            "GOARM64": "v8.0",
        }

    def __call__(self, *args: str) -> str:
        """Run it, and return what it prints."""
        done = subprocess.run(
            [self._program, *args],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            message = f"`go {' '.join(args)}` ended with exit code {done.returncode}"
            raise BuildError(message)
        return done.stdout


def stage(etcd: str, folder: Path) -> None:
    """Copy what the wheel is made from, which is never changed in place."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("__pycache__", "bin"))
    shutil.copy(ROOT / "LICENSE", folder)
    if etcd != pinned((folder / "go.mod").read_text()):
        go = Go(folder)
        modules = (f"go.etcd.io/etcd/{part}/v3@v{etcd}" for part in ("server", "etcdctl"))
        # The one that is pinned may need newer modules than the one that is wanted.
        module = re.match(r"module \S+\n", (folder / "go.mod").read_text())
        assert module
        (folder / "go.mod").write_text(module[0])
        (folder / "go.sum").unlink()
        go("get", *modules)
        go("mod", "tidy")


def build(etcd: str, post: int, out: Path) -> tuple[Path, int]:
    """Build the wheel. Return its path, and how many modules are in it."""
    version = wheel_version(etcd, post)
    platform = Go(ROOT)("env", "GOOS", "GOARCH").strip().replace("\n", "/")
    if platform not in PLATFORMS:
        message = f"There is no wheel for {platform}, only for {', '.join(PLATFORMS)}"
        raise BuildError(message)
    folder = ROOT / "target" / "etcd-wheel" / f"{etcd}-{platform.replace('/', '-')}"
    stage(etcd, folder)
    go = Go(folder)
    commands = [f"./cmd/{program}" for program in PROGRAMS]
    for program, command in zip(PROGRAMS, commands, strict=True):
        # Without paths and without the state of this checkout: the same sources are the same program.
        go(
            "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w",
            "-o", f"src/torchetcd_etcd/bin/{program}", command,
        )  # fmt: skip
    goroot, go_version = go("env", "GOROOT", "GOVERSION").split("\n")[:2]
    listed = go("list", "-mod=readonly", "-deps", f"-json={FIELDS}", *commands)
    modules = collect(
        packages(listed, Path(goroot), go_version.removeprefix("go")),
        folder / "modules",
        license_expression((folder / "pyproject.toml").read_text()),
    )
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, folder],
        check=True,
        env=os.environ
        | {"TORCHETCD_ETCD_VERSION": version, "TORCHETCD_ETCD_PLATFORM": PLATFORMS[platform]},
    )
    return out / f"torchetcd_etcd-{version}-py3-none-{PLATFORMS[platform]}.whl", modules


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder for the wheel")
    parser.add_argument(
        "--version", default=pinned((SOURCES / "go.mod").read_text()), help="which etcd"
    )
    parser.add_argument("--post", type=int, default=0, help="how often this etcd was packed before")
    args = parser.parse_args()
    begun = time.monotonic()
    wheel, modules = build(args.version.removeprefix("v"), args.post, args.out.resolve())
    print(
        f"{wheel}: {wheel.stat().st_size / 1024**2:.1f} MiB, {modules} modules, "
        f"{time.monotonic() - begun:.0f} s"
    )


if __name__ == "__main__":
    try:
        main()
    except (BuildError, LicenseError) as exc:
        sys.exit(f"etcd_wheel: {exc}.")
