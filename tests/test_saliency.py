"""Saliency maps against loops written anew in NumPy, and what the providers promise."""

import numpy as np
import pytest
import torch

from ssl_med.errors import UserError
from ssl_med.ops import saliency as ops
from ssl_med.tasks.saliency import (
    Entropy,
    FineGrained,
    Foreground,
    Gradient,
    SaliencyProvider,
    SpectralResidual,
    StoredSaliency,
    TeacherAttention,
    class_attention,
    fall_back,
)
from ssl_med.transforms import Flip, RandomResizedCrop, Rotate90

SPACES = {"2d": (13, 17), "3d": (7, 9, 8)}
COMPUTED = [FineGrained(), FineGrained(contrast=1 / 8), SpectralResidual(), Gradient(), Entropy(5, 8), Foreground()]


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return SPACES[request.param]


def blurred_by_loops(image: np.ndarray) -> np.ndarray:
    """[1, 2, 1] / 4 along every axis, borders mirrored without repeating the border, rounded half up."""
    total = np.zeros(image.shape)
    padded = np.pad(image, 1, mode="reflect").astype(float)
    for offset in np.ndindex(*[3] * image.ndim):
        weight = np.prod([(1, 2, 1)[o] for o in offset])
        total += weight * padded[tuple(slice(o, o + n) for o, n in zip(offset, image.shape, strict=True))]
    return np.floor(total / 4**image.ndim + 0.5)


