"""Collect the licenses of the Go modules that are linked into a program, for the wheel with etcd.

`google/go-licenses` leaves out Go's own library, and would be one more program to build.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# What `go list -deps` is to print of each package.
FIELDS = "Dir,ImportPath,Standard,Module"
# Go's library, among the names of the modules.
STANDARD = "go"

# LICENSE, LICENSE.txt, LICENSE_WINDOWS, COPYING, NOTICE.txt, PATENTS; not license.go.
_TEXT = re.compile(r"(licen[cs]e|copying|copyright|notice|patents)([._-].*)?", re.IGNORECASE)
_LICENSE = re.compile(r"licen[cs]e|copying", re.IGNORECASE)

# Words that only this license has, with single spaces.
_KINDS = {
    "Apache-2.0": r"Apache License,? Version 2\.0",
    "GPL": r"GNU (?:Lesser |Affero )?General Public License",
    "ISC": r"Permission to use, copy, modify, and(?:/or)? distribute this software",
    "MIT": r"Permission is hereby granted, free of charge",
    "MPL-2.0": r"Mozilla Public License",
}
_BSD = r"Redistributions of source code must retain"
# The third clause of BSD-3-Clause.
_NO_ENDORSEMENT = r"Neither the names? of|the names? of [^.]{1,80} may not be used to endorse"


class LicenseError(Exception):
    """Says which module's license is missing, or is not known here."""


class Package(NamedTuple):
    """A package of Go that is linked in."""

    folder: Path
    module: str
    version: str
    root: Path


def packages(listed: str, goroot: Path, go_version: str) -> Iterator[Package]:
    """Read what `go list -deps -json` printed; the module that is built itself is left out."""
    decoder, position = json.JSONDecoder(), 0
    while position < len(listed.rstrip()):
        position += len(listed[position:]) - len(listed[position:].lstrip())
        package: dict[str, Any]
        package, position = decoder.raw_decode(listed, position)
        module = package.get("Module")
        if package.get("Standard"):
            yield Package(goroot, STANDARD, go_version, goroot)
        elif not module:
            message = f"Go names no module for {package['ImportPath']}"
            raise LicenseError(message)
        elif not module.get("Main"):
            yield Package(
                Path(package["Dir"]), module["Path"], module["Version"], Path(module["Dir"])
            )


def texts_of(package: Package) -> Iterator[Path]:
    """Find the licenses of a package: in its folder and in those above it, up to its module's root."""
    folder = package.folder
    while True:
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.suffix != ".go" and _TEXT.fullmatch(file.name):
                yield file
        if folder == package.root:
            return
        folder = folder.parent


def kinds_of(text: str) -> set[str]:
    """Say which licenses a text has, as SPDX names them."""
    spaced = " ".join(text.split())
    found = {kind for kind, pattern in _KINDS.items() if re.search(pattern, spaced, re.IGNORECASE)}
    # A file may hold several licenses.
    all_bsd = len(re.findall(_BSD, spaced, re.IGNORECASE))
    of_three = len(re.findall(_NO_ENDORSEMENT, spaced, re.IGNORECASE))
    if of_three:
        found.add("BSD-3-Clause")
    if all_bsd > of_three:
        found.add("BSD-2-Clause")
    return found


def flat(path: str) -> str:
    """Make one name of a path: hatchling's `license-files` know no `**`."""
    return path.replace("/", "__")


def collect(linked: Iterable[Package], into: Path, allowed: set[str]) -> int:
    """Copy all licenses below `into`, a folder a module, with a list of the modules. Return how many modules.

    Raises:
        LicenseError: if a module has no license, one that is not known, or one that is not allowed.
    """
    modules: dict[tuple[str, str], dict[Path, Path]] = {}
    for package in linked:
        found = modules.setdefault((package.module, package.version), {})
        for text in texts_of(package):
            found[text] = text.relative_to(package.root)
    lines = []
    for (module, version), found in sorted(modules.items()):
        kinds: set[str] = set()
        for source, place in sorted(found.items()):
            told = kinds_of(source.read_text(encoding="utf-8", errors="replace"))
            if _LICENSE.match(source.name) and not told:
                message = f"{source} is no license that tools/etcd_licenses.py knows"
                raise LicenseError(message)
            kinds |= told
            target = into / flat(module) / flat(place.as_posix())
            target.parent.mkdir(parents=True, exist_ok=True)
            # Files of Go's cache are read-only; the mode would go into the wheel.
            shutil.copyfile(source, target)
        if not kinds:
            message = f"The module {module} {version} has no license"
            if module == STANDARD:
                # Distributions that pack Go move it elsewhere.
                message = "This Go comes without its license: install Go from https://go.dev/dl/"
            raise LicenseError(message)
        if kinds - allowed:
            others = ", ".join(sorted(kinds - allowed))
            message = (
                f"The module {module} {version} is under {others}, which the wheel does not name"
            )
            raise LicenseError(message)
        lines.append(f"{module} {version} {' AND '.join(sorted(kinds))}\n")
    into.mkdir(parents=True, exist_ok=True)
    (into / "MODULES.txt").write_text("".join(lines), encoding="utf-8")
    return len(lines)
