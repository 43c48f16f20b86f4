"""Elastic scale up and down on one machine: one node trains, a second one joins, and leaves again.

Each change restarts the workers, and the training goes on from its checkpoint. Nobody tells the
agents of the change but etcd. The program ends by itself.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from pathlib import Path

from nodes import Job, show
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

from torchetcd.etcd_server import EtcdServer

# The agent of torch before 2.7 closes the whole run when a signal ends it.
SIGNAL_CLOSES = "rdzv_handler.shutdown" in inspect.getsource(LocalElasticAgent._shutdown)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, EtcdServer() as server:
        checkpoint = Path(folder) / "checkpoint.pt"
        # More steps than the training reaches before it is ended below.
        job = Job("1:2", server.get_endpoint(), checkpoint, 10_000, limit_s=110, last_call_s=1)
        try:
            show("=== starting node-a alone")
            job.start("node-a")
            job.wait_for("world of 1: training from step 0 ")
            show("=== scale up: starting node-b")
            leaves = job.start("node-b")
            # Wait for some steps: peers would wait for a worker that is ended while it connects.
            job.wait_for("world 2")
            show("=== scale down: node-b is taken away")
            if SIGNAL_CLOSES:
                leaves.lose()
            else:
                leaves.stop()
            job.wait_for("world of 1")
            job.wait_for("world 1")
            show("=== node-a goes on alone; the end")
        finally:
            job.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
