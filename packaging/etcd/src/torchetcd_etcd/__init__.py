"""etcd and etcdctl, as programs in a Python package."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

__all__ = ["binary"]


def binary(name: str = "etcd") -> Path:
    """Return the path of a program: "etcd" or "etcdctl".

    >>> binary("etcdctl").name
    'etcdctl'
    """
    path = Path(__file__).parent / "bin" / name
    if not path.is_file():
        message = f"The package torchetcd-etcd has no program '{name}'. It has etcd and etcdctl."
        raise FileNotFoundError(message)
    return path


def _become(name: str) -> NoReturn:
    # It takes the place of this process, so that signals and exit codes are the program's own.
    os.execv(binary(name), [name, *sys.argv[1:]])


def _etcd() -> NoReturn:
    _become("etcd")


def _etcdctl() -> NoReturn:
    _become("etcdctl")
