"""Swin UNETR's triple: turns, cut-out and swap, the losses, the heads, one process against two."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import many, signs_of, train
from torch.nn.functional import cross_entropy, l1_loss
from two_processes import check_two_equal_one

from ssl_med.backbones import UNetEncoder
from ssl_med.errors import UserError
from ssl_med.ops.coverage import covered_boxes, inside_any
from ssl_med.ops.neighbours import neighbour
from ssl_med.ops.quarter_turns import turn_images, turning_plane
from ssl_med.ops.random import Draws, sample_keys
from ssl_med.tasks import SwinTriple


def draws(count: int) -> Draws:
    return Draws(sample_keys(3, torch.arange(count)))


def unet(axes: int) -> UNetEncoder:
    torch.manual_seed(0)
    return UNetEncoder(axes, 1, (8, 16), blocks=1)


def small(axes: int, **changes) -> SwinTriple:
    return SwinTriple(unet(axes), **{"out_dim": 8, "widths": [4, 8], **changes})


@pytest.mark.parametrize(("space", "plane"), [((6, 6), (0, 1)), ((3, 6, 6), (1, 2)), ((6, 3, 6), (0, 2))])
def test_turns_are_those_of_rot90(space, plane) -> None:
    x, turns = torch.randn(8, 2, *space), torch.arange(8) % 4
    turned = turn_images(x, turns, plane)
    for row in range(8):
        assert torch.equal(turned[row], torch.rot90(x[row], int(turns[row]), (1 + plane[0], 1 + plane[1])))


def test_half_turns_need_no_square() -> None:
    x = torch.randn(2, 1, 4, 6)
    assert torch.equal(turn_images(x, torch.tensor([0, 2]), (0, 1))[1], torch.rot90(x[1], 2, (1, 2)))


def test_the_plane_is_that_of_the_slices_if_it_is_square() -> None:
    assert turning_plane((32, 96, 96)) == (1, 2)
    assert turning_plane((96, 32, 96)) == (0, 2)
    assert turning_plane((8, 8, 12)) == (0, 1)
    assert turning_plane((4, 6, 8)) == (1, 2)
    assert turning_plane((16, 24)) == (0, 1)


def test_the_class_is_the_turn_that_was_applied(make_batch) -> None:
    batch = make_batch((8, 12, 12), 16)
    first, second = small(3).copies(batch)
    for copy in (first, second):
        for row in range(16):
            turned = torch.rot90(batch["image"][row], int(copy.turns[row]), (2, 3))
            assert torch.equal(copy.clean[row], turned)
    assert not torch.equal(first.turns, second.turns)


def test_all_turns_are_equally_likely_and_odd_ones_need_a_square() -> None:
    count = 4000
    view = {"image": torch.zeros(count, 1, 4, 4), "spacing": torch.ones(count, 2)}
    view["spacing"][: count // 2, 0] = 3.0  # not square in mm
    turns = small(2).draw_turns(view, draws(count))
    within = 5 * math.sqrt(0.25 / (count // 2))
    assert set(turns[: count // 2].tolist()) == {0, 2}
    assert abs((turns[: count // 2] == 2).float().mean() - 0.5) < within
    share = turns[count // 2 :].bincount(minlength=4) / (count // 2)
    torch.testing.assert_close(share, torch.full((4,), 0.25), atol=within, rtol=0.0)


def loop_share(space: tuple[int, ...], generator: np.random.Generator) -> float:
    """The published loop: boxes until the sum of their volumes reaches the target; share of voxels inside any."""
    covered, total = np.zeros(space, dtype=bool), 0.0
    target = generator.uniform(0, 0.3) * covered.size
    while total < target:
        box = []
        for length in space:
            low, high = max(1, int(0.05 * length)), max(1, int(0.25 * length))
            start = generator.integers(0, length - low + 1)
            box.append(slice(start, min(start + generator.integers(low, high + 1), length)))
        covered[tuple(box)] = True
        total += math.prod(b.stop - b.start for b in box)
    return covered.mean()


@pytest.mark.parametrize("space", [(48, 40), (20, 24, 20)])
def test_cut_out_covers_as_much_as_the_published_loop(space) -> None:
    generator, count = np.random.default_rng(0), 600
    theirs = np.array([loop_share(space, generator) for _ in range(count)])
    ours = covered_boxes(draws(count), space, 0.3, (0.05, 0.25)).flatten(1).double().mean(1).numpy()
    error = math.sqrt((theirs.var() + ours.var()) / count)
    assert abs(theirs.mean() - ours.mean()) < 4 * error
    for share in (0.1, 0.5, 0.9):
        assert np.quantile(ours, share) == pytest.approx(np.quantile(theirs, share), abs=0.02)
    assert ours.max() > 0.22  # the boxes that are drawn suffice


def test_a_voxel_is_inside_if_a_box_covers_it() -> None:
    generator = torch.Generator().manual_seed(0)
    for space in ((7, 9), (5, 6, 7)):
        corners = torch.randint(0, 4, (3, 4, len(space)), generator=generator)
        sides = torch.randint(0, 4, (3, 4, len(space)), generator=generator)
        expected = torch.zeros(3, 1, *space, dtype=torch.bool)
        for row, box in np.ndindex(3, 4):
            ends = zip(corners[row, box].tolist(), sides[row, box].tolist(), strict=True)
            expected[(row, 0, *(slice(a, a + n) for a, n in ends))] = True
        assert torch.equal(inside_any(space, corners, sides), expected)


@pytest.mark.parametrize("space", [(16, 16), (8, 12, 12)])
def test_swapped_voxels_come_from_the_neighbour_and_the_rest_is_clean_or_noise(space, make_batch) -> None:
    batch = make_batch(space, 6)
    batch["image"] = batch["image"].clamp(0.01, 0.99) + 10 * torch.arange(6.0).reshape(-1, 1, *[1] * len(space))
    for copy, step in zip(small(len(space), unit=(-5.0, -4.0)).copies(batch), (-1, 1), strict=True):
        source = (copy.corrupted / 10).floor().long()  # the number of the image, -1 for noise
        rows = torch.arange(6).reshape(-1, 1, *[1] * len(space)).expand_as(source)
        other = copy.swapped
        assert copy.noise.any()
        assert other.any()
        assert torch.equal(source[other], (rows[other] - step) % 6)
        assert (source[copy.noise & ~other] == -1).all()
        kept = ~(copy.noise | other)
        assert torch.equal(copy.corrupted[kept], copy.clean[kept])
        assert torch.equal(copy.corrupted[other], copy.clean.roll(step, 0)[other])


def test_noise_fills_its_range() -> None:
    image = torch.rand(3, 1, 16, 16)
    noise = small(2, unit=(-2.0, 6.0)).draw_noise(image, draws(3), torch.ones(3, 1, 16, 16, dtype=torch.bool))
    torch.testing.assert_close(noise.flatten(1).amin(1), torch.full((3,), -2.0))
    torch.testing.assert_close(noise.flatten(1).amax(1), torch.full((3,), 6.0))
    assert abs(noise.mean() - 2.0) < 0.5


def test_the_next_row_follows_and_the_last_is_followed_by_the_first() -> None:
    x = torch.arange(5)
    assert neighbour(x).tolist() == [1, 2, 3, 4, 0]
    assert neighbour(x, -1).tolist() == [4, 0, 1, 2, 3]
    assert neighbour(x[:1]).tolist() == [0]


def nt_xent_of(z: np.ndarray, pairs: int, temperature: float) -> float:
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    losses = []
    for i in range(2 * pairs):
        logits = np.array([z[i] @ z[j] / temperature for j in range(2 * pairs) if j != i])
        losses.append(np.log(np.exp(logits).sum()) - z[i] @ z[(i + pairs) % (2 * pairs)] / temperature)
    return float(np.mean(losses))


@pytest.mark.usefixtures("double")
def test_the_losses_are_their_formulas(make_batch) -> None:
    task, batch = small(2, weights=(1.0, 2.0, 3.0)), make_batch((16, 16), 6)
    losses = task(batch, 0.0)
    copies = task.copies(task.views(batch)[0])
    with torch.no_grad():
        features = [task.backbone(copy.corrupted) for copy in copies]
        pooled = torch.cat([f.pooled for f in features])
        decoded = [task.decoder(f, c.corrupted) for f, c in zip(features, copies, strict=True)]
        restored = torch.cat([task.restore(d) for d in decoded])
        rotation = cross_entropy(task.rotation(pooled), torch.cat([c.turns for c in copies]))
        contrast = nt_xent_of(task.contrast(pooled).double().numpy(), 6, 0.5)
        restoration = l1_loss(restored, torch.cat([c.clean for c in copies]))
    assert losses["rotation"].item() == pytest.approx(rotation.item(), rel=1e-9)
    assert losses["contrast"].item() == pytest.approx(contrast, rel=1e-9)
    assert losses["restoration"].item() == pytest.approx(restoration.item(), rel=1e-9)
    assert losses["loss"].item() == pytest.approx(rotation.item() + 2 * contrast + 3 * restoration.item(), rel=1e-9)
    copied = l1_loss(torch.cat([c.corrupted for c in copies]), torch.cat([c.clean for c in copies]))
    assert losses["identity_l1"].item() == pytest.approx(copied.item(), rel=1e-9)


def test_the_heads_read_every_place_of_the_bottleneck(make_batch) -> None:
    """Not token 0 and token 1, as the published code does."""
    task, image = small(2), make_batch((16, 16))["image"]
    for head in (task.rotation, task.contrast):
        features = task.backbone(image)
        bottleneck = torch.autograd.grad(head(features.pooled).square().sum(), features.maps[-1])[0]
        assert (bottleneck.abs().amax(1) > 0).all()


def test_saliency_that_was_removed_is_counted(make_batch) -> None:
    task, batch = small(2), make_batch((16, 16))
    saliency = torch.zeros(4, 1, 16, 16)
    saliency[:, :, 3, 5] = 1.0
    losses = task({**batch, "saliency": saliency}, 0.0)
    removed = 0.0
    for copy in task.copies(task.views(batch)[0]):
        for row in range(4):
            place = torch.rot90(saliency[row, 0], int(copy.turns[row])).bool()
            removed += float((copy.noise | copy.swapped)[row, 0][place])
    assert losses["replaced_saliency"].item() == pytest.approx(removed / 8)
    assert "replaced_saliency" not in task(batch, 0.0)


def test_padding_does_not_count_in_the_restoration(make_batch) -> None:
    task, batch = small(2), make_batch((16, 16))
    batch["valid"] = torch.ones(4, 1, 16, 16, dtype=torch.bool)
    batch["valid"][:, :, :4] = False
    copies = task.copies(batch)
    wrong = torch.cat([torch.where(c.counted, c.clean, torch.full_like(c.clean, 99.0)) for c in copies])
    assert task.errors(copies, wrong)["restoration"] == 0
    assert int(copies[0].counted.sum()) == 4 * 12 * 16


def make_task() -> tuple:
    generator = torch.Generator().manual_seed(1)
    valid = torch.rand(6, 1, 8, 8, generator=generator) > 0.2
    image = torch.randn(6, 1, 8, 8, generator=generator)
    saliency = torch.rand(6, 1, 8, 8, generator=generator)
    return small(2, unit=(0.0, 1.0)), {
        "image": image,
        "valid": valid,
        "saliency": saliency,
        "key": sample_keys(0, torch.arange(6)),
    }


def test_two_processes_equal_one(tmp_path: Path) -> None:
    check_two_equal_one(make_task, tmp_path)


def test_a_miniature_training_restores_and_tells_images_apart() -> None:
    task, batches = small(2, widths=[8, 16]), many((16, 16), 60)
    losses = train(task, batches, lr=5e-3)
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])
    task.after_step(1.0)
    signs = signs_of(task, batches[-1])
    assert signs["restoration_l1"] < 0.8 * signs["constant_l1"]
    assert signs["rotation_chance"] == pytest.approx(math.log(4), rel=1e-5)
    assert task.verdict(signs) == ""


def test_turns_are_found_where_images_have_an_up() -> None:
    task, batches = small(2, weights=(1.0, 0.0, 0.0)), many((16, 16), 60)
    for batch in batches:
        batch["image"] = 0.1 * batch["image"] + (torch.arange(16.0) / 4).square()[:, None]
    train(task, batches, lr=5e-3)
    signs = signs_of(task, batches[-1])
    assert signs["rotation_cross_entropy"] < 0.7 * signs["rotation_chance"]


def test_what_is_wrong_is_told() -> None:
    task, batch = small(2), many((16, 16), 1)[0]
    with torch.no_grad():
        task.contrast.weight.mul_(1e-4)
        task.contrast.bias.fill_(1.0)
    signs = signs_of(task, batch)
    assert "nearly the same for all images" in task.verdict(signs)
    alive = {**signs, "embedding_spread": 1.0, "restoration_l1": 1.0, "constant_l1": 0.5}
    assert task.verdict(alive) == ""  # at the start nothing can be said
    task.after_step(0.5)
    assert "no better than a constant grey" in task.verdict(alive)
    assert "the turns are not seen" in task.verdict({**alive, "rotation_cross_entropy": 3.0})


def test_a_batch_of_one_image_is_refused_in_training_only(make_batch) -> None:
    task, batch = small(2), make_batch((16, 16), 1)
    with pytest.raises(UserError, match=r"SwinTriple mixes each image .* enlarge data.batch_size"):
        task(batch, 0.0)
    assert torch.isfinite(task.eval()(batch, 0.0)["loss"])  # the last batch of a validation may be one image


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"cover": 1.5}, {"side": (0.5, 0.1)}, {"unit": (1.0, 0.0)}):
        with pytest.raises(UserError, match="SwinTriple"):
            small(2, **wrong)
