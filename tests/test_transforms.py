import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
import torchvision
from torch import Tensor

from ssl_med.errors import UserError
from ssl_med.ops.filters import cosine_field, gaussian_blur
from ssl_med.ops.random import Draws, sample_keys
from ssl_med.transforms import (
    Affine,
    BiasField,
    Brightness,
    Contrast,
    Flip,
    Gamma,
    GaussianBlur,
    GaussianNoise,
    RandomResizedCrop,
    Rotate90,
    SpatialTransform,
    Transform,
)
from ssl_med.transforms.spatial import rotations
from ssl_med.types import Batch


def keys(count: int, seed: int = 0) -> Tensor:
    return sample_keys(seed, torch.arange(count))


def smooth(count: int, *space: int, sigma: float = 1.5, seed: int = 0) -> Tensor:
    noise = np.random.default_rng(seed).normal(size=(count, 1, *space))
    widths = (0, 0, *[sigma] * len(space))
    return torch.from_numpy(scipy.ndimage.gaussian_filter(noise, widths)).float() * 5


def blob_batch(*space: int, count: int = 8) -> Batch:
    """Saliency, mask and valid are thresholds or multiples of the image, so that moving apart shows."""
    image = smooth(count, *space)
    return {"image": image, "saliency": 2 * image, "mask": (image > 0).int(), "valid": image > 0, "key": keys(count)}


SPACES = pytest.mark.parametrize("space", [(12, 12), (8, 8, 8)], ids=["2d", "3d"])


# ---- geometry


@SPACES
@pytest.mark.parametrize("transform", [Flip(), Rotate90()], ids=["Flip", "Rotate90"])
def test_exact_transforms_move_everything_together(transform: SpatialTransform, space: tuple[int, ...]) -> None:
    batch = blob_batch(*space, count=16)
    moved = transform(batch)
    assert torch.equal(moved["saliency"], 2 * moved["image"])
    assert torch.equal(moved["mask"], (moved["image"] > 0).int())
    assert torch.equal(moved["valid"], moved["image"] > 0)
    assert torch.equal(moved["image"].flatten(1).sort().values, batch["image"].flatten(1).sort().values)


@SPACES
@pytest.mark.parametrize("transform", [Affine(40.0, translation=0.2, shear=0.2), RandomResizedCrop(scale=(0.2, 0.5))])
def test_interpolating_transforms_move_everything_together(transform: SpatialTransform, space: tuple[int, ...]) -> None:
    batch = blob_batch(*space, count=16)
    moved = transform(batch)
    alone = transform({"image": batch["saliency"], "key": batch["key"]})["image"]  # saliency fills with 0, an image not
    torch.testing.assert_close(alone, 2 * moved["image"], rtol=0, atol=1e-5)
    inside = transform({**batch, "saliency": torch.ones_like(batch["saliency"])})["saliency"] > 0.9999
    torch.testing.assert_close(moved["saliency"][inside], 2 * moved["image"][inside], rtol=0, atol=1e-3)
    assert inside.float().mean() > 0.5
    assert torch.equal(moved["mask"] == 1, moved["valid"])
    clear = moved["image"].abs() > 0.5 * moved["image"].std()  # nearest and linear reading agree off the threshold
    assert ((moved["mask"] == 1) == (moved["image"] > 0))[clear].float().mean() > 0.95
    assert ((batch["mask"] == 1) == (moved["image"] > 0))[clear].float().mean() < 0.9


def test_flip_flips_only_the_axes_it_may() -> None:
    x = torch.arange(2 * 3 * 4.0).reshape(1, 1, 2, 3, 4).expand(3, -1, -1, -1, -1)
    result = Flip(probability_per_axis=1.0, axes=[0, 2])({"image": x, "key": keys(3)})["image"]
    assert torch.equal(result, x.flip(2, 4))
    for axis in (2, -1):
        with pytest.raises(UserError, match="axis"):
            Flip(axes=[axis])({"image": torch.zeros(1, 1, 4, 4), "key": keys(1)})


def test_flip_is_drawn_per_image_and_axis() -> None:
    flipped = Flip(probability_per_axis=0.3).sample(torch.zeros(2000, 1, 2, 2, 2), Draws(keys(2000)))["flipped"]
    counts = flipped.sum(0).tolist()
    assert all(scipy.stats.binomtest(count, 2000, 0.3).pvalue > 1e-4 for count in counts)
    pairs = torch.corrcoef(flipped.T.float()) - torch.eye(3)
    assert pairs.abs().max() < 0.1


