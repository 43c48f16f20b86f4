"""Real workers with `worker_store=etcd` that start processes, which make groups by `env://` of their own."""

from __future__ import annotations

import inspect
import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from torch.distributed.checkpoint import async_save

from support.processes.agents import Job

CONF = ",worker_store=etcd"
# A dozen starts of torch, on a busy machine.
PATIENCE_S = 150
pytestmark = pytest.mark.timeout(2 * PATIENCE_S)

# Each group says what its processes add up to, and where they met. It is torch's business to say so
# when they do not meet; its default of 30 minutes is too long here.
GROUPS = """
import os, sys
from datetime import timedelta
import torch, torch.distributed as dist

def group(name, value=1):
    dist.init_process_group("gloo", timeout=timedelta(seconds=90))
    store = dist.distributed_c10d._get_default_store()
    # Nothing is there of another group.
    fresh = not store.check(["left over"])
    total = torch.tensor([value if fresh else -1000])
    dist.all_reduce(total)
    store.set("left over", "")
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    world = dist.get_world_size()
    # Nobody ends it while another one reads: it may be the one that serves.
    dist.barrier()
    dist.destroy_process_group()
    # In one piece, whoever else writes.
    os.write(1, f"{name}: {int(total)} of {world} by {type(store).__name__}\\n".encode())
"""

# The port of a group of children of all workers is the test's, and the one of a worker's own children is
# a free one.
STARTS_CHILDREN = (
    GROUPS
    + """
import multiprocessing, socket, subprocess

def child(name, value, port, **env):
    os.environ.update(env, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    group(name, value)

def process(method, *args, **env):
    made = multiprocessing.get_context(method).Process(target=child, args=args, kwargs=env)
    made.start()
    return made

def command(name, value=1, **env):
    return subprocess.Popen([sys.executable, __file__, name, str(value)], env=os.environ | env)

if __name__ == "__main__" and len(sys.argv) == 3:
    group(sys.argv[1], int(sys.argv[2]))
elif __name__ == "__main__":
    fork, forkserver, outside = sys.argv[1:]
    node = int(os.environ["RANK"]) + 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Before the worker's own group: with an address of its own, and with nothing of its own.
    forked = process("fork", "fork", node, fork)
    same = command("same")
    forked.join()
    same.wait()
    group("own")
    # At the same time as the worker's own group.
    running = [
        process("spawn", f"spawn {node}", 100 * node, port, RANK=str(rank), WORLD_SIZE="2")
        for rank in range(2)
    ]
    running.append(process("forkserver", "forkserver", node, forkserver))
    outer = command("command", node, MASTER_PORT=outside)
    if node == 1:
        # A group of one worker alone, which the others know nothing of.
        told = dict(os.environ)
        os.environ.update(MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
        group("alone")
        os.environ.update(told)
    group("own again")
    for each in running:
        each.join()
    outer.wait()
    # All but rank and world size is as the worker's.
    if node == 1:
        command("smaller", RANK="0", WORLD_SIZE="1").wait()
    group("own once more")
"""
)
SHOWN = re.compile(r"^(.+): (\d+) of (\d) by (\w+)$", re.M)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def run(job: Job, script: Path, *args: object) -> str:
    """Let two agents run it to a good end, and return what they and all below them have written."""
    agents = [job.agent("2", script, *args, conf=CONF, max_restarts=0) for _ in range(2)]
    for agent in agents:
        agent.process.wait(PATIENCE_S)
    return "".join([agent.end() for agent in agents])


def shown(job: Job, script: Path, *args: object) -> list[tuple[str, int, int, str]]:
    """Return what its groups have said."""
    found = SHOWN.findall(run(job, script, *args))
    return sorted((name, int(total), int(world), by) for name, total, world, by in found)


@pytest.mark.slow(40)
def test_children_make_groups_of_their_own(job: Job) -> None:
    found = shown(job, job.script(STARTS_CHILDREN), *free_ports(3))
    both = [
        ("command", 3, 2, "TCPStore"),
        ("fork", 3, 2, "TCPStore"),
        ("forkserver", 3, 2, "TCPStore"),
        ("own", 2, 2, "EtcdStore"),
        ("own again", 2, 2, "EtcdStore"),
        ("own once more", 2, 2, "EtcdStore"),
        ("same", 2, 2, "TCPStore"),
        ("spawn 1", 200, 2, "TCPStore"),
        ("spawn 2", 400, 2, "TCPStore"),
    ]
    assert found == sorted(
        [*both, *both, ("alone", 1, 1, "TCPStore"), ("smaller", 1, 1, "TCPStore")]
    )


@pytest.mark.slow(15)
def test_workers_behind_a_shell(job: Job) -> None:
    """One program after the other; of the second one worker is a child of the shell, the other becomes it."""
    script = job.script(GROUPS + "\ngroup(sys.argv[1])\n")
    line = """
        "$0" "$1" first || exit
        [ "$RANK" = 0 ] || exec "$0" "$1" second
        "$0" "$1" second
        exit $?
    """
    # torchrun runs any command after this option, which stands where the script would.
    found = shown(job, Path("--no-python"), "bash", "-c", line, sys.executable, script)
    assert found == sorted([("first", 2, 2, "EtcdStore"), ("second", 2, 2, "EtcdStore")] * 2)


# A worker that is a function is told of its place only after it has started, and torch is there by then.
FUNCTIONS = (
    GROUPS
    + """
import subprocess
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

def work(method):
    if method != "forkserver":
        subprocess.run([sys.executable, "-c", f"import worker; worker.group('child of {method}')"])
    group(method)

if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        elastic_launch(
            LaunchConfig(
                1,
                1,
                1,
                run_id=f"{sys.argv[2]}-{method}",
                rdzv_backend="etcd-v3",
                rdzv_endpoint=sys.argv[1],
                rdzv_configs={"worker_store": "etcd", "last_call_timeout": 0},
                start_method=method,
                local_addr="127.0.0.1",
                max_restarts=0,
            ),
            work,
        )(method)
"""
)


@pytest.mark.slow(25)
def test_workers_that_are_functions(job: Job) -> None:
    script = job.script(FUNCTIONS)
    done = subprocess.run(
        [sys.executable, script.name, job.run.endpoint, job.run.run_id],
        cwd=script.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert SHOWN.findall(done.stdout) == [
        ("child of fork", "1", "1", "TCPStore"),
        ("fork", "1", "1", "EtcdStore"),
        ("child of spawn", "1", "1", "TCPStore"),
        ("spawn", "1", "1", "EtcdStore"),
        # Its environment is that of the time at which the server started, whatever the round.
        ("forkserver", "1", "1", "TCPStore"),
    ]


SAVES = """
import os, sys
from datetime import timedelta
import torch, torch.distributed as dist
from torch.distributed.checkpoint import async_save
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=timedelta(seconds=90))
    for step in range(2):
        async_save(
            {"weight": torch.ones(4) * step, f"of rank {dist.get_rank()}": step},
            checkpoint_id=os.path.join(sys.argv[1], str(step)),
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
        ).result()
    print("saved", flush=True)
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.mark.slow(25)
@pytest.mark.skipif(
    "async_checkpointer_type" not in inspect.signature(async_save).parameters,
    reason="this torch saves in threads only",
)
def test_checkpoints_saved_by_a_process(job: Job, tmp_path: Path) -> None:
    text = run(job, job.script(SAVES), tmp_path)
    assert text.count("saved\n") == 2, text
    for step in range(2):
        # Of both ranks, in one checkpoint.
        assert len(list((tmp_path / str(step)).glob("*.distcp"))) == 2
