"""A training on one machine: three torchrun agents train over etcd, and a node is lost and replaced.

There are two acts. In `etcd` an etcd runs beside the job. In `job` there is no such service: the agents run
the members of an etcd themselves (`--rdzv-endpoint job://...`). The node that is lost there is the worst one:
it has rank 0, and its member of etcd is the leader.

`make demo` runs both, and `demo.py etcd` or `demo.py job` runs one. Each ends by itself within five minutes.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

from nodes import Job, show

from torchetcd.etcd import Client
from torchetcd.etcd_server import EtcdServer, find_binary

STEPS, LIMIT_S = 300, 270


def over_etcd() -> int:
    with tempfile.TemporaryDirectory() as folder, EtcdServer() as server:
        show(f"etcd {server.get_client().version} at {server.get_endpoint()}")
        checkpoint = Path(folder) / "checkpoint.pt"
        job = Job("2:3", server.get_endpoint(), checkpoint, STEPS, limit_s=LIMIT_S)
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


def inside_the_job() -> int:
    # On one machine the three members need a port each; on three hosts, job://host-a,host-b,host-c.
    entries = ",".join(f"127.0.0.1:{port}" for port in free_ports(3))
    show("There is no etcd service. Each agent of this job runs a member of an etcd.")
    show(f"The endpoint is the same for all: job://{entries}")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.pt"
        conf = f",quorum_dir={folder}"
        job = Job("2:3", f"job://{entries}", checkpoint, STEPS, limit_s=LIMIT_S, conf=conf)
        try:
            for name in ("node-a", "node-b", "node-c"):
                show(f"=== starting {name}")
                job.start(name)
            # The worker of rank 0 prints this.
            lost = job.wait_for("world 3")
            members = members_by_agent(entries)
            member = members[lost.process.pid]
            leads = make_leader(member, members.values())
            role = "leader" if leads else "follower"
            show(f"=== {lost.name} has rank 0, and its member at {member.at} is etcd's {role}")
            show(f"=== losing {lost.name}: SIGKILL to its agent, its worker and its member of etcd")
            lost.lose()
            first = job.wait_for("world 2")
            show(
                "=== two of three members were enough: they have elected a leader, and the world has"
            )
            show(f"=== re-formed with two nodes, of which {first.name} has rank 0 now")
            show("=== starting node-d, whose agent resumes the member that was lost")
            job.start("node-d")
            job.wait_for("world 3")
            running = len(members_by_agent(entries))
            show(f"=== the world has three nodes again, and etcd has {running} members")
            job.wait_for("done: ")
            codes = {node.name: node.process.wait(60) for node in job.nodes if node is not lost}
        finally:
            job.stop()
        left = "some" if list(Path(folder).glob("torchetcd-quorum-*")) else "no"
    show(
        f"=== the end: exit codes {codes}; the members have ended, and {left} data of etcd is left"
    )
    return max(codes.values())


class Member(NamedTuple):
    """A member of the etcd inside the job."""

    id: str
    at: str

    @property
    def leads(self) -> bool:
        with urlopen(f"http://{self.at}/metrics", timeout=10) as page:
            return b"\netcd_server_is_leader 1\n" in page.read()


def members_by_agent(entries: str) -> dict[int, Member]:
    """The member of each agent, by the agent's process id: agents write it into etcd."""
    with Client(entries, read_timeout=10) as client:
        keys = list(client.read("/torchetcd/quorum/members").leaves)
    found = {}
    for key in keys:
        said = json.loads(key.value)
        found[said["pid"]] = Member(key.key.rpartition("/")[2], said["entry"])
    return found


def make_leader(member: Member, others: Iterable[Member]) -> bool:
    """Move the leadership to a member; `False` where there is no etcdctl for that."""
    etcdctl = Path(find_binary()).with_name("etcdctl")
    leader = next((each for each in others if each.leads), None)
    if leader is not None and etcdctl.is_file():
        command = [etcdctl, "move-leader", member.id, "--endpoints", leader.at]
        subprocess.run(
            command, check=True, env=os.environ | {"ETCDCTL_API": "3"}, stdout=subprocess.DEVNULL
        )
    return member.leads


def free_ports(number: int) -> list[int]:
    """Ports for the members. The next ones are free too: at those the members reach each other."""
    found: set[int] = set()
    while len(found) < number:
        port = random.randrange(20000, 32000, 2)
        with (
            suppress(OSError),
            socket.create_server(("127.0.0.1", port)),
            socket.create_server(("127.0.0.1", port + 1)),
        ):
            found.add(port)
    return sorted(found)


def main() -> int:
    acts = {"etcd": over_etcd, "job": inside_the_job}
    chosen = sys.argv[1:] or list(acts)
    return max(acts[name]() for name in chosen)


if __name__ == "__main__":
    sys.exit(main())