def test_rotate90_is_rot90_in_a_plane_of_equal_axes() -> None:
    x = torch.randn(200, 1, 3, 5, 5)
    result = Rotate90()({"image": x, "key": keys(200)})["image"]
    seen = [
        next(k for k in range(4) if torch.equal(torch.rot90(a, k, (2, 3)), b)) for a, b in zip(x, result, strict=True)
    ]
    assert scipy.stats.chisquare(np.bincount(seen, minlength=4)).pvalue > 1e-4


def test_rotate90_uses_all_planes_of_a_cube() -> None:
    x = torch.randn(300, 1, 4, 4, 4)
    result = Rotate90()({"image": x, "key": keys(300)})["image"]
    turned = []
    for a, b in zip(x, result, strict=True):
        match = [
            p for p in itertools.combinations((1, 2, 3), 2) for k in (1, 2, 3) if torch.equal(torch.rot90(a, k, p), b)
        ]
        assert len(match) == 1 or torch.equal(a, b)
        turned += match
    assert scipy.stats.chisquare([turned.count(p) for p in ((1, 2), (1, 3), (2, 3))]).pvalue > 1e-4


def test_rotate90_keeps_axes_of_other_spacing_apart() -> None:
    x = torch.randn(40, 1, 4, 4, 4)
    spacing = torch.tensor([[5.0, 1.0, 1.0], [3.0, 2.0, 1.0]]).repeat(20, 1)
    result = Rotate90()({"image": x, "spacing": spacing, "key": keys(40)})["image"]
    assert all(
        any(torch.equal(torch.rot90(a, k, (2, 3)), b) for k in range(4))
        for a, b in zip(x[::2], result[::2], strict=True)
    )
    assert not torch.equal(result[::2], x[::2])
    assert torch.equal(result[1::2], x[1::2])


@pytest.mark.parametrize(
    ("planes", "space"), [(None, (4, 5)), ([(0, 1)], (4, 5, 5)), ([(0, 2)], (4, 4)), ([(0, 0)], (4, 4))]
)
def test_rotate90_refuses_planes_that_do_not_fit(planes: list[tuple[int, int]] | None, space: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="equal length"):
        Rotate90(planes)({"image": torch.zeros(1, 1, *space), "key": keys(1)})


@pytest.mark.parametrize("space", [(13, 17), (7, 9, 11)], ids=["2d", "3d"])
def test_affine_with_zero_ranges_is_identity(space: tuple[int, ...]) -> None:
    batch = blob_batch(*space)
    batch["spacing"] = torch.rand(8, len(space)) + 0.5
    moved = Affine(rotation=0.0, scale=(1.0, 1.0))(batch)
    for key in ("image", "saliency"):
        torch.testing.assert_close(moved[key], batch[key], rtol=0, atol=1e-5)
    assert torch.equal(moved["mask"], batch["mask"])
    assert torch.equal(moved["valid"], batch["valid"])


@pytest.mark.parametrize("space", [(13, 17), (7, 9, 11)], ids=["2d", "3d"])
def test_affine_is_scipys_affine_in_millimetres(space: tuple[int, ...]) -> None:
    batch: Batch = {"image": smooth(5, *space), "key": keys(5), "spacing": torch.rand(5, len(space)) + 0.5}
    transform = Affine(rotation=50.0, scale=(0.7, 1.4), shear=0.2, translation=0.1)
    params = transform.plan(batch, Draws(batch["key"]))
    moved = transform.transform(batch["image"], params, "image")
    for i in range(5):
        size, spacing = np.array(space), batch["spacing"][i].double().numpy()
        matrix = params["matrix"][i].double().numpy() * spacing[None, :] / spacing[:, None]  # mm -> voxels
        centre = (size - 1) / 2
        offset = centre - matrix @ centre + params["shift"][i].double().numpy() * size
        image = batch["image"][i, 0].double().numpy()
        padded = np.pad(image, 3, constant_values=image.min())  # scipy's "constant" cuts where we fade to air
        expected = scipy.ndimage.affine_transform(
            padded, matrix, offset + 3 - matrix @ np.full(len(space), 3.0), order=1, mode="constant", cval=image.min()
        )[(slice(3, -3),) * len(space)]
        np.testing.assert_allclose(moved[i, 0].numpy(), expected, atol=2e-4)


