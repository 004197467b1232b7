"""The scaling rules beside the same rules written out by hand."""

import numpy as np
import pytest

from ssl_med.data.intensity import Statistics, channels_of, check_policy, rule_for, scale_of, statistics
from ssl_med.data.windows import PRESETS
from ssl_med.errors import UserError

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


SUV = Statistics(0.0, 9.0, 2.0, 1.0, 0.0, 30.0)
BECQUEREL = Statistics(0.0, 31000.0, 9000.0, 4000.0, 0.0, 90000.0)


@pytest.mark.parametrize(
    ("modality", "dtype", "found", "policy"),
    [
        ("PT", "float32", SUV, "suv"),
        ("PT", "float32", BECQUEREL, "foreground"),
        ("MR", "float32", SUV, "foreground"),
        ("DX", "uint16", BECQUEREL, "unit"),
        ("MG", "uint16", BECQUEREL, "unit"),
        ("US", "uint8", BECQUEREL, "unit"),
    ],
)
def test_auto_for_other_modalities(modality, dtype, found, policy):
    assert rule_for(modality, dtype, found) == policy
    assert scale_of("auto", modality, dtype, found) == scale_of(policy, modality, dtype, found)


def test_suv_is_clipped_at_twenty():
    scaled = scale_of("suv", "PT", "float32", BECQUEREL)(np.array([-1.0, 0, 5, 20, 40]))
    assert np.allclose(scaled, [0, 0, 0.25, 1, 1])


def test_a_window_by_name_is_that_window():
    hounsfield = np.arange(-2000, 2000, 13).astype(np.int16)
    for name, window in PRESETS.items():
        scaled = scale_of(f"window:{name}", "CT", "int16", SUV)(hounsfield)
        assert np.allclose(scaled, window(hounsfield), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2])
def test_windows_become_channels(channels):
    policy, names = "windows:lung,soft_tissue,bone", ("lung", "soft_tissue", "bone")
    hounsfield = np.random.default_rng(0).integers(-1500, 1500, (channels, 3, 4, 5)).astype(np.int16)
    scale = scale_of(policy, "CT", "int16", SUV)
    scaled = scale(hounsfield)
    expected = np.stack([PRESETS[name](hounsfield[c]) for c in range(channels) for name in names])
    assert scaled.shape[0] == channels_of(policy, channels) == 3 * channels
    assert np.allclose(scaled, expected, atol=1e-6)
    assert len(scale.parts) == 3


@pytest.mark.parametrize("policy", ["auto", "ct", "foreground", "unit", "suv", "window:lung"])
def test_other_rules_keep_the_channels(policy):
    assert channels_of(policy, 3) == 3
    assert scale_of(policy, "MR", "int16", SUV)(np.zeros((3, 4, 4))).shape == (3, 4, 4)


@pytest.mark.parametrize("policy", ["ct", "foreground", "unit", "suv", "window:brain", "windows:brain,bone"])
@pytest.mark.parametrize("found", [statistics(IMAGE), SUV, BECQUEREL])
def test_background_is_what_air_looks_like(policy, found):
    scale = scale_of(policy, "MR", "float32", found)
    air = np.full((1, 2, 2), min(part.low for part in scale.parts) - 1e6, np.float32)
    assert np.array_equal(scale(air), np.full_like(scale(air), scale.background))
    if policy == "foreground":
        assert scale.background < -0.5  # and not 0, which is the mean of the foreground
    else:
        assert scale.background == 0.0


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("bright", "'bright' is no rule, expected one of auto, ct, foreground"),
        ("window:heart", "'heart' is unknown"),
        ("windows:lung,heart", "'heart' is unknown"),
        ("windows:", "'' is unknown"),
        ("window:lung,bone", "windows:lung,bone makes channels"),
    ],
)
def test_rules_that_do_not_exist_are_refused(policy, message):
    with pytest.raises(UserError, match=message):
        check_policy(policy)
    with pytest.raises(UserError, match=message):
        scale_of(policy, "CT", "int16", SUV)
