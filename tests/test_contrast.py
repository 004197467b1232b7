"""InfoNCE and NT-Xent: against lightly and PyTorch, and two processes against one."""

import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightly.loss import NTXentLoss
from torch.nn import functional
from two_processes import leave

from ssl_med.ops.contrast import info_nce, nt_xent


def rows(count: int, seed: int, width: int = 6) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_nt_xent_is_lightlys(temperature: float) -> None:
    a, b = rows(7, 0).requires_grad_(True), rows(7, 1)
    ours, theirs = nt_xent(a, b, temperature), NTXentLoss(temperature=temperature)(a, b)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    (first,), (second,) = torch.autograd.grad(ours, a), torch.autograd.grad(theirs, a)
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("double")
def test_info_nce_by_its_formula() -> None:
    q, k = rows(5, 2), rows(5, 3)
    total = 0.0
    for i in range(5):
        similarity = [float(functional.cosine_similarity(q[i], k[j], dim=0)) / 0.2 for j in range(5)]
        total -= math.log(math.exp(similarity[i]) / sum(math.exp(s) for s in similarity)) / 5
    assert float(info_nce(q, k, 0.2)) == pytest.approx(total, rel=1e-9)


def test_chance_levels() -> None:
    same = torch.ones(8, 4)
    assert float(info_nce(same, same, 0.2)) == pytest.approx(math.log(8), rel=1e-6)
    assert float(nt_xent(same, same, 0.2)) == pytest.approx(math.log(15), rel=1e-6)


def test_weight_zero_is_as_if_the_sample_were_not_there() -> None:
    a, b, keep = rows(6, 4), rows(6, 5), torch.tensor([1.0, 0, 1, 1, 0, 1])
    there = keep.bool()
    torch.testing.assert_close(nt_xent(a, b, 0.1, keep), nt_xent(a[there], b[there], 0.1))
    nobody = nt_xent(a.requires_grad_(True), b, 0.1, torch.zeros(6))
    nobody.backward()
    assert float(nobody.detach()) == 0
    assert a.grad.abs().max() == 0


def test_half_precision_is_computed_in_full() -> None:
    a, b = rows(6, 6), rows(6, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(info_nce(a, b, 0.1), info_nce(a.clone(), b, 0.1))
        half = nt_xent(a, b, 0.1)
    assert torch.equal(half, nt_xent(a, b, 0.1))


def _losses(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return info_nce(a, b.detach(), 0.2) + nt_xent(a, b, 0.1) + nt_xent(a, b, 0.3, weight)


def _work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    a, b, weight = (x.chunk(world)[rank].clone() for x in torch.load(Path(folder) / "x.pt", weights_only=True))
    a.requires_grad_(True)
    loss = _losses(a, b, weight)
    loss.backward()
    torch.save({"loss": loss.detach(), "gradient": a.grad / world}, Path(folder) / f"{rank}.pt")
    leave()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    data = (rows(8, 8), rows(8, 9), torch.tensor([1.0, 1, 0, 1, 1, 0, 0, 1]))
    torch.save(data, tmp_path / "x.pt")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(_work, (2, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    a = data[0].clone().requires_grad_(True)
    loss = _losses(a, data[1], data[2])
    loss.backward()
    for part in parts:
        torch.testing.assert_close(part["loss"], loss.detach())
    torch.testing.assert_close(torch.cat([part["gradient"] for part in parts]), a.grad, atol=1e-6, rtol=1e-5)
