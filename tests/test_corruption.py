"""The corruptions of Models Genesis against the published law as a plain loop (references/genesis.py)."""

import numpy as np
import pytest
import torch
from references import genesis
from scipy.stats import chisquare, ks_2samp

from ssl_med.errors import UserError
from ssl_med.ops import curves, painting, shuffle, streams
from ssl_med.ops.curves import apply_tables_, bezier_tables
from ssl_med.ops.painting import inside_boxes, paint_
from ssl_med.ops.random import Draws, sample_keys
from ssl_med.ops.shuffle import local_shuffle_, shuffle_sources
from ssl_med.ops.unit import from_unit, to_unit, value_range
from ssl_med.transforms import Compose, Corruptions, IntensityCurve, LocalShuffle, Painting, RepeatedFlip

CUBE = (32, 64, 64)
UNIT = (0.0, 1.0)


def keys(count: int, seed: int = 0) -> torch.Tensor:
    return sample_keys(seed, torch.arange(count))


def within(found: float, expected: float, draws: int) -> bool:
    """Four standard errors of a binomial share."""
    return abs(found - expected) < 4 * (expected * (1 - expected) / draws) ** 0.5


def sources(space: tuple[int, ...], seed: int = 0, **settings: object) -> np.ndarray:
    """Number of the voxel that every voxel of a shuffled volume came from."""
    numbers = torch.arange(float(np.prod(space))).reshape(1, 1, *space)
    moved = LocalShuffle(probability=1.0, **settings)({"image": numbers, "key": keys(1, seed)})["image"]
    return moved.long().numpy().reshape(space)


def displacements(source: np.ndarray) -> list[np.ndarray]:
    """How far every voxel moved along each axis."""
    here = np.indices(source.shape)
    return [(a - b).ravel() for a, b in zip(np.unravel_index(source, source.shape), here, strict=True)]


# ---- gates


def test_gates_open_as_often_as_published() -> None:
    image, draws = torch.zeros(2000, 1, 20, 20), Draws(keys(2000))
    shuffled, bent, painted = (t.draw({"image": image}, draws) for t in (LocalShuffle(), IntensityCurve(), Painting()))
    inward = painted["chosen"] & painted["inward"]
    outward = painted["chosen"] & ~painted["inward"]
    expected = {0.5: shuffled["chosen"], 0.9: bent["chosen"], 0.9 * 0.2: inward, 0.9 * 0.8: outward}
    for share, found in expected.items():
        assert within(found.float().mean().item(), share, 2000), share
    assert within(bent["falling"].float().mean().item(), 0.5, 2000)


@pytest.mark.parametrize("faithful", [False, True])
def test_flips_follow_the_loop(faithful: bool) -> None:
    flipped = RepeatedFlip(faithful=faithful).sample(torch.zeros(4000, 1, 4, 4, 4), Draws(keys(4000)))["flipped"]
    cube, generator = np.arange(8.0).reshape(1, 2, 2, 2), np.random.default_rng(0)
    loop = np.zeros((4000, 3), bool)
    for row in loop:
        row[:] = np.unravel_index(int(genesis.flip(cube, generator, faithful)[0, 0, 0, 0]), (2, 2, 2))
    for axis in range(3):
        share = loop[:, axis].mean()
        assert abs(flipped[:, axis].float().mean().item() - share) < 6 * (max(share, 0.01) / 4000) ** 0.5
    assert bool(flipped[:, 0].any()) is not faithful  # depth
    assert flipped[:, 1:].any(0).all()


def test_flips_mirror_what_they_say() -> None:
    batch = {"image": torch.rand(40, 2, 3, 4, 5), "key": keys(40), "mask": torch.randint(0, 9, (40, 1, 3, 4, 5))}
    flip = RepeatedFlip()
    changed = flip(batch)
    flipped = flip.plan(batch, Draws(batch["key"]).child(0))["flipped"]
    for row, axes in enumerate(flipped.tolist()):
        there = [1 + axis for axis, chosen in enumerate(axes) if chosen]
        assert torch.equal(changed["image"][row], batch["image"][row].flip(there))
        assert torch.equal(changed["mask"][row], batch["mask"][row].flip(there))
    assert 0 < flipped.any(1).sum() < 40


