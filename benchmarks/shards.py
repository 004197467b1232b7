"""``python -m benchmarks.shards [processes]``: what one process of many holds of a sharded ViT-L MAE, without them.

A fake process group and weights on the meta device: nothing is sent and nothing is allocated.
"""

import math
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from ssl_med import sharding
from ssl_med.backbones import ViT
from ssl_med.optim import local
from ssl_med.tasks import MAE, Task


def sharded(task: Task, world: int, rank: int, within: int | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes of what process ``rank`` of ``world`` holds of each parameter; ``task`` is on the meta device."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        shards = within or world
        shape = (world,) if shards == world else (world // shards, shards)
        names = ("replicate", "shard")[-len(shape) :]
        sharding.shard(task, init_device_mesh("cpu", shape, mesh_dim_names=names))
        return {name: tuple(local(parameter).shape) for name, parameter in task.named_parameters()}
    finally:
        dist.destroy_process_group()


def main(world: int = 1024) -> None:
    """Print the share of the first and the last process, sharded over all and over eight."""
    for within in (None, 8):
        for rank in (0, world - 1):
            with torch.device("meta"):
                task = MAE(ViT(3, 8, size="large"))
            count = sum(parameter.numel() for parameter in task.parameters())
            mine = sum(map(math.prod, sharded(task, world, rank, within).values()))
            share = mine / count * (within or world)
            print(
                f"{world} processes, {within or world} share a copy: process {rank} holds {mine:,} of {count:,}, "
                f"{share:.2f} of an equal share; {16 * mine / 1e6:.1f} MB with gradients and Adam"
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
