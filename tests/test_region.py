"""Regions, their boxes, crops that contain them, and the contrast of such crops (LBCL)."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from miniature import golden, many, signs_of, train
from scipy import ndimage
from torch import nn

from ssl_med.backbones import UNetEncoder
from ssl_med.errors import UserError
from ssl_med.ops.contrast import nt_xent
from ssl_med.ops.random import Draws, sample_keys
from ssl_med.ops.regions import Boxes, boxes_of, components
from ssl_med.tasks import RegionContrast
from ssl_med.tasks.boxes import BoxProvider, DetectorBoxes, LabelBoxes, SaliencyBoxes
from ssl_med.tasks.saliency import Foreground
from ssl_med.transforms import Flip, GaussianNoise, SingleView
from ssl_med.transforms.region import crop, crop_corner

SPACES = {"2d": (24, 32), "3d": (12, 16, 16)}


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return SPACES[request.param]


def draws(count: int, seed: int = 0) -> Draws:
    return Draws(sample_keys(seed, torch.arange(count)))


def spots(space: tuple[int, ...], count: int = 6, share: float = 0.12) -> torch.Tensor:
    return torch.rand(count, 1, *space, generator=torch.Generator().manual_seed(1)) < share


def snake() -> torch.Tensor:
    """One long winding region, the worst case of any propagation from neighbour to neighbour."""
    mask = torch.zeros(1, 1, 31, 33, dtype=torch.bool)
    mask[:, :, ::2] = True
    for row in range(1, 31, 2):
        mask[:, :, row, -1 if row % 4 == 1 else 0] = True
    return mask


def boxes_by_scipy(mask: np.ndarray) -> set[tuple]:
    names, _ = ndimage.label(mask, np.ones([3] * mask.ndim))
    return {tuple((part.start, part.stop) for part in box) for box in ndimage.find_objects(names)}


@pytest.mark.parametrize("name", ["2d", "3d", "snake", "empty", "full"])
def test_regions_and_boxes_are_scipys(name: str) -> None:
    made = {"snake": snake(), "empty": snake() & False, "full": snake() | True}
    mask = made[name] if name in made else spots(SPACES[name], share=0.1 if name == "2d" else 0.03)
    space = tuple(mask.shape[2:])
    names = components(mask)
    lower, upper, own = boxes_of(names, space)
    for row in range(len(mask)):
        places = own[row].nonzero()[:, 0]
        ours = [tuple(zip(lower[row, p].tolist(), upper[row, p].tolist(), strict=True)) for p in places]
        assert len(ours) == ndimage.label(mask[row, 0].numpy(), np.ones([3] * len(space)))[1]
        assert set(ours) == boxes_by_scipy(mask[row, 0].numpy())


def test_every_usable_box_is_drawn_equally_often() -> None:
    mask = torch.zeros(3000, 1, 12, 24, dtype=torch.int64)
    for start in (2, 9, 16):
        mask[:, :, 4:7, start : start + 3] = 1
    mask[:, :, 1:11, 20:23] = 1  # too long
    boxes = LabelBoxes()({"image": mask.float(), "mask": mask}, (8, 8), draws(3000))
    counts = torch.bincount(boxes.lower[:, 1], minlength=17)[[2, 9, 16]]
    assert int(counts.sum()) == 3000
    assert (counts - 1000).abs().max() < 5 * math.sqrt(3000 * 2 / 9)


def test_what_makes_a_box_usable() -> None:
    mask = torch.zeros(4, 1, 20, 20, dtype=torch.int64)
    mask[0, :, 8:12, 8:12] = 1
    mask[1, :, 1:4, 8:12] = 1  # near the border
    mask[2, :, 8, 8] = 1  # a single voxel
    mask[3, :, 8:12, 8:12] = 2  # another label
    batch = {"image": mask.float(), "mask": mask}
    assert LabelBoxes()(batch, (10, 10), draws(4)).found.tolist() == [True, True, False, True]
    assert LabelBoxes(border=5, least=1)(batch, (10, 10), draws(4)).found.tolist() == [True, False, True, True]
    assert LabelBoxes(labels=[2])(batch, (10, 10), draws(4)).found.tolist() == [False, False, False, True]
    assert not LabelBoxes()(batch, (3, 10), draws(4)).found[0]
    with pytest.raises(UserError, match="need masks"):
        LabelBoxes()({"image": mask.float()}, (10, 10), draws(4))


def lesion_crop(low: int, high: int, length: int, size: int, chance: float) -> tuple[int, int]:
    """systems.md 3.3, stage C, along one axis."""
    width, slack = high - low, size - (high - low)
    if low < length - width:
        shift = int(np.float32(chance) * np.float32(min(low, slack)))
        return low - shift, high + slack - shift
    shift = int(np.float32(chance) * np.float32(min(length - high, slack)))
    return low - slack + shift, high + shift


def test_crops_follow_the_published_law_and_hold_the_box(space: tuple[int, ...]) -> None:
    count, size = 400, tuple(length // 2 for length in space)
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor(space)
    width = 1 + (torch.rand(count, len(space), generator=generator) * (torch.tensor(size) - 1)).long()
    lower = (torch.rand(count, len(space), generator=generator) * (lengths - width + 1)).long()
    boxes = Boxes(lower, lower + width, torch.ones(count, dtype=torch.bool))
    corner = crop_corner(boxes, size, space, draws(count))
    chance = draws(count).uniform(len(space))
    for row in range(count):
        for axis in range(len(space)):
            args = (int(lower[row, axis]), int(boxes.upper[row, axis]), space[axis], size[axis])
            assert int(corner[row, axis]) == lesion_crop(*args, float(chance[row, axis]))[0]
    assert (corner <= lower).all()
    assert (corner + torch.tensor(size) >= boxes.upper).all()
    assert len(torch.unique(corner - lower)) > 3


def test_a_crop_past_the_border_is_air_and_not_valid(space: tuple[int, ...], make_batch: Callable) -> None:
    batch, size = {**make_batch(space)}, tuple(length // 2 for length in space)
    corner = torch.full((4, len(space)), -2)
    corner[1] = torch.tensor(space) - torch.tensor(size) + 3
    corner[2] = 1
    cut = crop(batch, corner, size)
    width = [(5, 5)] * len(space)
    wide = [np.pad(image, width, constant_values=image.min()) for image in batch["image"][:, 0].numpy()]
    inside = np.pad(np.ones(space), 5)
    for row in range(4):
        window = tuple(slice(5 + int(c), 5 + int(c) + s) for c, s in zip(corner[row], size, strict=True))
        np.testing.assert_array_equal(cut["image"][row, 0].numpy(), wide[row][window])
        np.testing.assert_array_equal(cut["valid"][row, 0].numpy(), inside[window] > 0)
        assert (cut["mask"][row, 0].numpy()[inside[window] == 0] == -1).all()
    assert cut["spacing"] is batch["spacing"]


def test_boxes_move_with_the_crop_and_those_out_of_sight_go():
    image, boxes = torch.zeros(1, 1, 20, 20), torch.tensor([[[4.0, 6.0, 9.0, 9.0], [0.0, 0.0, 3.0, 3.0]]])
    batch = {"image": image, "boxes": boxes, "box_labels": torch.tensor([[1, 2]])}
    image[0, 0, 4:9, 6:9] = 1.0
    cut = crop(batch, torch.tensor([[3, 4]]), (5, 8))
    assert cut["boxes"].tolist() == [[[1, 2, 5, 5], [0, 0, 0, 0]]]  # one row of the box lies below the crop
    assert cut["box_labels"].tolist() == [[1, -1]]
    assert cut["image"][0, 0, 1:5, 2:5].all()
    assert cut["image"].sum() == 12


@pytest.mark.parametrize("provider", [SaliencyBoxes(Foreground()), SaliencyBoxes(Foreground(), "peaks")])
def test_boxes_where_an_image_stands_out(provider: BoxProvider, space: tuple[int, ...]) -> None:
    image = torch.zeros(3, 1, *space)
    spot = tuple(slice(4, 8) for _ in space)
    image[(slice(0, 2), 0, *spot)] = 1
    boxes = provider({"image": image}, tuple(8 for _ in space), draws(3))
    assert boxes.found.tolist() == [True, True, False]
    assert (boxes.lower[:2] < 8).all()
    assert (boxes.upper[:2] > 4).all()
    if provider.method == "regions":
        assert (boxes.lower[:2] == 4).all()
        assert (boxes.upper[:2] == 8).all()


class FixedDetector(nn.Module):
    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        assert not self.training
        boxes = torch.tensor([[3.2, 5.0, 8.5, 9.0], [1.0, 1.0, 4.0, 4.0]])
        some = {"boxes": boxes, "scores": torch.tensor([0.9, 0.3])}
        none = {"boxes": boxes[:0], "scores": torch.zeros(0)}
        return [some if image.max() > 0 else none for image in images]


def test_a_detectors_boxes() -> None:
    image = torch.zeros(2, 1, 20, 20)
    image[0] = 1
    provider = DetectorBoxes(FixedDetector(), score=0.8).train()
    boxes = provider({"image": image}, (10, 10), draws(2))
    assert boxes.found.tolist() == [True, False]
    assert boxes.lower[0].tolist() == [5, 3]  # (y, x), rounded outwards
    assert boxes.upper[0].tolist() == [9, 9]


def test_boxes_of_torchvisions_faster_rcnn() -> None:
    """With random weights: what counts is that its boxes arrive as it says, in the order (y, x), rounded outwards."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    torch.manual_seed(0)
    small = {"min_size": 64, "max_size": 64, "box_score_thresh": 0.0, "box_detections_per_img": 5}
    detector = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, **small)
    image = torch.rand(2, 3, 64, 64)
    provider = DetectorBoxes(detector, score=0.0, least=1).train()
    boxes = provider({"image": image}, (64, 64), draws(2))
    assert not any(p.requires_grad for p in detector.parameters())
    assert boxes.found.all()
    with torch.no_grad():
        said = [one["boxes"] for one in detector.eval()(list(image))]
    for row, corners in enumerate(said):
        wanted = torch.cat([corners[:, [1, 0]].floor(), corners[:, [3, 2]].ceil()], 1).tolist()
        assert [*boxes.lower[row].tolist(), *boxes.upper[row].tolist()] in wanted