def test_affine_rotation_keeps_lengths_in_millimetres() -> None:
    params = Affine(rotation=90.0, scale=(1.0, 1.0)).sample(torch.zeros(500, 1, 4, 4, 4), Draws(keys(500)))
    identity = torch.eye(3).expand(500, 3, 3)
    torch.testing.assert_close(params["matrix"] @ params["matrix"].mT, identity, rtol=0, atol=1e-5)
    angle = torch.rad2deg(torch.arccos((params["matrix"].diagonal(dim1=1, dim2=2).sum(1) - 1).div(2).clamp(-1, 1)))
    assert scipy.stats.kstest(angle.numpy(), scipy.stats.uniform(0, 90).cdf).pvalue > 1e-3
    skew = params["matrix"] - params["matrix"].mT
    axis = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], 1)
    axis = axis / axis.norm(dim=1, keepdim=True)
    for part in axis.unbind(1):  # on a sphere each coordinate is uniform (Archimedes)
        assert scipy.stats.kstest(part.numpy(), scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_rotations_are_scipys() -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 3))
    expected = scipy.spatial.transform.Rotation.from_rotvec(vectors).as_matrix()
    angle = torch.from_numpy(vectors).norm(dim=1).float()
    np.testing.assert_allclose(rotations(angle, torch.from_numpy(vectors).float()).numpy(), expected, atol=1e-6)


def test_a_translation_in_voxels_is_refused() -> None:
    with pytest.raises(UserError, match="translation is a share of each axis, 0 to 1, got 3"):
        Affine(translation=3.0)


def test_affine_scale_and_translation_directions() -> None:
    x = torch.zeros(1, 1, 9, 9)
    x[..., 3:6, 3:6] = 1
    bigger = Affine(rotation=0.0, scale=(2.0, 2.0))({"image": x, "key": keys(1)})["image"]
    assert bigger.sum() == pytest.approx(4 * 9, rel=0.05)
    params = Affine(rotation=0.0, scale=(1.0, 1.0), translation=0.3).sample(torch.zeros(900, 1, 9, 9), Draws(keys(900)))
    assert scipy.stats.kstest(params["shift"].flatten().numpy(), scipy.stats.uniform(-0.3, 0.6).cdf).pvalue > 1e-3


def test_affine_outside_is_air_and_invalid() -> None:
    batch: Batch = {
        "image": torch.ones(6, 1, 16, 16),
        "valid": torch.ones(6, 1, 16, 16, dtype=torch.bool),
        "key": keys(6),
    }
    batch["mask"] = torch.full((6, 1, 16, 16), 3)
    moved = Affine(rotation=0.0, scale=(0.5, 0.5))(batch)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[4:12, 4:12] = True
    assert torch.equal(moved["valid"], expected.expand(6, 1, 16, 16))
    assert torch.equal(moved["mask"], 3 * expected.expand(6, 1, 16, 16).long())
    assert torch.equal(moved["image"], batch["image"])  # all of it is the least value
    image = torch.full((1, 2, 16, 16), 3.0)
    image[:, 0, 8, 8], image[:, 1, 8, 8] = -2.0, -7.0
    corner = Affine(rotation=0.0, scale=(0.5, 0.5))({"image": image, "key": keys(1)})["image"][0, :, 0, 0]
    assert corner.tolist() == [-2.0, -7.0]  # of each channel its own
    assert "valid" not in Affine()({"image": batch["image"], "key": batch["key"]})


# ---- random resized crop


def torchvision_boxes(height: int, width: int, count: int, scale: list[float], ratio: list[float]) -> np.ndarray:
    torch.manual_seed(1)
    law = torchvision.transforms.RandomResizedCrop.get_params
    return np.array([law(torch.empty(1, height, width), scale, ratio) for _ in range(count)], dtype=float)


