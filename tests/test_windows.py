"""Windows beside pydicom's, beside numbers worked out by hand, and by name."""

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi_lut

from ssl_med.data.windows import PRESETS, Window, window_of
from ssl_med.errors import UserError

VALUES = np.arange(-2000, 2001, 7, dtype=np.int16)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(40, 400), (-600, 1500), (40.5, 80), (0, 1.5), (2048, 4096)])
def test_agrees_with_pydicom(function, centre, width):
    dataset = Dataset()
    dataset.PhotometricInterpretation, dataset.BitsStored, dataset.PixelRepresentation = "MONOCHROME2", 16, 1
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = centre, width, function
    with np.errstate(over="ignore"):  # of their exp
        theirs = (apply_voi_lut(VALUES, dataset) + 2**15) / (2**16 - 1)  # their output is the range of 16 signed bits
    np.testing.assert_allclose(Window(centre, width, function)(VALUES), theirs, atol=2e-7)


@pytest.mark.parametrize(
    ("window", "values", "expected"),
    [  # the examples of PS3.3 C.11.2.1.2.1 (c = 2048, w = 4096) and (c = 0, w = 100), in [0, 1]
        (Window(2048, 4096, "LINEAR"), [0, 2047.5, 4095, 5000], [0, 0.5, 1, 1]),
        (Window(0, 100, "LINEAR"), [-51, -50, -0.5, 49, 50], [0, 0, 0.5, 1, 1]),
        (Window(0, 1, "LINEAR"), [-1, -0.5, -0.4, 0], [0, 0, 1, 1]),  # a step
        (Window(0, 100), [-60, -50, -25, 0, 50, 60], [0, 0, 0.25, 0.5, 1, 1]),
        (Window(10, 4, "SIGMOID"), [10, 11, 9, 1e9, -1e9], [0.5, 0.7310586, 0.2689414, 1, 0]),
    ],
)
def test_by_hand(window, values, expected):
    seen = window(np.array(values))
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen, expected, atol=1e-6)


def test_presets_are_those_of_the_workstations():
    expected = {
        "lung": (-1350, 150),
        "soft_tissue": (-160, 240),
        "liver": (-45, 105),
        "bone": (-500, 1300),
        "brain": (0, 80),
        "stroke": (20, 60),
        "subdural": (-25, 175),
        "angiography": (-100, 500),
    }
    assert {name: window.limits for name, window in PRESETS.items()} == expected
    for name, (low, high) in expected.items():
        np.testing.assert_allclose(window_of(name)(np.array([low, (low + high) / 2, high])), [0, 0.5, 1])


def test_limits_are_where_the_window_ends():
    window = Window(40, 400, "LINEAR")
    low, high = window.limits
    np.testing.assert_allclose(window(np.array([low, high - 1, high])), [0, 1 - 1 / 399, 1], atol=1e-6)
    assert Window(0, 10, "SIGMOID").limits == (-np.inf, np.inf)


@pytest.mark.parametrize(("width", "function"), [(0.5, "LINEAR"), (0, "LINEAR_EXACT"), (-1, "SIGMOID")])
def test_impossible_widths_are_refused(width, function):
    with pytest.raises(UserError, match="window width"):
        Window(0, width, function)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'heart' is unknown.*lung.*angiography"):
        window_of("heart")