class FixedVolumeDetector(nn.Module):
    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        boxes = torch.tensor([[2.6, 5.0, 8.2, 7.4, 9.0, 11.5]])  # x, y, z of the first corner, then of the last
        assert all(image.shape == (1, 12, 16, 20) for image in images)
        return [{"boxes": boxes, "scores": torch.tensor([float(image.max())])} for image in images]


def test_a_detectors_boxes_in_volumes() -> None:
    image = torch.zeros(3, 1, 12, 16, 20)
    image[0], image[1] = 1.0, 0.5
    boxes = DetectorBoxes(FixedVolumeDetector(), score=0.8)({"image": image}, (12, 12, 12), draws(3))
    assert boxes.found.tolist() == [True, False, False]
    assert boxes.lower[0].tolist() == [8, 5, 2]  # (z, y, x)
    assert boxes.upper[0].tolist() == [12, 9, 8]


@pytest.fixture
def tiny_region(tiny_vit: Callable) -> Callable:
    def make(spatial_dims: int = 2, **changes: object) -> RegionContrast:
        vit = tiny_vit(spatial_dims)
        torch.manual_seed(0)
        return RegionContrast(vit, **{"boxes": LabelBoxes(), "out_dim": 16, **changes})

    return make


def test_both_crops_hold_the_same_box(tiny_region: Callable, make_batch: Callable, space: tuple[int, ...]) -> None:
    batch = make_batch(space, 8)
    batch["image"] = batch["mask"].float()
    small = tuple(slice(length // 3, length // 3 + 3) for length in space)
    batch["mask"] = torch.zeros_like(batch["mask"])
    batch["mask"][(..., *small)] = 1
    task = tiny_region(len(space), size=[8] * len(space))
    first, second, boxes = task.crops(batch)
    assert boxes.found.all()
    for cut in (first, second):
        assert cut["image"].shape == (8, 1, *[8] * len(space))
        assert ((cut["mask"] == 1).flatten(1).sum(1) == 3 ** len(space)).all()
    assert not torch.equal(first["mask"], second["mask"])
    assert not torch.equal(first["key"], second["key"])


def test_images_without_a_region_take_no_part(tiny_region: Callable, make_batch: Callable) -> None:
    task, batch = tiny_region(views=SingleView([]), size=[16, 16]), make_batch((24, 24), 6)
    batch["mask"][1:3] = 0
    losses = task(batch, 0.0)
    assert float(losses["images_without_region"]) == 2
    first, second, _ = task.crops(batch)
    z1, z2 = (task.project(one)[[0, 3, 4, 5]] for one in (first, second))
    torch.testing.assert_close(losses["loss"], nt_xent(z1, z2, 0.07))
    batch["mask"][:] = 0
    nothing = task(batch, 0.0)
    nothing["loss"].backward()
    assert float(nothing["loss"].detach()) == 0
    assert all(torch.isfinite(p.grad).all() for p in task.parameters() if p.grad is not None)


def test_crop_size(tiny_region: Callable, make_batch: Callable) -> None:
    assert tiny_region().crop_size((36, 24)) == (20, 12)  # half of it, in whole patches of 4
    with pytest.raises(UserError, match="do not fit"):
        tiny_region(size=[64, 64])(make_batch((24, 24)), 0.0)
    with pytest.raises(UserError, match="temperature"):
        tiny_region(temperature=0.0)


@pytest.mark.parametrize(("size", "cnn"), [((24, 24), False), ((12, 12, 12), False), ((24, 24), True)])
def test_a_miniature_training_learns_and_raises_no_alarm(tiny_vit: Callable, size: tuple[int, ...], cnn: bool) -> None:
    torch.manual_seed(0)
    backbone = UNetEncoder(len(size), 1, (4, 8), 1) if cnn else tiny_vit(len(size))
    views = SingleView([Flip(), GaussianNoise()])
    task = RegionContrast(backbone, views, SaliencyBoxes(Foreground()), [8] * len(size), temperature=0.2)
    batches = many(size, 20)
    assert task.verdict(signs_of(task, batches[0])) == ""
    losses = train(task, batches, 1e-2)
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
    signs = signs_of(task, batches[0])
    assert signs["own_other_gap"] > 0
    assert task.verdict(signs) == ""


def test_alarms(tiny_region: Callable, make_batch: Callable) -> None:
    task, batch = tiny_region(size=[16, 16]), make_batch((24, 24), 8)
    no_regions = {**batch, "mask": torch.zeros_like(batch["mask"])}
    assert "% of the images have a region" in task.verdict(signs_of(task, no_regions))
    with torch.no_grad():
        task.backbone.norm.weight.zero_()
    assert "collapsed" in task.verdict(signs_of(task, batch))
    with torch.no_grad():
        task.backbone.norm.weight.fill_(torch.nan)
    assert "not a number" in task.verdict(signs_of(task, batch))


@pytest.mark.parametrize("size", [(16, 16), (8, 8, 8)])
def test_golden_losses(tiny_region: Callable, size: tuple[int, ...]) -> None:
    losses = train(tiny_region(len(size), boxes=SaliencyBoxes(Foreground()), size=[8] * len(size)), many(size, 3), 1e-3)
    assert losses == pytest.approx(golden(f"region_{len(size)}d"), rel=1e-3)