# ---- local shuffling


@pytest.mark.parametrize("space", [CUBE, (40, 40, 40)], ids=str)
def test_shuffling_has_the_distribution_of_ten_thousand_windows(space: tuple[int, ...]) -> None:
    """Share of moved voxels, and how far they go along each axis, beside the loop over windows."""
    numbers, generator = np.arange(float(np.prod(space))).reshape(1, *space), np.random.default_rng(0)
    loop = [genesis.local_shuffle(numbers, generator)[0].astype(int) for _ in range(2)]
    ours = [sources(space, seed, windows=10_000) for seed in range(2)]
    still = numbers[0].astype(int)
    moved, expected = (np.array([(source != still).mean() for source in group]) for group in (ours, loop))
    assert abs(moved.mean() - expected.mean()) < 0.01  # windows overlap in other ways in each volume: sd 0.001
    for axis in range(3):
        a, b = (np.concatenate([displacements(source)[axis] for source in group]) for group in (ours, loop))
        assert np.abs(a).max() == np.abs(b).max() == space[axis] // 10 - 1
        pick = np.random.default_rng(axis).choice(len(a), 4000, replace=False)  # neighbours move together
        assert ks_2samp(a[pick], b[pick]).pvalue > 0.001


def test_shuffling_moves_the_published_share_of_voxels() -> None:
    moved = (sources(CUBE) != np.arange(np.prod(CUBE)).reshape(CUBE)).mean()
    assert 0.77 < moved < 0.80


def test_coverage_is_the_same_at_any_size() -> None:
    """The number of windows follows the size of crop and window: 10,000 at the published size."""

    def windows(space: tuple[int, ...], **settings: object) -> int:
        return int(LocalShuffle(**settings).plan({"image": torch.zeros(1, 1, *space)}, Draws(keys(1)))["windows"])

    assert windows(CUBE) == 10_000
    assert windows((96, 96, 96)) == round(10_000 * 24.5 / (64 * 64 * 32) * 96**3 / 125)
    assert windows((96, 96, 96), windows=10_000) == 10_000
    for space in ((224, 224), (96, 96, 96), (48, 20)):
        assert 0.5 < (sources(space) != np.arange(np.prod(space)).reshape(space)).mean() < 0.87


def test_windows_keep_their_voxels() -> None:
    """One window alone permutes its voxels; all else stays. Two that do not overlap keep both multisets."""
    for seed in range(20):
        source = sources((20, 30, 40), seed, windows=1)
        moved = source != np.arange(source.size).reshape(source.shape)
        assert np.array_equal(np.sort(source[moved]), np.flatnonzero(moved))
        for axis, found in enumerate(np.nonzero(moved)):
            assert found.size == 0 or np.ptp(found) < source.shape[axis] // 10


def test_every_order_of_a_window_is_as_likely() -> None:
    space, limits = (1, 1, 3), torch.tensor([[1, 1, 3]]).repeat(3000, 1)
    source = shuffle_sources(space, keys(3000), limits, torch.ones(3000, dtype=torch.int64), 1, 3)
    whole = source[source[:, 0] == 2]  # first reads last: a window of all three voxels
    orders, counts = source.unique(dim=0, return_counts=True)
    assert len(orders) == 6
    assert within(len(whole) / 3000, 2 / 18, 3000)
    # three voxels: 1/3 of the windows, 1/6 each order; two: 1/3, half of them on each side, half swapped; one: none
    expected = {(0, 1, 2): 1 / 18 + 1 / 6 + 1 / 3, (1, 0, 2): 1 / 18 + 1 / 12, (0, 2, 1): 1 / 18 + 1 / 12}
    shares = [expected.get(tuple(order), 1 / 18) * 3000 for order in orders.tolist()]
    assert chisquare(counts.numpy(), shares).pvalue > 0.001


def test_all_channels_move_together_and_only_the_chosen_images() -> None:
    plain = torch.arange(30.0 * 40).reshape(1, 1, 30, 40).repeat(20, 1, 1, 1)
    batch = {"image": torch.cat([plain, 2 * plain], 1), "key": keys(20)}
    changed = LocalShuffle()(batch)["image"]
    assert torch.equal(changed[:, 1], 2 * changed[:, 0])
    still = (changed == batch["image"]).flatten(1).all(1)
    assert 0 < still.sum() < 20