@pytest.mark.parametrize(
    ("space", "scale", "ratio"),
    [
        ((224, 224), (0.2, 1.0), (0.75, 4 / 3)),
        ((150, 100), (0.3, 1.0), (0.75, 4 / 3)),
        ((64, 64), (0.9, 1.0), (0.75, 4 / 3)),
        ((128, 128), (0.1, 0.4), (1.0, 2.0)),
    ],
)
def test_crop_law_is_torchvisions_for_square_outputs(
    space: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    transform = RandomResizedCrop(size=[32, 32], scale=scale, ratio=ratio)
    params = transform.sample(torch.zeros(1, 1, *space).expand(3000, -1, -1, -1), Draws(keys(3000)))
    expected = torchvision_boxes(*space, 3000, list(scale), list(ratio))
    (top, left), (height, width) = params["start"].T.double().numpy(), params["lengths"].T.double().numpy()
    wanted_top, wanted_left, wanted_height, wanted_width = expected.T
    for found, wanted in [
        (height * width, wanted_height * wanted_width),
        (width / height, wanted_width / wanted_height),
        (top, wanted_top),
        (left, wanted_left),
        (top + height, wanted_top + wanted_height),
    ]:
        assert scipy.stats.ks_2samp(found, wanted).pvalue > 1e-3


def test_crop_falls_back_to_torchvisions_central_box() -> None:
    for space in ((200, 50), (50, 200)):  # the whole area at ratios near 1 never fits
        transform = RandomResizedCrop(size=[32, 32], scale=(1.0, 1.0), ratio=(0.75, 4 / 3))
        params = transform.sample(torch.zeros(2, 1, *space), Draws(keys(2)))
        expected = torchvision_boxes(*space, 1, [1.0, 1.0], [0.75, 4 / 3])[0]
        assert torch.cat([params["start"], params["lengths"]], 1).tolist() == [expected.tolist()] * 2


def test_crop_law_in_3d() -> None:
    space = torch.tensor([64.0, 160.0, 160.0])
    image = torch.zeros(1, 1, 64, 160, 160).expand(3000, -1, -1, -1, -1)
    params = RandomResizedCrop(scale=(0.1, 0.3), ratio=(0.75, 4 / 3)).sample(image, Draws(keys(3000)))
    lengths, start = params["lengths"], params["start"]
    assert bool(
        ((start >= 0) & (start + lengths <= space) & (lengths == lengths.round()) & (start == start.round())).all()
    )
    share = (lengths / space).prod(1).numpy()
    assert scipy.stats.kstest(share, scipy.stats.uniform(0.1, 0.2).cdf).pvalue > 1e-3  # no such box can stick out
    relative = (lengths / space).log()
    for first, last in itertools.combinations(range(3), 2):
        ratio = relative[:, last] - relative[:, first]
        assert ratio.abs().max() <= math.log(4 / 3) + 0.05  # rounding to voxels
        assert scipy.stats.skew(ratio.numpy()) == pytest.approx(0, abs=0.15)
    spread = relative.std(0)
    assert spread.max() / spread.min() < 1.1  # no axis is special


@pytest.mark.parametrize("space", [(20, 24), (8, 10, 12)], ids=["2d", "3d"])
def test_crop_reads_the_box(space: tuple[int, ...]) -> None:
    """A linear ramp tells where each output voxel was read."""
    ramps = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in space], indexing="ij"))
    image = ramps.expand(12, -1, *[-1] * len(space)).contiguous()
    size = [6, 7, 5][: len(space)]
    transform = RandomResizedCrop(size=size, scale=(0.2, 0.6))
    spacing = torch.rand(12, len(space)) + 0.5
    batch: Batch = {"image": image, "key": keys(12), "spacing": spacing}
    params = transform.plan(batch, Draws(keys(12)).child(0))
    result = transform(batch)
    assert result["image"].shape == (12, len(space), *size)
    for axis, length in enumerate(size):
        zoom = params["lengths"][:, axis, None] / length
        place = params["start"][:, axis, None] + (torch.arange(length) + 0.5) * zoom - 0.5
        place = place.clamp(0, space[axis] - 1)
        found = result["image"][:, axis].movedim(1 + axis, 1).flatten(2)
        torch.testing.assert_close(found, place[..., None].expand_as(found), rtol=0, atol=1e-4)
    torch.testing.assert_close(result["spacing"] * torch.tensor(size), spacing * params["lengths"])
    assert torch.equal(batch["spacing"], spacing)


def test_crop_refuses_a_size_of_another_rank() -> None:
    with pytest.raises(UserError, match="size"):
        RandomResizedCrop(size=[8, 8])({"image": torch.zeros(1, 1, 9, 9, 9), "key": keys(1)})
    with pytest.raises(UserError, match="include 1"):
        RandomResizedCrop(ratio=(1.5, 2.0))


# ---- filters and grey values


@pytest.mark.parametrize("space", [(31,), (17, 22), (9, 12, 15)], ids=["1d", "2d", "3d"])
def test_blur_is_scipys(space: tuple[int, ...]) -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 2, *space))).float()
    sigma = torch.tensor([0.0, 0.3, 0.8, 1.7, 3.0])
    result = gaussian_blur(x, sigma)
    for i, width in enumerate(sigma.tolist()):
        for channel in range(2):
            expected = scipy.ndimage.gaussian_filter(x[i, channel].double().numpy(), width, mode="nearest")
            np.testing.assert_allclose(result[i, channel].numpy(), expected, atol=1e-5)
    torch.testing.assert_close(gaussian_blur(x, sigma, radius=20), result, rtol=0, atol=1e-6)


