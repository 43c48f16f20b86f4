"""A training on one machine: three torchrun agents train over etcd, and a node is lost and replaced.

`make demo` runs this; it ends by itself within five minutes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from nodes import Job, show

from torchetcd.etcd_server import EtcdServer


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, EtcdServer() as server:
        show(f"etcd {server.get_client().version} at {server.get_endpoint()}")
        job = Job(
            "2:3", server.get_endpoint(), Path(folder) / "checkpoint.pt", steps=200, limit_s=270
        )
        try:
            for name in ("node-a", "node-b", "node-c"):
                show(f"=== starting {name}")
                lost = job.start(name)
            job.wait_for("world 3")
            show("=== losing node-c: SIGKILL to its agent and its worker")
            lost.lose()
            job.wait_for("world 2")
            show("=== the world has re-formed with two nodes; starting node-d as the replacement")
            job.start("node-d")
            job.wait_for("world 3")
            show("=== the world has three nodes again")
            job.wait_for("done: ")
            codes = {node.name: node.process.wait(60) for node in job.nodes if node is not lost}
        finally:
            job.stop()
    show(f"=== the end: exit codes {codes}")
    return max(codes.values())


if __name__ == "__main__":
    sys.exit(main())