@pytest.mark.parametrize("size", [8, 9, 10, 15, 19, 20, 30])
def test_faithful_sides_are_those_of_the_original_below_twenty_voxels(size: int) -> None:
    image = {"image": torch.zeros(1, 1, size, size, size)}
    for faithful, limit in ((True, max(size // 10, 1)), (False, max(size // 10, 2))):
        transform = LocalShuffle(1.0, windows=300, faithful=faithful)
        assert transform.plan(image, Draws(keys(1)))["limits"].tolist() == [[limit] * 3]
    moved = {
        faithful: (
            sources((size, size, size), windows=2000, faithful=faithful) != np.arange(size**3).reshape([size] * 3)
        )
        for faithful in (True, False)
    }
    assert bool(moved[True].any()) is (size >= 20)  # windows of one voxel leave all where it is
    assert moved[False].any()


def test_windows_in_millimetres_follow_the_spacing() -> None:
    spacing = torch.tensor([[5.0, 1.0, 0.5], [1.0, 1.0, 1.0]])
    batch = {"image": torch.zeros(2, 1, 40, 40, 40), "spacing": spacing}
    found = LocalShuffle(largest=6.0, unit="mm").plan(batch, Draws(keys(2)))["limits"]
    assert found.tolist() == [[1, 6, 12], [6, 6, 6]]
    assert LocalShuffle(largest=[3, 99]).plan({"image": torch.zeros(1, 1, 50, 40)}, Draws(keys(1)))[
        "limits"
    ].tolist() == [[1, 3, 40]]
    with pytest.raises(UserError, match="does not fit images of 3 axes"):
        LocalShuffle(largest=[3, 4])({"image": torch.zeros(1, 1, 8, 8, 8)})
    with pytest.raises(UserError, match="mm needs largest"):
        LocalShuffle(unit="mm")


# ---- intensity curves


@pytest.mark.parametrize("falling", [False, True])
def test_curves_are_those_of_a_hundred_thousand_points(falling: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    points, values = torch.rand(50, 2, 2, generator=generator), torch.rand(50, 1, 40, 40, generator=generator)
    tables = bezier_tables(points, torch.full((50,), falling))
    every = torch.ones(50, dtype=torch.bool)
    found = apply_tables_(values.clone(), tables, torch.zeros(50, 1), torch.ones(50, 1), every)
    for row in range(50):
        exact = np.interp(values[row, 0], *genesis.bezier(points[row].numpy(), falling))
        assert np.abs(found[row, 0].numpy() - exact).mean() < 2e-4
    slopes = tables[..., 0].diff(dim=1) * (-1 if falling else 1)
    assert slopes.min() >= -1e-6
    assert tables[..., 0].min() >= 0
    assert tables[..., 0].max() <= 1 + 1e-6
    ends = [1.0, 0.0] if falling else [0.0, 1.0]
    assert torch.allclose(tables[:, [0, -1], 0], torch.tensor(ends), atol=1e-6)


def test_curves_on_z_scores_clamp_hardly_a_voxel() -> None:
    """A curve on [0, 1] that is given z-scores clamps two thirds of them: the range is found first."""
    image = torch.randn(4, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    for unit, most in (("auto", 0.02), (UNIT, 1.0)):
        changed = IntensityCurve(probability=1.0, unit=unit)({"image": image, "key": keys(4)})["image"]
        ends = (changed == changed.amin((2, 3, 4), keepdim=True)) | (changed == changed.amax((2, 3, 4), keepdim=True))
        assert ends.float().mean() < most
        if unit == UNIT:
            assert ends.float().mean() > 0.6


def test_range_is_found_per_channel_and_goes_back() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, 2, 40, 40, generator=generator) * 50 + 300
    image[:, 1] = torch.rand(3, 40, 40, generator=generator)
    low, span = value_range(image, "auto")
    assert torch.equal(low[:, 1], torch.zeros(3))
    assert torch.equal(span[:, 1], torch.ones(3))
    exact = np.percentile(image[:, 0].flatten(1), [0.5, 99.5], axis=1)
    assert np.allclose(low[:, 0], exact[0], atol=15)
    assert np.allclose(low[:, 0] + span[:, 0], exact[1], atol=15)
    unit = to_unit(image, low, span)
    inside = (unit > 0) & (unit < 1)
    assert inside.float().mean() > 0.98
    assert torch.allclose(from_unit(unit, low, span)[inside], image[inside], atol=1e-3)
    assert value_range(image, "percentiles")[1][:, 1].max() < 1


def test_padding_does_not_move_the_range() -> None:
    image = torch.rand(2, 1, 20, 20) * 2 + 5
    valid = torch.zeros(2, 1, 20, 20, dtype=torch.bool)
    valid[..., :12] = True
    padded = torch.where(valid, image, -1000.0)
    low, span = value_range(padded, "auto", valid)
    assert low.min() >= 5
    assert (low + span).max() <= 7
    assert value_range(padded, "auto", valid & False)[1].tolist() == [[1.0], [1.0]]
    assert value_range(torch.full((1, 1, 4, 4), 7.0), "auto")[1].item() == 1.0


@pytest.mark.parametrize("unit", [(1.0, 1.0), (2.0, 1.0)])
def test_other_ranges_are_refused(unit: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="must be auto, percentiles or"):
        IntensityCurve(unit=unit)


# ---- painting


def painted(inward: float, count: int, space: tuple[int, ...] = CUBE) -> torch.Tensor:
    """Which voxels became noise."""
    image = torch.full((count, 1, *space), 5.0)
    return Painting(probability=1.0, inward=inward, unit=UNIT)({"image": image, "key": keys(count)})["image"] != 5


@pytest.mark.parametrize(("inward", "expected"), [(1.0, 0.05), (0.0, 0.69)])
def test_painting_replaces_as_much_as_the_loop(inward: float, expected: float) -> None:
    ours = painted(inward, 120).float().mean((1, 2, 3, 4)).numpy()
    cube, generator = np.full((1, *CUBE), 5.0), np.random.default_rng(0)
    paint = genesis.in_painting if inward else genesis.out_painting
    loop = np.array([(paint(cube, generator) != 5).mean() for _ in range(120)])
    assert abs(ours.mean() - expected) < 0.015
    assert abs(ours.mean() - loop.mean()) < 4 * (ours.var() / 120 + loop.var() / 120) ** 0.5
    assert ks_2samp(ours, loop).pvalue > 0.001


def test_boxes_have_the_published_sides_and_keep_off_the_border() -> None:
    draws = Painting().sample(torch.zeros(1).expand(4000, 1, *CUBE), Draws(keys(4000)))
    for inward, ends in ((True, [(5, 10), (10, 21), (10, 21)]), (False, [(14, 19), (28, 37), (28, 37)])):
        rows = draws["inward"] == inward
        sides, corners = draws["sides"][rows], draws["corners"][rows]
        boxes = sides[..., 0] > 0
        assert within((boxes.sum(1) == 5).float().mean().item(), 0.95 ** (5 if inward else 4), int(rows.sum()))
        assert bool((~boxes).all(1).any()) is inward  # in-painting may draw none, out-painting keeps one
        for axis, (least, most) in enumerate(ends):
            side, corner = sides[..., axis][boxes], corners[..., axis][boxes]
            counts = torch.bincount(side - least)
            assert len(counts) == most - least + 1
            assert chisquare(counts.numpy()).pvalue > 0.001
            assert corner.min() == 3
            assert (corner + side).max() == CUBE[axis] - 3


def test_noise_is_uniform_white_and_shared_by_channels() -> None:
    image = torch.full((4, 2, 48, 48, 48), 0.5)
    batch = {"image": image, "key": keys(4)}
    changed = Painting(probability=1.0, inward=0.0, unit=UNIT)(batch)["image"]
    assert torch.equal(changed[:, 0], changed[:, 1])
    noise = streams.noise(keys(4), 48**3).double().numpy()
    place = changed[:, 0].flatten(1) != 0.5
    assert place.float().mean() > 0.4
    for row in noise:
        assert ks_2samp(row, np.random.default_rng(0).random(48**3)).pvalue > 0.001
        assert chisquare(np.histogram(row, 64, (0, 1))[0]).pvalue > 0.001
        assert all(abs(np.corrcoef(row[:-lag], row[lag:])[0, 1]) < 0.013 for lag in (1, 2, 48, 48 * 48))
    assert np.abs(np.corrcoef(noise) - np.eye(4)).max() < 0.013


def test_noise_takes_the_range_of_the_image() -> None:
    image = torch.randn(8, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 100 - 500
    changed = Painting(probability=1.0, inward=0.0)({"image": image, "key": keys(8)})["image"]
    noise = changed[changed != image]
    assert -500 - 400 < noise.min() < -500 - 200
    assert -500 + 200 < noise.max() < -500 + 400


def test_small_axes_still_get_boxes() -> None:
    for space in ((4, 40, 40), (8, 8)):
        for inward in (0.0, 1.0):
            share = painted(inward, 100, space).float().flatten(1).mean(1)
            assert share.max() <= 1
            assert 0.0 < share.mean() < 1


# ---- compiled loops and tensors, chains


@pytest.mark.parametrize("space", [(6, 22, 33), (1, 40, 51)], ids=str)
def test_compiled_loops_and_tensors_agree(space: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", reason="the tensor form is then the only one")
    generator = torch.Generator().manual_seed(0)
    image, chosen = torch.rand(3, 2, *space, generator=generator), torch.tensor([True, True, False])
    low, span = torch.rand(3, 2, generator=generator) * 0.1, torch.rand(3, 2, generator=generator) + 0.5
    drawn = Painting(inward=0.5).sample(image, Draws(keys(3, 5)))
    boxes = [drawn[name] for name in ("key", "corners", "sides", "inward")]
    limits, windows = torch.tensor([[1, 3, 5], [1, 1, 2], [1, 2, 3]]), torch.tensor([300, 500, 100])
    points, falling = torch.rand(3, 2, 2, generator=generator), torch.tensor([True, False, True])

    def results() -> list[torch.Tensor]:
        return [
            local_shuffle_(image.clone(), keys(3), limits, windows, chosen),
            apply_tables_(image.clone(), bezier_tables(points, falling), low, span, chosen),
            paint_(image.clone(), *boxes, low, span, chosen),
        ]

    compiled = results()
    for module in (shuffle, curves, painting):
        monkeypatch.setattr(module, "compiled_for", lambda x: False)
    for ours, tensors in zip(compiled, results(), strict=True):
        torch.testing.assert_close(ours, tensors, rtol=0, atol=1e-6)
        assert torch.equal(ours[2], image[2])
        assert not torch.equal(ours[0], image[0])
    assert torch.equal(compiled[0], results()[0])


def test_large_batches_are_shuffled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle, "compiled_for", lambda x: False)
    batch = {"image": torch.rand(5, 1, 24, 24), "key": keys(5)}
    whole = LocalShuffle()(batch)["image"]
    monkeypatch.setattr(shuffle, "_MEMORY", 1)
    assert torch.equal(LocalShuffle()(batch)["image"], whole)


def test_inside_boxes_is_the_union() -> None:
    corners, sides = torch.tensor([[[0, 1, 2], [0, 0, 0]]]), torch.tensor([[[1, 2, 3], [0, 0, 0]]])
    found = inside_boxes((1, 5, 6), corners, sides)
    assert found[0, 0, 1:3, 2:5].all()
    assert found.sum() == 6


def test_a_chain_is_the_composition_on_one_copy() -> None:
    chain = [LocalShuffle(), IntensityCurve(), Painting()]
    image = torch.randn(6, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    batch = {"image": image.clone(), "key": keys(6)}
    together = Corruptions(chain)(batch)
    assert torch.equal(together["image"], Compose(chain)(batch)["image"])
    assert torch.equal(together["key"], batch["key"])
    assert torch.equal(batch["image"], image)


def test_four_axes_are_refused() -> None:
    with pytest.raises(UserError, match=r"images .* or volumes"):
        LocalShuffle()({"image": torch.zeros(1, 1, 4, 4, 4, 4)})
