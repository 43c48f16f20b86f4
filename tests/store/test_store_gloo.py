"""Process groups whose store is an EtcdStore."""

from __future__ import annotations

import gc
import time

import pytest
import torch
import torch.distributed as dist

from support.stores import in_processes, seconds
from torchetcd.etcd import Client
from torchetcd.etcd_store import EtcdStore


def _train(rank: int, world: int, port: int, prefix: str, kind: str, backend: str) -> list[float]:
    device = torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(rank % torch.cuda.device_count())
        device = torch.device("cuda", torch.cuda.current_device())
    # A temporary, which nobody but torch's C++ holds.
    if kind == "prefixed":
        store = dist.PrefixStore("job", EtcdStore(Client(port=port), prefix, seconds(60)))
    else:
        store = EtcdStore(Client(port=port), prefix, seconds(60))
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=seconds(60))
    del store
    gc.collect()
    results = []

    summed = torch.ones(1000, device=device) * (rank + 1)
    dist.all_reduce(summed)
    results.append(summed[0].item())

    sent = torch.tensor([float(rank)], device=device)
    dist.broadcast(sent, src=world - 1)
    results.append(sent.item())

    gathered = [torch.zeros(1, device=device) for _ in range(world)]
    dist.all_gather(gathered, torch.tensor([float(rank)], device=device))
    results += [tensor.item() for tensor in gathered]

    objects: list[object] = [None] * world
    dist.all_gather_object(objects, {"rank": rank})
    assert objects == [{"rank": peer} for peer in range(world)]

    pair = dist.new_group([0, 1])
    if rank < 2:
        both = torch.ones(1, device=device)
        dist.all_reduce(both, group=pair)
        results.append(both.item())
    dist.barrier()
    everyone = dist.new_group()
    dist.barrier(everyone)
    if backend == "gloo":
        dist.monitored_barrier(everyone)
    dist.destroy_process_group()

    # And a second life on the same etcd.
    again = EtcdStore(Client(port=port), f"{prefix}/again", seconds(60))
    dist.init_process_group(backend, store=again, rank=rank, world_size=world)
    dist.barrier()
    dist.destroy_process_group()
    return results


def _check(results: list[list[float]], world: int) -> None:
    for rank, result in enumerate(results):
        expected = [world * (world + 1) / 2, world - 1, *range(world)] + [2.0] * (rank < 2)
        assert result == expected


@pytest.mark.parametrize("kind", ["direct", "prefixed"])
@pytest.mark.parametrize("world", [2, 4])
def test_gloo(client: Client, prefix: str, world: int, kind: str) -> None:
    results = in_processes(world, _train, world, client.port, prefix, kind, "gloo")
    _check(results, world)


def _group_with_a_timeout(rank: int, port: int, prefix: str) -> tuple[str, float]:
    store = EtcdStore(Client(port=port), prefix, seconds(60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=seconds(60))
    error, began = "", time.monotonic()
    if rank == 0:
        try:
            # The other one does not come.
            dist.new_group([0, 1], timeout=seconds(2))
        except dist.DistStoreError as exc:
            error = str(exc)
        store.set("over", "")
    else:
        store.get("over")
    took = time.monotonic() - began
    # And the group of all goes on.
    dist.barrier()
    dist.destroy_process_group()
    return error, took


def test_a_group_with_a_timeout_of_its_own(client: Client, prefix: str) -> None:
    """It is over with its own, and not with that of the group of all: as with a TCPStore."""
    (error, took), _ = in_processes(2, _group_with_a_timeout, client.port, prefix)
    assert "timeout after 2000ms" in error
    assert 1.9 < took < 50


def test_nccl(client: Client, prefix: str) -> None:
    if not torch.cuda.is_available() or not dist.is_nccl_available():
        pytest.skip("needs a CUDA device and a torch with NCCL")
    if torch.cuda.device_count() < 2:
        pytest.skip("NCCL needs a device for each of two processes")
    _check(in_processes(2, _train, 2, client.port, prefix, "direct", "nccl"), 2)
