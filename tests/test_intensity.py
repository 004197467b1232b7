"""The scaling rules beside the same rules written out by hand."""

import numpy as np
import pytest

from ssl_med.data.intensity import Statistics, scale_of, statistics

RNG = np.random.default_rng(0)
IMAGE = np.concatenate([RNG.normal(20, 5, 4000), RNG.normal(500, 80, 4000)]).reshape(1, 20, 20, 20).astype(np.float32)


def by_hand(image: np.ndarray) -> tuple[float, float, float, float]:
    voxels = image.ravel().astype(np.float64)
    bright = np.sort(voxels[voxels > voxels.sum() / voxels.size])
    low = np.interp(0.005 * (voxels.size - 1), np.arange(voxels.size), np.sort(voxels))
    high = np.interp(0.995 * (bright.size - 1), np.arange(bright.size), bright)
    inside = np.minimum(np.maximum(bright, low), high)
    mean = inside.sum() / inside.size
    return low, high, mean, (((inside - mean) ** 2).sum() / inside.size) ** 0.5


def test_statistics_by_hand():
    found = statistics(IMAGE)
    assert (found.low, found.high, found.mean, found.sd) == pytest.approx(by_hand(IMAGE), rel=1e-9)
    assert (found.minimum, found.maximum) == (IMAGE.min(), IMAGE.max())


def test_extremes_are_those_of_all_voxels_even_in_a_large_image():
    large = np.zeros((1, 128, 128, 160), np.int16)
    large[:, ::2] = 100
    large[0, 3, 3, 3], large[0, 100, 5, 7] = -500, 900
    found = statistics(large)
    assert (found.minimum, found.maximum) == (-500, 900)
    assert (found.low, found.mean, found.sd) == (0, 100, 0)


def test_foreground_has_mean_zero_and_unit_variance():
    low, high, mean, sd = by_hand(IMAGE)
    scaled = scale_of("foreground", "MR", "float32", statistics(IMAGE))(IMAGE)
    assert scaled.dtype == np.float32
    assert np.allclose(scaled, (np.clip(IMAGE, low, high) - mean) / sd, atol=1e-4)
    bright = scaled[IMAGE.mean() < IMAGE]
    assert abs(bright.mean()) < 1e-3
    assert abs(bright.std() - 1) < 1e-3


@pytest.mark.parametrize("found", [statistics(IMAGE), Statistics(-9.0, 9.0, 1.0, 2.0, -9.0, 9.0)])
def test_ct_is_absolute(found):
    hounsfield = np.array([-3000, -1000, 0, 40, 1000, 3000], np.int16)
    scaled = scale_of("auto", "CT", "int16", found)(hounsfield)
    assert np.allclose(scaled, [0, 0, 0.5, 0.52, 1, 1], atol=1e-6)


def test_unit_of_eight_bits_is_absolute_and_of_others_from_low_to_high():
    found = Statistics(10.0, 110.0, 50.0, 20.0, 0.0, 200.0)
    assert np.allclose(scale_of("unit", "", "uint8", found)(np.array([0, 51, 255], np.uint8)), [0, 0.2, 1])
    assert np.allclose(scale_of("unit", "", "int16", found)(np.array([0, 10, 60, 110, 200])), [0, 0, 0.5, 1, 1])


@pytest.mark.parametrize(
    ("modality", "dtype", "policy"),
    [("CT", "int16", "ct"), ("CT", "uint8", "ct"), ("MR", "uint8", "unit"), ("", "int16", "foreground")],
)
def test_auto_chooses_by_modality_then_type(modality, dtype, policy):
    found = statistics(IMAGE)
    assert scale_of("auto", modality, dtype, found) == scale_of(policy, modality, dtype, found)


def test_an_image_of_two_values_stays_finite():
    image = np.zeros((1, 10, 10), np.int16)
    image[0, :5] = 100
    scaled = scale_of("foreground", "MR", "int16", statistics(image))(image)
    assert np.isfinite(scaled).all()
