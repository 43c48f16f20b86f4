"""Install a wheel of torchetcd-etcd into a clean environment and use it there.

    python tools/try_etcd_wheel.py --venv target/etcd-venv dist/torchetcd_etcd-*.whl
    python tools/try_etcd_wheel.py --venv target/etcd-venv --torchetcd python dist/torchetcd_etcd-*.whl

With `--torchetcd`, a wheel or the folder of a built checkout, an `EtcdServer` has to find and start it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

# What pip installed is compared with the wheel's RECORD.
INSTALLED = """
import base64, hashlib, importlib.metadata, os, sys
files = importlib.metadata.files("torchetcd-etcd")
hashed = [file for file in files if file.hash]
for file in hashed:
    digest = hashlib.new(file.hash.mode, file.read_binary()).digest()
    told = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    assert told == file.hash.value and file.locate().stat().st_size == file.size, file
licenses = [file for file in files if "/licenses/modules/" in str(file)]
modules = [file for file in licenses if file.name == "MODULES.txt"][0].read_text().splitlines()
assert len(licenses) > len(modules) > 1, (licenses, modules)
from torchetcd_etcd import binary
for name in ("etcd", "etcdctl"):
    path = binary(name)
    assert str(path).startswith(sys.prefix) and os.access(path, os.X_OK), path
print(f"{len(hashed)} files are as RECORD says, {len(licenses) - 1} licenses of {len(modules)} modules")
"""
SERVER = """
import sys
from torchetcd.etcd_server import EtcdServer, find_binary
assert find_binary().startswith(sys.prefix) and "torchetcd_etcd" in find_binary(), find_binary()
with EtcdServer() as server:
    client = server.get_client()
    client.set("/tried", "yes")
    assert client.get("/tried").value == "yes"
    client.close()
print("an EtcdServer of", find_binary())
"""


def versions(programs: Path, etcd: str) -> None:
    """Run the commands that pip made, and compare what they say."""
    for command in (["etcd", "--version"], ["etcdctl", "version"]):
        told = subprocess.run(
            [programs / command[0], *command[1:]], check=True, capture_output=True, text=True
        ).stdout
        first = told.partition("\n")[0]
        if not first.lower().startswith(f"{command[0]} version: ") or not first.endswith(
            f" {etcd}"
        ):
            sys.exit(f"try_etcd_wheel: `{' '.join(command)}` says {first!r}, not {etcd}.")
        print(first)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--venv", type=Path, required=True, help="made, or replaced")
    parser.add_argument("--torchetcd", type=Path, help="a wheel, or a folder with the package")
    args = parser.parse_args()

    version = re.match(r"torchetcd_etcd-(\d+\.\d+\.\d+)", args.wheel.name)
    if version is None:
        parser.error(f"{args.wheel} is no wheel of torchetcd-etcd")
    shutil.rmtree(args.venv, ignore_errors=True)
    venv.create(args.venv, with_pip=True)
    programs = args.venv.resolve() / "bin"
    # Nothing of this repository or of the user that runs this, and no other etcd.
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "TORCH"))
    } | {"PATH": "/usr/bin:/bin"}
    wanted = [args.wheel.resolve()]
    if args.torchetcd is not None and args.torchetcd.is_dir():
        clean["PYTHONPATH"] = str(args.torchetcd.resolve())
    elif args.torchetcd is not None:
        wanted.append(args.torchetcd.resolve())
    # Without torch, which a server does not need.
    subprocess.run(
        [programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", *wanted], check=True
    )
    versions(programs, version[1])
    for source in [INSTALLED] if args.torchetcd is None else [INSTALLED, SERVER]:
        subprocess.run(
            [programs / "python", "-c", source], check=True, cwd=args.venv, env=clean, timeout=120
        )
    shutil.rmtree(args.venv)


if __name__ == "__main__":
    main()
