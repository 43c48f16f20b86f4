"""torch's own rendezvous and store on etcd's v2 API, for the benchmarks that can have them.

They need python-etcd and an etcd up to 3.5. python-etcd is not to be installed beside torchetcd, which
then leaves torch's names to torch: it comes from a folder of its own, `pip install --target DIR python-etcd`.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

from torchetcd.etcd_server import EtcdServer, find_binary


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--peers",
        metavar="DIR",
        type=Path,
        help="where python-etcd is, for torch's own etcd backends",
    )


def _has_v2_api() -> bool:
    told = subprocess.run([find_binary(), "--help"], capture_output=True, check=False)
    return b"--enable-v2" in told.stdout + told.stderr


def missing(directory: Path | None) -> str | None:
    """What torch's own etcd backends lack; after that python-etcd can be imported if it is nothing.

    To be called before torch's modules look for it.
    """
    if directory is not None:
        # At the end: what both have is taken from the environment that torchetcd is measured in.
        sys.path.append(str(directory))
    try:
        # A folder named "etcd" can be imported too.
        _ = importlib.import_module("etcd").Client
    except (ImportError, AttributeError):
        return "python-etcd missing"
    if not _has_v2_api():
        return "this etcd has no v2 API"
    return None


def etcd_server() -> EtcdServer:
    """A server, the same for all: with the v2 API where etcd still has it."""
    return EtcdServer(extra_args=["--enable-v2"] if _has_v2_api() else [])
