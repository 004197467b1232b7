"""Processes that train together, as forks of the test's own process, which has imported everything already."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from ssl_med.ops.random import sample_keys

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def together(
    world: int, folder: Path, work: Callable[[int], object], seconds: float = 240.0, join: bool = True
) -> list:
    """What ``work(rank)`` gives in each of ``world`` processes that share a gloo group.

    Without ``join`` they find what torchrun tells its processes in the environment, and a trainer makes the group.

    Raises:
        AssertionError: a process failed, with what it printed, or did not end in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    children = [_begin(rank, world, folder, work, None if join else port) for rank in range(world)]
    codes, deadline = {}, time.monotonic() + seconds
    while len(codes) < world and time.monotonic() < deadline and not any(codes.values()):
        for rank, child in enumerate(children):
            if rank not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                codes |= {rank: os.waitstatus_to_exitcode(status)} if done else {}
        time.sleep(0.01)
    for rank in set(range(world)) - set(codes):
        os.kill(children[rank], 9)
        os.waitpid(children[rank], 0)
    told = "\n".join(path.read_text()[-4000:] for path in sorted(folder.glob("*.log")))
    assert [codes.get(rank) for rank in range(world)] == [0] * world, told
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _begin(rank: int, world: int, folder: Path, work: Callable[[int], object], port: int | None) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        sys.stdout = sys.stderr = log = (folder / f"{rank}.log").open("w", buffering=1)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        if port is None:
            meet, patience = f"file://{folder}/meet", timedelta(seconds=240)
            dist.init_process_group("gloo", meet, rank=rank, world_size=world, timeout=patience)
        else:
            os.environ |= _told_by_torchrun(rank, world, port)
        torch.save(work(rank), folder / f"{rank}.pt")
        if dist.is_initialized():
            dist.barrier()
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)  # without the destructors of gloo's threads, which sometimes abort


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _told_by_torchrun(rank: int, world: int, port: int) -> dict[str, str]:
    told = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    return {name: str(value) for name, value in told.items()}


def image_batch(space: tuple[int, ...], count: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict:
    """Images with structure (a bright box on noise), spacing, labels and keys."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.3 * torch.randn(count, 1, *space, generator=generator)
    mask = torch.zeros(count, 1, *space, dtype=torch.int64)
    box = [slice(size // 4, size // 2 + 1) for size in space]
    mask[(..., *box)] = 1
    mask[::3, :, :2] = -1  # unknown, and not as much of it in each part of the batch; so are labels and numbers
    corners = [*(side.start for side in box), *(side.stop for side in box)]
    return {
        "image": (image + 2.0 * (mask > 0)).to(dtype),
        "mask": mask,
        "spacing": torch.full((count, len(space)), 1.5, dtype=dtype),
        "label": torch.arange(count) % 3 - 1,
        "labels": torch.stack([torch.arange(count) % 2, torch.arange(count) // 3 - 1], 1).clamp(-1, 1),  # -1 unknown
        "value": (torch.arange(count, dtype=dtype) / 4 - 0.5).where(torch.arange(count) % 5 > 0, torch.nan),
        "boxes": torch.tensor([corners, [0] * len(corners)], dtype=dtype).repeat(count, 1, 1),
        "box_labels": torch.stack([torch.arange(count) % 3 - 1, torch.full((count,), -1)], 1),  # a third has no box
        "key": sample_keys(seed, torch.arange(count)),
        "id": [f"{seed}-{i:02x}" for i in range(count)],
    }


def share(batch: dict, rank: int, world: int) -> dict:
    """The rows of one process, as the sampler deals them."""
    count = len(batch["image"]) // world
    return {name: value[rank * count : (rank + 1) * count] for name, value in batch.items()}
