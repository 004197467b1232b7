"""Windows by number, by each function of the standard: rule and function give the same in every way of reading."""

import numpy as np
import pytest

from ssl_med.data import filling
from ssl_med.data.crops import Region
from ssl_med.data.intensity import Statistics, channels_of, check_policy, scale_of
from ssl_med.data.windows import Window, window_of
from ssl_med.errors import UserError
from ssl_med.formats.preprocessing import preprocessing

FOUND = Statistics(0.0, 9.0, 2.0, 1.0, 0.0, 30.0)
HOUNSFIELD = np.arange(-1200, 1300, 7).astype(np.int16)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize(("centre", "width"), [(40, 400), (-600, 1500), (0.5, 2.25)])
def test_a_window_by_number_is_that_function(centre, width, function):
    policy = f"window:{centre}/{width}" + (f":{function}" if function else "")
    check_policy(policy)
    assert channels_of(policy, 2) == 2
    expected = Window(centre, width, function or "LINEAR_EXACT")(HOUNSFIELD)
    scale = scale_of(policy, "CT", "int16", FOUND)
    assert np.allclose(scale(HOUNSFIELD), expected, atol=1e-6)
    assert scale.background == 0.0


@pytest.mark.parametrize("engine", ["compiled", "torch"])
@pytest.mark.parametrize("turned", [False, True])
def test_several_functions_side_by_side_in_every_way_of_reading(monkeypatch, engine, turned):
    monkeypatch.setattr(filling, "compiled", lambda: engine == "compiled")
    policy = "windows:lung,40/400:SIGMOID,40/400:LINEAR"
    names = policy.removeprefix("windows:").split(",")
    voxels = np.random.default_rng(0).integers(-1000, 1000, (2, 5, 6, 7)).astype(np.int16)
    matrix, offset = (np.eye(3), np.zeros(3)) if turned else (None, None)
    region = Region([8, 8, 8], [0, 0, 0], [5, 6, 7], [1.0] * 3, matrix, offset)
    out = np.full((6, 8, 8, 8), np.nan, np.float32)
    valid = filling.fill_image(out, voxels, region, scale_of(policy, "CT", "int16", FOUND))
    inside = (slice(0, 5), slice(0, 6), slice(0, 7))
    for number, seen in enumerate(out):
        expected = window_of(names[number % 3])(voxels[number // 3])
        assert np.allclose(seen[inside], expected, atol=1e-5)
        assert (seen[~valid[0]] == 0).all()


def test_numbers_of_a_sigmoid_go_into_an_export():
    card = {"input": {"spatial_dims": 3, "channels": 1, "crop": [8, 8, 8], "intensity": "window:40/400:SIGMOID"}}
    card["input"] |= {"median_spacing_mm": [1, 1, 1], "fixed_spacing_mm": None, "prepared": {}, "class_names": []}
    told = preprocessing(card)["intensity"]
    assert told["formula"].endswith("1 / (1 + exp(-x)) of that where sigmoid is true")
    assert told["scales"] == [{"low": -9960.0, "high": 10040.0, "shift": 40.0, "factor": 0.01, "sigmoid": True}]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("window:40/400:SIGMA", "none of LINEAR, LINEAR_EXACT, SIGMOID"),
        ("window:40/wide", "expected numbers for centre/width"),
        ("window:40/nan", "expected numbers for centre/width"),
        ("window:40/0", "LINEAR_EXACT needs above 0"),
        ("window:40/1:LINEAR", "is a step"),
        ("window:40", "'40' is unknown, expected one of lung.*or centre/width such as 40/400"),
        ("window:40/400,60/300", "windows:40/400,60/300 makes channels"),
    ],
)
def test_windows_that_are_none_are_refused(policy, message):
    with pytest.raises(UserError, match=message):
        check_policy(policy)
