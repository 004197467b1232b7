"""Two processes compute what one computes: gathered rows, sums and batch norm, forwards and backwards."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from two_processes import leave

from ssl_med.ops import ranks
from ssl_med.ops.norm import BatchNorm


def _loss(x: torch.Tensor, norm: BatchNorm) -> torch.Tensor:
    maps = norm(torch.stack([x, x**2], -1))  # (b, 3, 2): moments are taken over space too
    rows = ranks.gather(norm(x) + maps.sum(-1))
    return (rows @ rows.T).logsumexp(1).mean() + ranks.mean(x.pow(3).mean())


def _work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    data = torch.load(Path(folder) / "x.pt", weights_only=True)
    x = data.chunk(world)[rank].clone().requires_grad_(True)
    norm = BatchNorm(3)
    loss = _loss(x, norm)
    loss.backward()
    weight = norm.weight.grad.clone()
    dist.all_reduce(weight)
    if rank == 0:  # the other one does not take part, and nothing waits for it
        with ranks.alone():
            assert (ranks.world_size(), ranks.rank(), len(ranks.gather(x))) == (1, 0, len(x))
            assert torch.equal(ranks.total(x), x)
    assert ranks.world_size() == world
    torch.save(
        {"loss": loss.detach(), "x": x.grad / world, "weight": weight / world, "mean": norm.running_mean},
        Path(folder) / f"{rank}.pt",
    )
    leave()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    torch.save(x, tmp_path / "x.pt")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(_work, (2, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    whole, norm = x.clone().requires_grad_(True), BatchNorm(3)
    loss = _loss(whole, norm)
    loss.backward()
    for part in parts:  # DDP averages: what each process has, divided by their number and summed
        torch.testing.assert_close(part["loss"], loss.detach())
        torch.testing.assert_close(part["weight"], norm.weight.grad, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(part["mean"], norm.running_mean)
    torch.testing.assert_close(torch.cat([part["x"] for part in parts]), whole.grad, atol=1e-6, rtol=1e-5)
