"""What a process holds, and what etcd holds for its clients."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import sys
import urllib.request
from typing import NamedTuple

from support.etcd.metrics import metric, watchers
from torchetcd.etcd_server import EtcdServer


class _MallInfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _native_bytes() -> int:
    """Return what `malloc` has given out, Rust's memory included."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _MallInfo2
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


class Usage(NamedTuple):
    """What this process holds."""

    threads: int
    files: int
    python_blocks: int
    native_bytes: int


def usage() -> Usage:
    for _ in range(3):
        gc.collect()
    threads, files = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("task", "fd"))
    return Usage(threads, files, sys.getallocatedblocks(), _native_bytes())


def leases(server: EtcdServer) -> set[int]:
    """Return all leases of a server."""
    request = urllib.request.Request(f"http://{server.get_endpoint()}/v3/lease/leases", b"{}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return {int(lease["ID"]) for lease in json.load(answer).get("leases", [])}


class AtEtcd(NamedTuple):
    """What etcd holds for its clients."""

    watches: int
    streams: int
    connections: int


def at_etcd(server: EtcdServer) -> AtEtcd:
    methods = 'grpc_method="(?:Watch|LeaseKeepAlive)"'
    started = metric(server, f"grpc_server_started_total{{{methods},.*}}")
    handled = metric(server, f"grpc_server_handled_total{{.*{methods},.*}}")
    return AtEtcd(watchers(server), int(started - handled), _connections(server.get_port()))


def _connections(port: int) -> int:
    """Count the connections to a local port, of all processes."""
    local = f":{port:04X}"
    count = 0
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/net/{table}") as lines:
            rows = (line.split() for line in lines)
            count += sum(row[1].endswith(local) and row[3] == "01" for row in rows)
    return count