def fine_grained_by_loops(image: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """systems.md 3.4 voxel by voxel, with boxes cut out of the image instead of an integral image."""
    image = blurred_by_loops(blurred_by_loops(image))
    on, off = np.zeros(image.shape), np.zeros(image.shape)
    for voxel in np.ndindex(*image.shape):
        for n in sizes:
            box = image[
                tuple(slice(max(x - n + 1, 0), min(x + n + 1, s)) for x, s in zip(voxel, image.shape, strict=True))
            ]
            centre = image[voxel]
            mean = (box.sum() - centre) / (box.size - 1)
            on[voxel] += np.floor(max(0.0, round(centre - mean, 9)))
            off[voxel] += np.floor(max(0.0, round(mean - centre, 9)))
    on, off = (np.floor(255 * x / x.max() + 1e-9) if x.max() else x for x in (on, off))
    return np.minimum(on + off, 255) / 255


def random_bytes(space: tuple[int, ...], count: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, *space), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sizes", [(2, 4), (2, 3, 12)])
def test_fine_grained_is_the_law_voxel_by_voxel(space: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    image = random_bytes(space, 2)
    ours = ops.fine_grained(image, sizes)
    for row in range(2):
        np.testing.assert_allclose(ours[row, 0].numpy(), fine_grained_by_loops(image[row, 0].numpy(), sizes), atol=1e-6)


def test_fine_grained_with_its_own_sizes() -> None:
    image = random_bytes((30, 26))
    expected = fine_grained_by_loops(image[0, 0].numpy(), (12, 24, 48, 28, 56, 112))
    np.testing.assert_allclose(ops.fine_grained(image)[0, 0].numpy(), expected, atol=1e-6)


def test_fine_grained_is_opencvs_where_it_does_not_overflow() -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    if not hasattr(cv2, "saliency"):
        pytest.skip("this OpenCV has no saliency module (opencv-contrib)")
    image = ops.as_bytes(torch.rand(1, 1, 64, 80, generator=torch.Generator().manual_seed(2)))
    _, theirs = cv2.saliency.StaticSaliencyFineGrained_create().computeSaliency(image[0, 0].numpy().astype(np.uint8))
    ours = ops.fine_grained(image)[0, 0].numpy()
    fits = ours < 1
    assert np.abs(ours - theirs)[fits].max() <= 1.5 / 255


def test_spectral_residual_by_its_formula() -> None:
    image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    spectrum = np.fft.fft2(image[0, 0].numpy())
    log = np.log(np.abs(spectrum))
    padded, mean = np.pad(log, 1, mode="reflect"), np.zeros((16, 16))
    for y, x in np.ndindex(3, 3):
        mean += padded[y : y + 16, x : x + 16] / 9
    back = np.abs(np.fft.ifft2(np.exp(log - mean) * spectrum / np.abs(spectrum)))
    taps = np.exp(-0.5 * (np.arange(-2, 3) / 8) ** 2)
    taps /= taps.sum()
    padded, smooth = np.pad(back, 2, mode="edge"), np.zeros((16, 16))
    for y, x in np.ndindex(5, 5):
        smooth += taps[y] * taps[x] * padded[y : y + 16, x : x + 16]
    np.testing.assert_allclose(
        ops.spectral_residual(image, 16)[0, 0].numpy(), smooth**2 / (smooth**2).max(), rtol=1e-3, atol=1e-4
    )


def test_foreground_is_otsus() -> None:
    generator = torch.Generator().manual_seed(6)
    image = torch.cat([torch.randn(300, generator=generator), 5 + torch.randn(100, generator=generator)])
    values = ops.as_bytes(image.reshape(1, 1, 20, 20))
    flat = values.flatten().numpy()
    within = [
        sum(part.size * part.var() for part in (flat[flat <= t], flat[flat > t]) if part.size) for t in range(255)
    ]
    assert torch.equal(ops.foreground(values) > 0, values > int(np.argmin(within)))


def test_entropy_and_gradient_by_hand() -> None:
    flat, halves = torch.zeros(1, 1, 6, 6, dtype=torch.int64), torch.zeros(1, 1, 6, 6, dtype=torch.int64)
    halves[..., 3:] = 255
    assert ops.local_entropy(flat, 3, 2).abs().max() == 0
    third = 1 / 3
    expected = -(third * np.log(third) + (1 - third) * np.log(1 - third)) / np.log(2)
    np.testing.assert_allclose(ops.local_entropy(halves, 3, 2)[0, 0, 2, 2], expected, rtol=1e-6)
    edges = ops.gradient_magnitude(halves.float(), 0.5)[0, 0]
    assert edges[:, 2:4].min() > 0.99
    assert edges[:, 0].max() < 0.01


@pytest.mark.parametrize("provider", COMPUTED, ids=lambda p: type(p).__name__)
def test_a_map_of_every_provider(provider: SaliencyProvider, space: tuple[int, ...]) -> None:
    image = torch.rand(3, 1, *space, generator=torch.Generator().manual_seed(4))
    image[1] = 0.7
    out = provider({"image": image})
    assert out.shape == image.shape
    assert out.min() >= 0
    assert out.max() <= 1
    assert out[0].amax() > out[0].amin()
    assert out[1].amax() == out[1].amin()  # nothing stands out
    torch.testing.assert_close(provider({"image": image[2:]}), out[2:])  # the rest of the batch does not matter
    uniform, constant = fall_back(out)
    assert constant.tolist() == [False, True, False]
    assert (uniform[1] == 1).all()
    assert torch.equal(uniform[0], out[0])


@pytest.mark.parametrize(("space", "centre"), [((40, 48), (13, 30)), ((20, 24, 22), (8, 15, 6))])
def test_a_bright_dot_is_the_peak(space: tuple[int, ...], centre: tuple[int, ...]) -> None:
    for radius in (0, 2):
        image = torch.zeros(1, 1, *space)
        image[(0, 0, *[slice(c - radius, c + radius + 1) for c in centre])] = 1.0
        assert FineGrained()({"image": image})[(0, 0, *centre)] == 1.0
    image = image + 0.1 * torch.rand(image.shape, generator=torch.Generator().manual_seed(7))
    out = SpectralResidual()({"image": image})[0, 0]
    assert out[tuple(slice(c - 2, c + 3) for c in centre)].mean() > 2 * out.mean()


def test_colour_is_weighted_as_luma() -> None:
    image = torch.zeros(1, 3, 2, 2)
    image[:, 1] = 1
    torch.testing.assert_close(ops.grey(image), torch.full((1, 1, 2, 2), 0.587))


def test_padding_is_never_salient(space: tuple[int, ...]) -> None:
    image = torch.rand(2, 1, *space, generator=torch.Generator().manual_seed(5)) + 5
    valid = torch.ones(2, 1, *space, dtype=torch.bool)
    valid[..., -3:] = False
    out = FineGrained()({"image": image * valid, "valid": valid})
    assert out[~valid].abs().max() == 0
    other = FineGrained()({"image": torch.where(valid, image, -9.0), "valid": valid})
    torch.testing.assert_close(out, other)  # what stands in the padding does not matter
    _, constant = fall_back(torch.ones(2, 1, *space) * valid, valid)
    assert constant.all()


def test_a_broken_map_falls_back() -> None:
    broken = torch.rand(2, 1, 4, 4)
    broken[0, 0, 1, 1] = torch.nan
    uniform, constant = fall_back(broken)
    assert constant.tolist() == [True, False]
    assert torch.isfinite(uniform).all()


@pytest.mark.parametrize("provider", COMPUTED, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("value", [0.0, 0.7, -1000.0])
def test_a_constant_image_has_a_map_of_zeros(provider: SaliencyProvider, space: tuple[int, ...], value: float) -> None:
    assert provider({"image": torch.full((2, 1, *space), value)}).abs().max() == 0


FOLLOWING = {
    # Least correlation of the map of the moved image with the moved map. A gradient knows no direction: flips and turns
    # are exact but for rounding, and a crop is measured at another scale. A surround of fine-grained saliency reaches
    # n - 1 voxels back and n ahead, so that a turned map is near and no more.
    "gradient, flip": (Gradient(2.0), Flip(), 0.9999),
    "gradient, turn": (Gradient(2.0), Rotate90(), 0.9999),
    "gradient, crop": (Gradient(2.0), RandomResizedCrop(scale=(0.6, 0.9)), 0.85),
    "fine-grained, flip": (FineGrained((3, 6, 12)), Flip(), 0.9),
    "fine-grained, turn": (FineGrained((3, 6, 12)), Rotate90(), 0.9),
    "fine-grained, crop": (FineGrained((3, 6, 12)), RandomResizedCrop(scale=(0.6, 0.9)), 0.85),
}


@pytest.mark.parametrize("space", [(48, 48), (24, 24, 24)], ids=["2d", "3d"])
@pytest.mark.parametrize(("provider", "transform", "least"), FOLLOWING.values(), ids=FOLLOWING)
def test_the_map_follows_the_geometry(provider, transform, least: float, space, make_batch) -> None:
    batch = make_batch(space)
    moved = transform({**batch, "saliency": provider(batch)})
    assert not torch.equal(moved["image"], batch["image"])
    pairs = torch.stack([moved["saliency"].flatten(), provider(moved).flatten()])
    assert torch.corrcoef(pairs)[0, 1] > least, torch.corrcoef(pairs)[0, 1]


def test_stored_maps_are_read_and_missed(make_batch) -> None:
    batch = make_batch((8, 8))
    with pytest.raises(UserError, match="this batch has none"):
        StoredSaliency()(batch)
    saliency = torch.rand(4, 1, 8, 8)
    assert torch.equal(StoredSaliency()({**batch, "saliency": saliency}), saliency)


@pytest.mark.parametrize(("positions", "size"), [("sincos", (8, 12)), ("rotary", (8, 8, 12))])
def test_attention_is_that_of_the_class_token(tiny_vit, make_batch, positions: str, size, monkeypatch) -> None:
    import ssl_med.backbones.block as block

    vit, batch, seen = tiny_vit(len(size), positions=positions, embed_dim=48, registers=2), make_batch(size), []

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1)
        seen.append(weights)
        return weights @ v

    monkeypatch.setattr(block, "attend", attend)
    ours = class_attention(vit, batch["image"])
    torch.testing.assert_close(ours.flatten(1), seen[-1].mean(1)[:, 0, 3:])
    out = TeacherAttention()(batch, vit)
    assert out.shape == batch["image"].shape
    with pytest.raises(UserError, match="class token"):
        TeacherAttention()(batch)
