"""Centring, Sinkhorn, KoLeo and the losses of DINO and iBOT, against lightly and NumPy; two processes equal one.

lightly is imported where it is used: the second process would wait for it.
"""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from two_processes import leave

from ssl_med.errors import UserError
from ssl_med.ops.block_masking import block_order, hidden_first
from ssl_med.ops.centring import Centre, koleo, sinkhorn
from ssl_med.ops.distillation import patch_distillation, teacher_signs, view_distillation
from ssl_med.ops.random import Draws, sample_keys


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sinkhorn_numpy(logits: np.ndarray, temperature: float, iterations: int = 3) -> np.ndarray:
    """SwAV's law as published: prototypes get 1/K each, rows 1/B each, in turn."""
    table = np.exp(logits.astype(np.float64) / temperature).T
    table /= table.sum()
    prototypes, rows = table.shape
    for _ in range(iterations):
        table /= table.sum(1, keepdims=True) * prototypes
        table /= table.sum(0, keepdims=True) * rows
    return (table * rows).T


@pytest.mark.usefixtures("double")
def test_view_loss_is_lightlys() -> None:
    from lightly.loss import DINOLoss

    teacher, student, centre = randn(2, 5, 40), randn(10, 5, 40, seed=1), Centre(40)
    theirs = DINOLoss(output_dim=40, teacher_temp=0.05)
    for _ in range(2):  # the second with a centre that has moved
        expected = theirs(list(teacher), list(student), teacher_temp=0.05)
        targets = centre(teacher.flatten(0, 1), 0.05).view_as(teacher)
        torch.testing.assert_close(view_distillation(targets, student, 0.1), expected, rtol=1e-9, atol=1e-9)
        centre.collect(teacher.flatten(0, 1))
        centre.move()
        torch.testing.assert_close(centre.value, theirs.center.flatten(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("local", [0, 1, 8])
def test_view_loss_has_a_term_for_each_pair_of_different_views(local: int) -> None:
    """With one-hot targets on prototype 0, every term of the loss is -log share of prototype 0 in one student view."""
    logits, pairs = randn(2 + local, 1, 6), []
    targets = torch.eye(6)[[0, 0]][:, None]
    log_share = logits.log_softmax(-1)[:, 0, 0]
    for taught in range(2):
        pairs += [-log_share[seen] for seen in range(2 + local) if seen != taught]
    assert len(pairs) == 2 * (2 + local) - 2
    torch.testing.assert_close(view_distillation(targets, logits, 1.0), torch.stack(pairs).mean())


def test_uniform_teacher_and_student_give_ln_k() -> None:
    uniform = torch.full((2, 3, 4096), 1 / 4096)
    assert float(view_distillation(uniform, torch.zeros(10, 3, 4096), 0.1)) == pytest.approx(math.log(4096), abs=1e-5)


@pytest.mark.usefixtures("double")
def test_patch_loss_is_lightlys() -> None:
    from lightly.loss import IBOTPatchLoss

    mask = torch.zeros(4, 3, 4, dtype=torch.bool)
    for row, count in ((0, 5), (2, 3)):  # two of four views have hidden patches
        mask[row].view(-1)[:count] = True
    teacher, student = randn(8, 30), randn(8, 30, seed=1)
    expected = IBOTPatchLoss(output_dim=30, teacher_temp=0.05)(teacher, student, mask)
    weight = torch.tensor([[1.0] * 5, [1.0] * 3 + [0.0] * 2])
    tables = [torch.stack([x[:5], torch.cat([x[5:], torch.full((2, 30), 9.0)])]) for x in (teacher, student)]
    targets = (tables[0] / 0.05).softmax(-1)
    ours = patch_distillation(targets, tables[1], weight, 0.1) * 2 / 4
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_centre_moves_by_a_tenth_of_the_batch_mean() -> None:
    centre, logits = Centre(5), randn(6, 5)
    centre.collect(logits)
    assert centre.value.abs().max() == 0  # not before the step
    centre.move()
    torch.testing.assert_close(centre.value, 0.1 * logits.mean(0))
    weight = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    before = centre.value.clone()
    centre.collect(logits, weight)
    centre.move()
    torch.testing.assert_close(centre.value, 0.9 * before + 0.1 * logits[[0, 1, 5]].mean(0))


def test_centre_moves_once_for_several_batches_of_a_step() -> None:
    parts, whole, logits = Centre(5), Centre(5), randn(9, 5)
    for rows in logits.split([4, 5]):
        parts.collect(rows)
    parts.move()
    whole.collect(logits)
    whole.move()
    torch.testing.assert_close(parts.value, whole.value)
    before = parts.value.clone()
    parts.move()  # nothing is left of the last step
    assert torch.equal(parts.value, before)
    assert parts.state_dict()["sums"].abs().sum() == 0  # and nothing is pending in a checkpoint


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_sinkhorn_is_the_published_one(iterations: int) -> None:
    logits = randn(12, 7)
    found = sinkhorn(logits, 0.3, iterations=iterations).numpy()
    np.testing.assert_allclose(found, sinkhorn_numpy(logits.numpy(), 0.3, iterations), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-9)


def test_sinkhorn_passes_over_rows_without_weight_and_does_not_overflow() -> None:
    logits, weight = randn(6, 4), torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    found = sinkhorn(logits, 0.5, weight)
    torch.testing.assert_close(found[weight > 0], sinkhorn(logits[weight > 0], 0.5))
    assert found[weight == 0].abs().max() == 0
    assert sinkhorn(1e4 * logits, 0.01).isfinite().all()  # exp(1e6) would not be


@pytest.mark.usefixtures("double")
def test_koleo_is_lightlys() -> None:
    from lightly.loss import KoLeoLoss

    for rows in (randn(9, 16), torch.cat([randn(3, 16), randn(3, 16)])):  # the second has duplicates
        torch.testing.assert_close(koleo(rows), KoLeoLoss()(rows), rtol=1e-9, atol=1e-9)
    with pytest.raises(UserError, match="two or more"):
        koleo(randn(1, 4))


def test_koleo_is_the_same_under_autocast() -> None:
    """Rows so near to each other that bfloat16 confuses their neighbours."""
    found = []
    for enabled in (False, True):
        rows = (1 + 0.05 * randn(64, 32)).requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = koleo(rows)
        loss.backward()
        found.append((loss.detach(), rows.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_teacher_signs_know_both_collapses() -> None:
    one_for_each = teacher_signs(torch.eye(8))
    assert float(one_for_each["teacher_information"]) == pytest.approx(math.log(8), abs=1e-6)
    assert float(one_for_each["prototypes_in_use"]) == 8
    uniform = teacher_signs(torch.full((4, 8), 1 / 8))
    assert float(uniform["teacher_entropy"]) == pytest.approx(math.log(8), abs=1e-6)
    assert float(uniform["teacher_kl"]) == pytest.approx(0, abs=1e-6)
    single = teacher_signs(torch.eye(8)[[3, 3, 3, 3]])
    assert float(single["teacher_kl"]) == pytest.approx(math.log(8), abs=1e-6)
    assert float(single["teacher_information"]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("grid", [(14, 14), (6, 6, 6), (4, 6)])
def test_the_true_mask_ratio_is_the_one_asked_for(grid: tuple[int, ...], blocks: bool) -> None:
    """Defect 14: overlapping blocks counted twice hide too little."""
    draws, count = Draws(sample_keys(0, torch.arange(300))), math.prod(grid)
    patches, real, wanted = hidden_first(draws, grid, (0.2, 0.75), blocks)
    hidden = torch.zeros(300, count, dtype=torch.bool).scatter(1, patches, real)
    assert torch.equal(hidden.sum(1), wanted.long())  # no patch is counted twice
    share = hidden.float().mean(1)
    assert 0.2 - 0.5 / count <= share.min()
    assert share.max() <= 0.75 + 0.5 / count
    assert float(share.mean()) == pytest.approx(0.475, abs=4 * 0.55 / math.sqrt(12 * 300))


def test_blocks_are_blocks() -> None:
    """Hidden patches stand together: far more neighbours are hidden alike than when single patches are hidden."""
    draws = Draws(sample_keys(1, torch.arange(100)))
    alike = []
    for blocks in (True, False):
        patches, real, _ = hidden_first(draws, (14, 14), (0.3, 0.3), blocks)
        picture = torch.zeros(100, 196, dtype=torch.bool).scatter(1, patches, real).view(100, 14, 14)
        alike.append(float((picture[:, 1:] == picture[:, :-1]).float().mean()))
    assert alike[1] == pytest.approx(0.58, abs=0.03)  # 0.3^2 + 0.7^2
    assert alike[0] > 0.75
    order = block_order(draws, (14, 14))
    assert torch.equal(order.sort(1).values, torch.arange(196).expand(100, -1))


# ---- two processes equal one


def _results(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    centre = Centre(rows.shape[1])
    centre.collect(rows)
    centre.move()
    return {"centre": centre.value, "sinkhorn": sinkhorn(rows, 0.3), "koleo": koleo(rows)}


def _work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    rows = torch.load(Path(folder) / "rows.pt", weights_only=True).chunk(world)[rank].requires_grad_(True)
    results = _results(rows)
    results["koleo"].backward()
    found = {name: value.detach() for name, value in results.items()}
    torch.save({**found, "gradient": rows.grad / world}, Path(folder) / f"{rank}.pt")
    leave()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    rows = randn(8, 5)
    torch.save(rows, tmp_path / "rows.pt")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(_work, (2, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    whole = rows.clone().requires_grad_(True)
    expected = _results(whole)
    expected["koleo"].backward()
    for part in parts:
        torch.testing.assert_close(part["centre"], expected["centre"])
        torch.testing.assert_close(part["koleo"], expected["koleo"].detach())
    for name, value in (("sinkhorn", expected["sinkhorn"]), ("gradient", whole.grad)):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value, atol=1e-6, rtol=1e-5)
