"""Real `torchrun` agents whose unmodified workers meet in etcd: no worker serves a TCPStore."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.processes.agents import PATIENCE_S, Agent, Job
from support.waiting import eventually

# What any script does, with a checkpoint; besides, it says who serves a store.
TRAINS = """
import os, socket, sys, time, torch, torch.distributed as dist

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
# Nobody serves a store where torch's rank 0 would: asked by all, when all are there.
dist.barrier()
try:
    socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), 5).close()
    served = True
except ConnectionRefusedError:
    served = False
store = dist.distributed_c10d._get_default_store()
while isinstance(store, dist.PrefixStore):
    store = store.underlying_store
kind = type(store).__name__
dist.barrier()
folder, steps = sys.argv[1], int(sys.argv[2])
checkpoint = os.path.join(folder, "checkpoint")
first = int(open(checkpoint).read()) if os.path.exists(checkpoint) else 0
print(f"rank {rank} of {world} from step {first}: {kind}, served: {served}", flush=True)
for step in range(first, steps):
    told = torch.ones(1)
    dist.all_reduce(told)
    assert told == world
    # New groups are made by the store as well.
    dist.new_group(list(range(world)))
    time.sleep(0.05)
    if rank == 0:
        with open(checkpoint + ".part", "w") as file:
            file.write(str(step + 1))
        os.replace(checkpoint + ".part", checkpoint)
print("done at", steps, flush=True)
dist.destroy_process_group()
"""

SHOWN = re.compile(r"rank (\d) of (\d) from step (\d+): (\w+), served: (\w+)")


@pytest.mark.slow(40)
@pytest.mark.timeout(400)  # three starts of torch in a row, on a busy machine
def test_rank_0_is_lost_and_replaced(job: Job, tmp_path: Path) -> None:
    script, checkpoint = job.script(TRAINS), tmp_path / "checkpoint"
    args = (tmp_path, 60)
    agents = [job.agent("2", script, *args, conf=",worker_store=etcd") for _ in range(2)]
    eventually(lambda: progress(checkpoint) >= 3 or ended(agents), PATIENCE_S)
    assert not ended(agents), [agent.text() for agent in agents]
    first = next(agent for agent in agents if "rank 0 of 2" in agent.text())
    agents.remove(first)
    # The agent and its worker, as the end of the host would.
    first.lose()
    agents.append(job.agent("2", script, *args, conf=",worker_store=etcd"))
    texts = [agent.end() for agent in agents]
    shown = SHOWN.findall("".join([first.text(), *texts]))
    # Two places in each of two rounds at least.
    assert len(shown) >= 4, texts
    assert {(kind, served) for *_, kind, served in shown} == {("EtcdStore", "False")}
    assert any(int(step) >= 3 for _, _, step, _, _ in shown), texts
    assert all("done at 60" in text for text in texts)
    # The stores of rounds are gone, except for the last one, which goes with the run.
    rounds = {key.split("/v_")[1].split("/")[0] for key in job.run.keys("/rdzv") if "/v_" in key}
    assert len(rounds) == 1, rounds


def progress(checkpoint: Path) -> int:
    return int(checkpoint.read_text()) if checkpoint.exists() else 0


def ended(agents: list[Agent]) -> bool:
    return any(agent.process.poll() is not None for agent in agents)


@pytest.mark.slow(10)
def test_a_tcpstore_by_default(job: Job, tmp_path: Path) -> None:
    """What the other test would see if the parameter had no effect."""
    agent = job.agent("1", job.script(TRAINS), tmp_path, 1)
    assert SHOWN.findall(agent.end()) == [("0", "1", "0", "TCPStore", "True")]
