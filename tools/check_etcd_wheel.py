"""Look into a built wheel of torchetcd-etcd: programs, platform, licenses and size.

python tools/check_etcd_wheel.py dist/torchetcd_etcd-*.whl
"""

from __future__ import annotations

import re
import struct
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

from check_wheel import MIB, WrongPackageError, require
from etcd_licenses import flat

MOST = 24 * MIB
PROGRAMS = ("torchetcd_etcd/bin/etcd", "torchetcd_etcd/bin/etcdctl")
# What ELF calls the processors of the tags.
MACHINES = {"x86_64": 62, "aarch64": 183}
_INTERPRETER = 3
_NAME = re.compile(r"torchetcd_etcd-(3\.\d+\.\d+(?:\.post\d+)?)-py3-none-([\w.]+)\.whl")


def check_program(program: bytes, tag: str, name: str) -> None:
    """Check that a program is for the platform of the tag; on Linux, that it needs no libc."""
    if "linux" not in tag:
        return
    require(program[:5] == b"\x7fELF\x02", f"{name} is no ELF program of 64 bits")
    (machine,) = struct.unpack_from("<H", program, 18)
    wanted = next((number for arch, number in MACHINES.items() if tag.endswith(arch)), None)
    require(machine == wanted, f"{name} is for the processor {machine}, the tag is {tag}")
    (table,) = struct.unpack_from("<Q", program, 32)
    size, number = struct.unpack_from("<HH", program, 54)
    kinds = {struct.unpack_from("<I", program, table + size * row)[0] for row in range(number)}
    require(_INTERPRETER not in kinds, f"{name} is not static")


def check_etcd_wheel(path: Path) -> None:
    """Check one wheel."""
    named = _NAME.fullmatch(path.name)
    if named is None:
        message = f"{path.name} is no wheel of torchetcd-etcd"
        raise WrongPackageError(message)
    version, tag = named.groups()
    size = path.stat().st_size
    require(size <= MOST, f"{path.name} has {size / MIB:.2f} MiB, more than {MOST / MIB:.0f}")
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        info = f"torchetcd_etcd-{version}.dist-info"
        for program in PROGRAMS:
            require(program in names, f"{path.name} lacks {program}")
            mode = wheel.getinfo(program).external_attr >> 16
            require(mode & 0o111 == 0o111, f"{program} is not executable")
            check_program(wheel.read(program), tag, program)
        metadata = HeaderParser().parsestr(wheel.read(f"{info}/METADATA").decode())
        licenses = f"{info}/licenses/modules"
        require(f"{licenses}/MODULES.txt" in names, f"{path.name} lacks the list of its modules")
        listed = wheel.read(f"{licenses}/MODULES.txt").decode().splitlines()
    modules = {line.split()[0]: line.split()[1] for line in listed}
    etcd = re.sub(r"\.post\d+", "", version)
    for module in ("go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/etcdctl/v3"):
        require(modules.get(module) == f"v{etcd}", f"{path.name} has not {module} v{etcd}")
    require("go" in modules, f"{path.name} does not list Go itself")
    have = {name.removeprefix(licenses).split("/")[1] for name in names if licenses in name}
    lack = sorted(module for module in modules if flat(module) not in have)
    require(not lack, f"{path.name} lacks the licenses of {lack}")
    require(metadata["Version"] == version, f"{path.name} says version {metadata['Version']}")
    require(metadata["License-Expression"], f"{path.name} names no license")
    print(f"{path.name}: {size / MIB:.2f} MiB of at most {MOST / MIB:.0f}, {len(modules)} modules")


def main() -> None:
    """Check all that are named."""
    for name in sys.argv[1:]:
        check_etcd_wheel(Path(name))


if __name__ == "__main__":
    try:
        main()
    except WrongPackageError as exc:
        sys.exit(f"check_etcd_wheel: {exc}.")