def test_cosine_field_is_an_inverse_cosine_transform() -> None:
    coefficients = np.random.default_rng(0).normal(size=(2, 3, 3, 3))
    padded = np.zeros((2, 6, 7, 8))
    padded[:, :3, :3, :3] = coefficients
    halves = np.where(np.arange(8) > 0, 0.5, 1.0)  # scipy counts every wave but the constant twice
    padded = padded * halves[:6, None, None] * halves[:7, None] * halves
    expected = scipy.fft.dctn(padded, type=3, axes=(1, 2, 3))
    result = cosine_field(torch.from_numpy(coefficients), (6, 7, 8))
    np.testing.assert_allclose(result[:, 0].numpy(), expected, atol=1e-10)


def grey(transform: Transform) -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(np.random.default_rng(0).gamma(2.0, size=(64, 2, 12, 12))).float() * 100 - 50
    return image, transform({"image": image, "key": keys(64)})["image"]


def test_noise_has_the_drawn_level() -> None:
    image, noisy = grey(GaussianNoise(sd=(2.0, 4.0)))
    level = (noisy - image).flatten(1).std(1)
    assert 1.6 < level.min() < 2.5 < 3.5 < level.max() < 4.5
    assert scipy.stats.kstest((noisy - image).flatten(1)[0].numpy() / level[0].item(), "norm").pvalue > 1e-3


def test_blur_transform_blurs_within_its_range() -> None:
    image, blurred = grey(GaussianBlur(sigma=(0.5, 1.0)))
    least, most = (gaussian_blur(image, torch.full((64,), s)).flatten(1).var(1) for s in (0.5, 1.0))
    variance = blurred.flatten(1).var(1)
    assert bool(((variance <= least) & (variance >= most)).all())
    assert len(variance.unique()) == 64


def test_gamma_keeps_range_and_order() -> None:
    image, bent = grey(Gamma(log_gamma=(math.log(2), math.log(2))))
    low, high = image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True)
    expected = ((image - low) / (high - low)) ** 2 * (high - low) + low
    torch.testing.assert_close(bent, expected, rtol=1e-4, atol=1e-3)


def test_contrast_and_brightness_change_spread_and_mean_alone() -> None:
    image, stretched = grey(Contrast(factor=(0.5, 2.0)))
    torch.testing.assert_close(stretched.mean((2, 3)), image.mean((2, 3)), rtol=1e-4, atol=1e-3)
    factor = stretched.std((2, 3)) / image.std((2, 3))
    torch.testing.assert_close(factor[:, 0], factor[:, 1], rtol=1e-4, atol=0)  # one factor for all channels
    assert 0.5 <= factor.min() < 0.7 < 1.7 < factor.max() <= 2.0001
    image, brighter = grey(Brightness(offset=(-20.0, 10.0)))
    offset = brighter - image
    assert offset.flatten(1).std(1).max() < 1e-4
    assert -20 <= offset.min() < -15 < 5 < offset.max() <= 10.001


def test_bias_field_is_smooth_bounded_and_without_constant() -> None:
    transform = BiasField(strength=0.4)
    image = torch.ones(64, 1, 16, 16, 16)
    image[:, :, 0, 0, 0] = 0  # the minimum, which stays
    field = transform({"image": image, "key": keys(64)})["image"][:, 0, 1:, 1:, 1:].log()
    assert field.abs().max() <= 0.4 + 1e-5
    assert field.abs().amax((1, 2, 3)).max() > 0.3
    assert field.diff(dim=1).abs().max() < 0.4 * math.pi * 2 * 3 / 16
    assert field.mean((1, 2, 3)).abs().max() < 0.1
    assert transform({"image": image, "key": keys(64)})["image"][:, 0, 0, 0, 0].abs().max() == 0


# ---- the base


def test_gate_frequency() -> None:
    image = torch.zeros(2000, 1, 2, 2)
    changed = Brightness(offset=(1.0, 1.0), probability=0.3)({"image": image, "key": keys(2000)})["image"]
    assert scipy.stats.binomtest(int(changed[:, 0, 0, 0].sum()), 2000, 0.3).pvalue > 1e-3


@pytest.mark.parametrize("make", [
    lambda: Gamma(probability=1.5), lambda: Contrast(factor=(2.0, 1.0)), lambda: GaussianBlur(sigma=(-1.0, 1.0)),
    lambda: GaussianNoise(sd=(-1.0, 1.0)), lambda: Flip(probability_per_axis=2.0), lambda: Affine(rotation=-1.0),
    lambda: Affine(scale=(0.0, 1.0)), lambda: BiasField(order=1), lambda: RandomResizedCrop(scale=(0.5, 1.5)),
])  # fmt: skip
def test_settings_out_of_range_are_refused(make: Callable[[], Transform]) -> None:
    with pytest.raises(UserError, match="got"):
        make()
