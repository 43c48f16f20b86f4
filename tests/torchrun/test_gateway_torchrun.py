"""Real `torchrun` agents that serve their workers a TCPStore of their own, with etcd behind it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.processes.agents import Agent, Job
from support.waiting import eventually

CONF = ",worker_store=gateway"
# For three starts of torch in a row, on a busy machine.
PATIENCE_S = 120

COLLECTIVES = """
import os, sys, torch, torch.distributed as dist
from datetime import timedelta

# A script's own client, before there is a group.
own = dist.TCPStore(
    os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False,
    timeout=timedelta(seconds=60),
)
own.set("from " + os.environ["RANK"], "hello")
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
assert own.get(f"from {(rank + 1) % world}") == b"hello"
told = torch.ones(3)
dist.all_reduce(told)
assert told.tolist() == [world] * 3
groups = [dist.new_group([one]) for one in range(world)] + [dist.new_group(list(range(world)))]
dist.barrier(groups[-1])
gathered = [None] * world
dist.all_gather_object(gathered, {"rank": rank}, group=groups[-1])
assert gathered == [{"rank": one} for one in range(world)]
if rank == 0:
    dist.send_object_list(["a", 1], dst=1)
elif rank == 1:
    received = [None, None]
    dist.recv_object_list(received, src=0)
    assert received == ["a", 1]
dist.monitored_barrier(timeout=timedelta(seconds=60))
store = dist.distributed_c10d._get_default_store()
while isinstance(store, dist.PrefixStore):
    store = store.underlying_store
# All of it is torch's own.
assert "torchetcd._torchetcd" not in sys.modules
kind = type(store).__name__
print(f"rank {rank} of {world} is done with a {kind} at {store.host}:{store.port}", flush=True)
dist.destroy_process_group()
"""

DONE = re.compile(r"rank (\d) of 2 is done with a TCPStore at (\S+):(\d+)")


@pytest.mark.slow(20)
@pytest.mark.timeout(3 * PATIENCE_S)
def test_a_group_of_two_agents(job: Job) -> None:
    script = job.script(COLLECTIVES)
    agents = [job.agent("2", script, conf=CONF) for _ in range(2)]
    found = DONE.findall("".join(agent.end() for agent in agents))
    assert {rank for rank, *_ in found} == {"0", "1"}
    assert {host for _, host, _ in found} == {"127.0.0.1"}
    # Each agent has a port of its own.
    assert len({port for *_, port in found}) == 2


STEPS = """
import os, sys, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
folder, steps = sys.argv[1], int(sys.argv[2])
checkpoint = os.path.join(folder, "checkpoint")
first = int(open(checkpoint).read()) if os.path.exists(checkpoint) else 0
print(f"rank {rank} of {world} from step {first}", flush=True)
for step in range(first, steps):
    told = torch.ones(1)
    dist.all_reduce(told)
    dist.new_group(list(range(world)))
    time.sleep(0.05)
    if rank == 0:
        with open(checkpoint + ".part", "w") as file:
            file.write(str(step + 1))
        os.replace(checkpoint + ".part", checkpoint)
print("done at", steps, flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow(40)
@pytest.mark.timeout(4 * PATIENCE_S)
def test_a_member_is_killed_and_replaced(job: Job, tmp_path: Path) -> None:
    script, checkpoint = job.script(STEPS), tmp_path / "checkpoint"
    args = (tmp_path, 60)
    agents = [job.agent("2", script, *args, conf=CONF) for _ in range(2)]
    eventually(lambda: progress(checkpoint) >= 3 or ended(agents), PATIENCE_S)
    assert not ended(agents), [agent.text() for agent in agents]
    first = next(agent for agent in agents if "rank 0 of 2" in agent.text())
    agents.remove(first)
    first.lose()
    agents.append(job.agent("2", script, *args, conf=CONF))
    texts = [agent.end() for agent in agents]
    assert all("done at 60" in text for text in texts), texts
    # The one that stayed was in both rounds, at one gateway.
    steps = re.findall(r"rank \d of 2 from step (\d+)", texts[0])
    assert len(steps) >= 2
    assert int(steps[-1]) >= 3
    assert len(set(re.findall(r"find their store at (\S+),", texts[0]))) == 1
    # The stores of rounds are gone, except for the last one, which goes with the run.
    rounds = {key.split("/v_")[1].split("/")[0] for key in job.run.keys("/rdzv") if "/v_" in key}
    assert len(rounds) == 1, rounds


WAITS = """
import os, sys, time, torch.distributed as dist
from datetime import timedelta
if os.environ["GROUP_RANK"] == sys.argv[1]:
    print("stays away", flush=True)
    time.sleep(1000)
store = dist.TCPStore(
    os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False,
    timeout=timedelta(seconds=1000),
)
print("waits", flush=True)
store.get("never set")
"""


@pytest.mark.slow(20)
@pytest.mark.timeout(3 * PATIENCE_S)
def test_a_killed_member_ends_blocked_waits(job: Job) -> None:
    script = job.script(WAITS)
    agents = [job.agent("2", script, 0, conf=CONF, max_restarts=0) for _ in range(2)]
    eventually(lambda: {"waits", "stays away"} <= words(agents), PATIENCE_S)
    lost = next(agent for agent in agents if "stays away" in agent.text())
    agents.remove(lost)
    lost.lose()
    # Named, and well before the worker's own time is up.
    agents[0].await_text("was ended: a member of the round was lost: rank ")


def words(agents: list[Agent]) -> set[str]:
    return {line.strip() for agent in agents for line in agent.text().splitlines()} & {
        "waits",
        "stays away",
    }


CHILDREN = """
import os, socket, subprocess, sys, torch, torch.distributed as dist
import torch.multiprocessing as mp

def child(rank, port, told):
    # As torch's own checkpoint process does it.
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    dist.init_process_group("gloo")
    sum_of = torch.ones(1)
    dist.all_reduce(sum_of)
    assert sum_of == 2
    dist.destroy_process_group()

def by_url(rank, port, told):
    # The agent's flag is inherited, and the address is the child's own.
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    dist.barrier()
    dist.destroy_process_group()

def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]

if __name__ == "__main__":
    dist.init_process_group("gloo")
    store = dist.distributed_c10d._get_default_store()
    before = store.num_keys()
    for one in (child, by_url):
        mp.spawn(one, (free_port(), ""), nprocs=2)
    # Nothing of theirs is in the store of the workers.
    assert store.num_keys() == before, (before, store.num_keys())
    dist.barrier()
    dist.destroy_process_group()
    print("the children have met elsewhere", flush=True)
"""


@pytest.mark.slow(30)
@pytest.mark.timeout(3 * PATIENCE_S)
def test_groups_of_children_are_elsewhere(job: Job) -> None:
    agent = job.agent("1", job.script(CHILDREN), conf=CONF)
    assert "the children have met elsewhere" in agent.end()


def progress(checkpoint: Path) -> int:
    return int(checkpoint.read_text()) if checkpoint.exists() else 0


def ended(agents: list[Agent]) -> bool:
    return any(agent.process.poll() is not None for agent in agents)
