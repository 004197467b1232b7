"""A task on one process against the same task on two that share the batch: losses and gradients."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _half(batch: dict, rank: int) -> dict:
    count = len(batch["image"]) // 2
    return {name: value[rank * count : (rank + 1) * count] for name, value in batch.items()}


def _work(rank: int, folder: str, make: Callable) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    task, batch = make()
    losses = task(_half(batch, rank), 0.5)
    losses["loss"].backward()
    for parameter in task.parameters():  # what a trainer does
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= 2
    torch.save({"losses": {n: v.detach() for n, v in losses.items()}, "grads": grads(task)}, f"{folder}/{rank}.pt")
    leave()


def leave() -> None:
    """End a process of a test: together, and without the destructors of gloo's threads, which sometimes abort."""
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def grads(task: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in task.named_parameters() if p.grad is not None}


def check_two_equal_one(make: Callable, folder: Path, atol: float = 1e-5) -> None:
    """``make()`` gives a task and its global batch, the same at each call, in any process."""
    task, batch = make()
    losses = task(batch, 0.5)
    losses["loss"].backward()
    mp.spawn(_work, (str(folder), make), nprocs=2)
    for rank in range(2):
        part = torch.load(folder / f"{rank}.pt", weights_only=True)
        for name, value in losses.items():
            torch.testing.assert_close(part["losses"][name], value.detach(), atol=atol, rtol=1e-4, msg=name)
        assert part["grads"].keys() == grads(task).keys()
        for name, value in grads(task).items():
            torch.testing.assert_close(part["grads"][name], value, atol=atol, rtol=1e-3)
