"""The commands of the pages per framework, typed on two nodes: `make test-frameworks`.

A page's scripts are blocks with the mark `file`. Its commands are typed on CPUs, one worker on each node.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.docs.blocks import BLOCKS, Block
from support.docs.terminals import environment
from torchetcd.etcd_server import EtcdServer

_MARK = re.compile(r"make test-frameworks types it (on two nodes|once)")
COMMANDS = [block for block in BLOCKS if _MARK.match(block.marks.get("not run", ""))]
CLUSTER = "etcd-1:2379,etcd-2:2379,etcd-3:2379"
# DeepSpeed compiles an extension at its first start.
PATIENCE_S = 900

pytestmark = [pytest.mark.needs_etcd, pytest.mark.timeout(PATIENCE_S + 60)]


def _here(source: str, server: EtcdServer, job: str) -> str:
    """The command for this etcd, with a job's name of its own, and for a machine without GPUs."""
    host, port = server.get_endpoint().split(":")
    for written, meant in (
        (CLUSTER, server.get_endpoint()),
        # As `accelerate launch` puts it together.
        ("--main_process_ip etcd-1:2379,etcd-2:2379,etcd-3 ", f"--main_process_ip {host} "),
        ("--main_process_port 2379", f"--main_process_port {port}"),
        ("my-job", job),
        ("--nproc-per-node 8", "--nproc-per-node 1"),
        ("--num_processes 16", "--num_processes 2"),
        # It refuses more processes than cores, and root.
        ("mpirun ", "mpirun --oversubscribe --allow-run-as-root "),
    ):
        source = source.replace(written, meant)
    return source


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.where)
def test_typed(block: Block, etcd_server: EtcdServer, tmp_path: Path) -> None:
    for other in BLOCKS:
        if other.page == block.page and "file" in other.marks:
            (tmp_path / other.marks["file"]).write_text(other.source)
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    job, nodes = block.where.replace("/", "-"), []
    for node in range(1 if "once" in block.marks["not run"] else 2):
        # Where etcd is on the same host, `accelerate launch` wants numbers above 0.
        env = {"NODE_RANK": str(node + 1), "DS_ACCELERATOR": "cpu"}
        env |= {"ETCD": etcd_server.get_endpoint(), "JOB": job}
        nodes.append(
            subprocess.Popen(
                ["bash", "-euc", _here(block.source, etcd_server, job)],
                cwd=tmp_path,
                env=environment(programs) | env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    shown = [node.communicate(timeout=PATIENCE_S)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0] * len(nodes), "\n".join(shown)
    for rank in range(2):
        assert sum(text.count(f"rank {rank} of 2") for text in shown) == 1, "\n".join(shown)
