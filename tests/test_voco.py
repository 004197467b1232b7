"""VoCo: overlaps against counted voxels, the losses against NumPy, the teacher, one process against two."""

from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import many, signs_of, train
from two_processes import check_two_equal_one

from ssl_med.backbones import UNetEncoder, ViT
from ssl_med.errors import UserError
from ssl_med.ops.position_contrast import discrepancy_loss, position_loss, similarity
from ssl_med.ops.random import sample_keys
from ssl_med.tasks import VoCo
from ssl_med.transforms.position_crops import PositionCrops


def unet(axes: int) -> UNetEncoder:
    torch.manual_seed(0)
    return UNetEncoder(axes, 1, (8, 16), blocks=1)


def ramp(space: tuple[int, ...], count: int = 3) -> dict:
    """Every voxel holds its own number."""
    image = torch.arange(float(np.prod(space))).reshape(1, 1, *space).repeat(count, 1, *[1] * len(space))
    return {
        "image": image,
        "spacing": torch.full((count, len(space)), 2.0),
        "key": sample_keys(0, torch.arange(count)),
    }


@pytest.mark.parametrize(("space", "grid"), [((16, 24), 4), ((6, 16, 8), 2), ((8, 8, 12), [2, 2, 3])])
def test_overlaps_are_shares_of_voxels_and_sum_to_one(space, grid) -> None:
    crops = PositionCrops(grid, count=5, transforms=[])
    regions = crops(ramp(space))
    cells = crops.grid_of(space)
    length = [n // g for n, g in zip(space, cells, strict=True)]
    owner = np.zeros(space, dtype=int)  # number of the region of each voxel
    for number, cell in enumerate(np.ndindex(*cells)):
        owner[tuple(slice(c * n, (c + 1) * n) for c, n in zip(cell, length, strict=True))] = number
    for image in range(3):
        for crop in range(5):
            box = tuple(slice(a, a + n) for a, n in zip(regions.start[image, crop].tolist(), length, strict=True))
            share = np.bincount(owner[box].ravel(), minlength=owner.max() + 1) / owner[box].size
            np.testing.assert_allclose(regions.overlap[image, crop].numpy(), share, atol=1e-6)
    torch.testing.assert_close(regions.overlap.sum(-1), torch.ones(3, 5))


@pytest.mark.parametrize(("space", "grid"), [((16, 24), 4), ((6, 16, 8), 2)])
def test_crops_show_what_stands_in_their_boxes(space, grid) -> None:
    crops, batch = PositionCrops(grid, count=2, transforms=[]), ramp(space)
    regions = crops(batch)
    cells = crops.grid_of(space)
    length = [n // g for n, g in zip(space, cells, strict=True)]
    base = regions.base["image"].unflatten(0, (-1, 3))
    for number, cell in enumerate(np.ndindex(*cells)):
        box = (slice(None), *(slice(c * n, (c + 1) * n) for c, n in zip(cell, length, strict=True)))
        torch.testing.assert_close(base[number, 0], batch["image"][0][box], atol=1e-2, rtol=0)
    random = regions.random["image"].unflatten(0, (-1, 3))
    for image, crop in np.ndindex(3, 2):
        start = regions.start[image, crop].tolist()
        box = (slice(None), *(slice(a, a + n) for a, n in zip(start, length, strict=True)))
        torch.testing.assert_close(random[crop, image], batch["image"][image][box], atol=1e-2, rtol=0)


def test_places_are_uniform_over_all_that_fit() -> None:
    count = 4000
    batch = {"image": torch.zeros(count, 1, 4, 8), "key": sample_keys(0, torch.arange(count))}
    start = PositionCrops([1, 2], count=1)(batch).start[:, 0]
    assert (start[:, 0] == 0).all()
    share = start[:, 1].bincount(minlength=5) / count
    torch.testing.assert_close(share, torch.full((5,), 0.2), atol=5 * (0.16 / count) ** 0.5, rtol=0.0)


def test_crops_are_brought_to_the_multiple_and_keep_their_extent() -> None:
    crops = PositionCrops(2, multiple=4)
    regions = crops(ramp((12, 20)))
    assert regions.base["image"].shape == (12, 1, 8, 12)  # regions of 6 x 10 voxels
    torch.testing.assert_close(regions.base["spacing"], torch.tensor([[1.5, 2 * 10 / 12]]).repeat(12, 1))


def test_every_crop_is_changed_by_itself() -> None:
    regions = PositionCrops(2)(ramp((8, 8), 8))
    still = PositionCrops(2, transforms=[])(ramp((8, 8), 8))
    moved = (regions.base["image"] != still.base["image"]).flatten(1).any(1)
    assert 0.4 < moved.float().mean() < 1.0  # three of four are flipped along some axis
    assert len(set(regions.base["key"].tolist()) | set(regions.random["key"].tolist())) == 48


def test_regions_of_padding_are_absent() -> None:
    batch = ramp((8, 8), 2)
    batch["valid"] = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    batch["valid"][1, :, 4:] = False
    batch["valid"][1, :, 7, 7] = True
    present = PositionCrops(2)(batch).present
    assert present.tolist() == [[True] * 4, [True, True, False, True]]


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.crop"):
        PositionCrops(4)(ramp((6, 8)))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("weighting", ["overlap", "equal"])
def test_the_prediction_is_its_formula(weighting) -> None:
    generator = np.random.default_rng(0)
    cosine = generator.uniform(-1, 1, (2, 3, 4))
    overlap = generator.dirichlet(np.ones(4) * 0.3, (2, 3)) * (generator.random((2, 3, 4)) < 0.7)
    present = np.array([[True, True, False, True], [True] * 4])
    near, weight, far = [], [], []
    for i, k, n in np.ndindex(2, 3, 4):
        if not present[i, n]:
            continue
        s, y = max(cosine[i, k, n], 0.0), overlap[i, k, n]
        near.append(-np.log(1 - abs(y - s) + 1e-6))
        weight.append(y)
        if y == 0:
            far.append(s**2)
    expected = np.mean(near) if weighting == "equal" else np.dot(near, weight) / np.sum(weight) + np.mean(far)
    tensors = (torch.tensor(x) for x in (cosine, overlap, present))
    assert position_loss(*tensors, weighting).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("weighting", "power"), [("overlap", 2), ("equal", 1)])
def test_the_discrepancy_is_its_formula(weighting, power) -> None:
    generator = np.random.default_rng(0)
    bases, present = generator.normal(size=(3, 4, 5)), generator.random((3, 4)) < 0.8
    scores = []
    for image in range(3):
        for one in range(4):
            for two in range(one):
                if present[image, one] and present[image, two]:
                    x, y = bases[image, one], bases[image, two]
                    scores.append(max(x @ y / np.linalg.norm(x) / np.linalg.norm(y), 0.0) ** power)
    loss = discrepancy_loss(torch.tensor(bases), torch.tensor(present), weighting)
    assert loss.item() == pytest.approx(np.mean(scores), abs=1e-9)
    apart = torch.eye(4)[None]
    assert discrepancy_loss(apart, torch.ones(1, 4, dtype=torch.bool)) == 0


def test_similarities_are_the_same_under_autocast() -> None:
    x, y = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = similarity(x, y)
    assert torch.equal(mixed, similarity(x, y))


def test_a_perfect_embedding_has_no_loss() -> None:
    overlap = torch.tensor([[[0.25, 0.75, 0.0, 0.0]]])
    everything = torch.ones(1, 4, dtype=torch.bool)
    for weighting in ("overlap", "equal"):
        assert position_loss(overlap, overlap, everything, weighting).abs().item() < 1e-5


def test_the_targets_send_no_gradient(make_batch) -> None:
    batch = make_batch((16, 16))
    for momentum in (0.0, 0.9):
        task = VoCo(unet(2), crops=PositionCrops(2, multiple=2), hidden_dim=16, out_dim=8, momentum=momentum)
        regions = task.crops(batch)
        cosine, bases = task.compare(regions)
        bases.retain_grad()
        position_loss(cosine, regions.overlap, regions.present).backward()
        assert bases.grad is None
        assert task.backbone.stages[0][0].conv1.weight.grad.abs().max() > 0
        if momentum:
            assert all(p.grad is None for p in task.teacher.parameters())


def test_the_teacher_follows(make_batch) -> None:
    task = VoCo(unet(2), crops=PositionCrops(2), hidden_dim=16, out_dim=8, momentum=0.75)
    weight, taught = task.head[0].weight, task.teacher[1][0].weight
    assert torch.equal(weight, taught)
    with torch.no_grad():
        weight.add_(1.0)
    task.after_step(0.0)
    torch.testing.assert_close(weight - taught, torch.full_like(taught, 0.75))
    assert VoCo(unet(2), hidden_dim=16, out_dim=8, momentum=0.0).teacher is None


def make_task() -> tuple:
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    backbone = ViT(2, 4, embed_dim=24, depth=1, heads=2)
    task = VoCo(backbone, crops=PositionCrops(2, multiple=4), hidden_dim=16, out_dim=8)
    image = torch.randn(4, 1, 16, 16, generator=generator)
    return task, {"image": image, "key": sample_keys(0, torch.arange(4))}


def test_two_processes_equal_one(tmp_path: Path) -> None:
    check_two_equal_one(make_task, tmp_path)


def position_batches(steps: int, count: int = 8) -> list[dict]:
    """Images in which brightness and texture tell the place, the same way in all of them."""
    batches = many((32, 32), steps, count)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    for batch in batches:
        batch["image"] = 0.1 * batch["image"] + 2 * y + torch.sin(12 * x) * (x > 0)
    return batches


def test_a_miniature_training_finds_positions() -> None:
    task = VoCo(unet(2), crops=PositionCrops(2, transforms=[]), hidden_dim=32, out_dim=16)
    batches = position_batches(100)
    losses = train(task, batches, lr=3e-3)
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    signs = signs_of(task, batches[-1])
    assert task.verdict(signs) == ""
    assert signs["position_loss"] < 0.8 * signs["position_blind"]


def test_a_collapsed_or_blind_embedding_is_told() -> None:
    task, batch = VoCo(unet(2), crops=PositionCrops(2), hidden_dim=16, out_dim=8), position_batches(1)[0]
    with torch.no_grad():
        task.head[-1].weight.mul_(1e-4)
        task.head[-1].bias.fill_(1.0)
    assert "nearly the same for all regions" in task.verdict(signs_of(task, batch))
    task.after_step(0.5)
    blind = {"embedding_spread": 1.0, "position_loss": 1.2, "position_blind": 1.0, "dead_pairs": 0.5}
    assert "no position is found" in task.verdict(blind)
    assert task.verdict({**blind, "position_loss": 0.5}) == ""


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"momentum": 1.0}, {"weighting": "mine"}):
        with pytest.raises((UserError, TypeError)) as caught:
            VoCo(unet(2), **wrong)
        assert next(iter(wrong)) in str(caught.value)
