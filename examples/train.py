"""An elastic training with DistributedDataParallel on CPUs: a model, a checkpoint, gloo.

Start it on each node with torchrun, for example

    torchrun --nnodes 2:4 --nproc-per-node 1 --max-restarts 10 --rdzv-id my-job \
        --rdzv-backend etcd-v3 --rdzv-endpoint etcd-1:2379,etcd-2:2379 \
        examples/train.py --steps 100 --checkpoint /shared/checkpoint.pt
"""

from __future__ import annotations

import argparse
import os
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--step-s", type=float, default=0.1, help="pretended work per step")
    parser.add_argument("--checkpoint", type=Path, required=True)
    args = parser.parse_args()

    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    first = 0
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, weights_only=True)
        model.module.load_state_dict(state["model"])
        first = state["step"]
    if rank == 0:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        print(f"world of {world}: training from step {first} (restarts: {attempt})", flush=True)

    # The same data for every size of the world, so that the loss continues after a change.
    data = torch.randn(256, 16, generator=torch.Generator().manual_seed(1))
    target = data @ torch.arange(16.0).unsqueeze(1) / 16
    mine, wanted = data[rank::world], target[rank::world]
    for step in range(first, args.steps):
        loss = nn.functional.mse_loss(model(mine), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(args.step_s)
        if rank == 0 and (step + 1) % 10 == 0:
            save({"model": model.module.state_dict(), "step": step + 1}, args.checkpoint)
            print(f"step {step + 1:4d}  loss {loss.item():.5f}  world {world}", flush=True)
    if rank == 0:
        print(f"done: {args.steps} steps", flush=True)
    dist.destroy_process_group()


def save(state: dict[str, object], path: Path) -> None:
    # A reader never sees half a checkpoint.
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


if __name__ == "__main__":
    main()
