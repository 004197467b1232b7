"""Volume Fusion: the blend, the law of its boxes, the loss against MONAI and NumPy, one process against two."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import many, signs_of, train
from monai.losses import DiceCELoss
from two_processes import check_two_equal_one

from ssl_med.backbones import UNetEncoder
from ssl_med.errors import UserError
from ssl_med.ops.fusion import (
    _painted_by_masks,
    _painted_by_slices,
    draw_fusion_boxes,
    fuse,
    fusion_losses,
    paint_classes,
)
from ssl_med.ops.random import Draws, sample_keys
from ssl_med.tasks import VolumeFusion


def draws(count: int) -> Draws:
    return Draws(sample_keys(3, torch.arange(count)))


def unet(axes: int) -> UNetEncoder:
    torch.manual_seed(0)
    return UNetEncoder(axes, 1, (8, 16), blocks=1)


@pytest.mark.parametrize("space", [(16, 24), (8, 8, 12)])
def test_the_blend_is_what_its_classes_say(space, make_batch) -> None:
    task, batch = VolumeFusion(unet(len(space)), widths=[4, 8]), make_batch(space)
    fused = task.fuse(batch)
    share = fused.classes.numpy() / 4
    expected = share * fused.foreground.numpy() + (1 - share) * fused.background.numpy()
    np.testing.assert_allclose(fused.image.numpy(), expected, atol=1e-6)
    assert set(fused.classes.unique().tolist()) == {0, 1, 2, 3, 4}
    assert torch.equal(fused.image[(fused.classes == 4)], fused.foreground[(fused.classes == 4)])
    assert torch.equal(fused.image[(fused.classes == 0)], fused.background[(fused.classes == 0)])


def test_the_foreground_is_the_next_image_after_its_views(make_batch) -> None:
    fused = VolumeFusion(unet(2), widths=[4, 8]).fuse(make_batch((16, 24)))
    assert torch.equal(fused.foreground, fused.background.roll(-1, 0))


def test_boxes_follow_their_law() -> None:
    count, space = 4000, (64, 128, 128)
    corners, sides, classes = draw_fusion_boxes(draws(count), space, 4, (10, 40), (0.0625, 0.625))
    assert corners.shape == (count, 40, 3)
    there = (sides > 0).all(-1)
    number = there.sum(1).double()
    assert number.min() == 10
    assert number.max() == 40
    assert abs(number.mean() - 25) < 5 * math.sqrt((31**2 - 1) / 12 / count)
    for axis, (low, high) in enumerate([(4, 40), (8, 80), (8, 80)]):
        side, corner = sides[..., axis][there], corners[..., axis][there]
        assert (side.min(), side.max()) == (low, high)
        spread = math.sqrt(((high - low + 1) ** 2 - 1) / 12 / len(side))
        assert abs(side.double().mean() - (low + high) / 2) < 5 * spread
        assert (corner >= 0).all()
        assert (corner + side <= space[axis]).all()
        place = (corner / (space[axis] - side)).double()  # 0 to 1, uniform
        assert abs(place.mean() - 0.5) < 5 * math.sqrt(1 / 12 / len(side)) * 1.1
    frequency = classes[there].bincount(minlength=5) / there.sum()
    torch.testing.assert_close(
        frequency, torch.full((5,), 0.2), atol=5 * math.sqrt(0.16 / there.sum().item()), rtol=0.0
    )


@pytest.mark.parametrize("space", [(12, 20), (8, 8, 12)])
def test_the_last_box_wins_and_devices_agree(space) -> None:
    corners, sides, classes = draw_fusion_boxes(draws(5), space, 4, (3, 9), (0.1, 0.7))
    expected = np.zeros((5, *space), dtype=np.int64)
    for row in range(5):
        for box in range(9):
            place = np.indices(space)
            corner, side = corners[row, box].numpy(), sides[row, box].numpy()
            shape = (-1, *[1] * len(space))
            inside = (place >= corner.reshape(shape)) & (place < (corner + side).reshape(shape))
            expected[row][inside.all(0)] = classes[row, box]
    assert np.array_equal(_painted_by_slices(space, corners, sides, classes)[:, 0].numpy(), expected)
    assert np.array_equal(_painted_by_masks(space, corners, sides, classes)[:, 0].numpy(), expected)


def test_no_box_is_background_alone() -> None:
    nothing = torch.zeros(2, 3, 2, dtype=torch.int64)
    classes = paint_classes((4, 4), nothing, nothing, torch.full((2, 3), 4))
    assert torch.equal(classes, torch.zeros(2, 1, 4, 4, dtype=torch.int64))
    background = torch.randn(2, 1, 4, 4)
    assert torch.equal(fuse(torch.ones(2, 1, 4, 4), background, classes, 4), background)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("space", [(6, 10), (4, 6, 5)])
def test_the_loss_is_monais(space) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, *space, generator=generator)
    classes = torch.randint(0, 5, (3, 1, *space), generator=generator)
    parts = fusion_losses(logits, classes, torch.ones_like(classes, dtype=torch.bool))
    theirs = DiceCELoss(softmax=True, to_onehot_y=True, smooth_nr=1e-5, smooth_dr=1e-5)(logits, classes)
    torch.testing.assert_close(parts["dice"] + parts["cross_entropy"], theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.usefixtures("double")
def test_the_loss_leaves_padding_out() -> None:
    generator = np.random.default_rng(0)
    logits, classes = generator.normal(size=(2, 3, 5, 4)), generator.integers(0, 3, (2, 5, 4))
    counted = generator.random((2, 5, 4)) < 0.6
    guess = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    dice, entropy = [], []
    for image in range(2):
        where = counted[image]
        for k in range(3):
            p, g = guess[image, k][where], (classes[image] == k)[where]
            dice.append(1 - (2 * (p * g).sum() + 1e-5) / (p.sum() + g.sum() + 1e-5))
        entropy += [-np.log(guess[image, classes[image][v], v[0], v[1]]) for v in map(tuple, np.argwhere(where))]
    shares = np.bincount(classes[counted]) / counted.sum()
    parts = fusion_losses(torch.tensor(logits), torch.tensor(classes)[:, None], torch.tensor(counted)[:, None])
    assert parts["dice"].item() == pytest.approx(np.mean(dice), abs=1e-9)
    assert parts["cross_entropy"].item() == pytest.approx(np.mean(entropy), abs=1e-9)
    assert parts["chance"].item() == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-9)
    found = (guess.argmax(1) == classes)[counted].mean()
    assert parts["accuracy"].item() == pytest.approx(found, abs=1e-6)


def test_padding_of_either_image_does_not_count(make_batch) -> None:
    task, batch = VolumeFusion(unet(2), widths=[4, 8]), make_batch((16, 16))
    batch["valid"] = torch.ones(4, 1, 16, 16, dtype=torch.bool)
    batch["valid"][1, :, :8] = False
    counted = task.fuse(batch).counted
    assert counted[2].all()
    assert counted[3].all()
    assert counted[0].sum() == counted[1].sum() == 128


def make_task() -> tuple:
    generator = torch.Generator().manual_seed(1)
    valid = torch.rand(6, 1, 8, 8, generator=generator) > 0.2
    image = torch.randn(6, 1, 8, 8, generator=generator)
    return VolumeFusion(unet(2), widths=[4, 8]), {
        "image": image,
        "valid": valid,
        "key": sample_keys(0, torch.arange(6)),
    }


def test_two_processes_equal_one(tmp_path: Path) -> None:
    check_two_equal_one(make_task, tmp_path)


def test_a_miniature_training_sees_the_classes() -> None:
    task, batches = VolumeFusion(unet(2), widths=[8, 16], boxes=(2, 5)), many((16, 16), 120)
    losses = train(task, batches, lr=5e-3)
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    signs = signs_of(task, batches[-1])
    assert signs["fusion_cross_entropy"] < 0.97 * signs["fusion_chance"]
    assert task.verdict(signs) == ""


def test_a_network_that_sees_nothing_is_told() -> None:
    task, batch = VolumeFusion(unet(2), widths=[4, 8]), many((16, 16), 1)[0]
    with torch.no_grad():
        task.classify.weight.zero_()
        task.classify.bias.zero_()
    assert task.verdict(signs_of(task, batch)) == ""  # at the start nothing can be said
    task.after_step(0.5)
    signs = signs_of(task, batch)
    assert signs["fusion_cross_entropy"] == pytest.approx(math.log(5), abs=1e-5)
    assert "not seen" in task.verdict(signs)


def test_a_batch_of_one_image_is_refused_in_training_only(make_batch) -> None:
    task, batch = VolumeFusion(unet(2), widths=[4, 8]), make_batch((16, 16), 1)
    with pytest.raises(UserError, match=r"VolumeFusion mixes each image .* enlarge data.batch_size"):
        task(batch, 0.0)
    assert torch.isfinite(task.eval()(batch, 0.0)["loss"])  # the last batch of a validation may be one image


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"levels": 0}, {"boxes": (5, 2)}, {"side": (0.1, 1.5)}):
        with pytest.raises(UserError, match="VolumeFusion"):
            VolumeFusion(unet(2), **wrong)
