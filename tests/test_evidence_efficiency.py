"""The label-efficiency ratio on curves whose answer is known, and isotonic regression against sklearn."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from ssl_med.evidence.efficiency import isotonic, label_efficiency, labels_needed

LABELS = np.array([10.0, 20.0, 40.0, 80.0, 160.0])


def test_isotonic_agrees_with_sklearn():
    curves = np.random.default_rng(0).normal(0, 1, (50, 6)) + np.linspace(0, 1, 6)
    theirs = np.stack([IsotonicRegression().fit_transform(np.arange(6), curve) for curve in curves])
    assert isotonic(curves) == pytest.approx(theirs)


def test_a_curve_shifted_by_a_factor_has_that_ratio():
    scratch = 0.1 * np.log(LABELS)
    pretrained = 0.1 * np.log(4 * LABELS)
    found = label_efficiency(LABELS, np.stack([scratch] * 9), np.stack([pretrained] * 9))
    assert [ratio.value for ratio in found[:3]] == pytest.approx([4, 4, 4])
    assert [ratio.text() for ratio in found] == ["4", "4", "4", "> 2", "> 1"]
    assert found[0].interval() == "4 to 4"
    assert found[3].interval() == "> 2 to > 2"


def test_worse_pretraining_needs_more_labels_than_scratch():
    scratch, pretrained = 0.1 * np.log(LABELS), 0.1 * np.log(LABELS / 4)
    found = label_efficiency(LABELS, np.stack([scratch] * 3), np.stack([pretrained] * 3))
    assert [ratio.text() for ratio in found] == ["< 1", "< 0.5", "0.25", "0.25", "0.25"]


@pytest.mark.parametrize(
    "curve",
    [0.1 * np.log(LABELS), np.full(5, 0.5), np.array([0.9, 0.5, 0.7, 0.6, 0.8])],
    ids=["rising", "flat", "wild"],
)
def test_equal_arms_have_the_ratio_one(curve):
    found = label_efficiency(LABELS, np.stack([curve] * 3), np.stack([curve] * 3))
    assert [ratio.value for ratio in found] == pytest.approx([1.0] * 5)


def test_reading_between_points_is_linear_in_the_logarithm():
    curve = np.array([[0.0, 1.0, 1.0, 1.0, 2.0]])
    at = {wanted: labels_needed(LABELS, curve, np.array([wanted]), 30.0)[0] for wanted in (0.5, 1.0, 1.5, 2.0, 2.1, -1)}
    assert at[0.5] == pytest.approx(np.sqrt(10 * 20))
    assert at[1.0] == pytest.approx(30.0)  # level from 20 to 80: nearest to what was given
    assert at[1.5] == pytest.approx(np.sqrt(80 * 160))
    assert at[2.0] == pytest.approx(160)
    assert (at[2.1], at[-1]) == (np.inf, -np.inf)
    assert np.isnan(labels_needed(LABELS, curve, np.array([np.nan]), 30.0)[0])


def test_the_interval_comes_from_the_resamples_and_may_be_open():
    rng = np.random.default_rng(0)
    scratch = 0.1 * np.log(LABELS) + np.zeros((401, 5))
    factor = np.r_[4.0, np.exp(rng.normal(np.log(4), 0.3, 400))]
    pretrained = 0.1 * (np.log(LABELS)[None] + np.log(factor)[:, None])
    found = label_efficiency(LABELS, scratch, pretrained)
    assert found[0].value == pytest.approx(4)
    assert [found[0].low, found[0].high] == pytest.approx(np.quantile(factor[1:], [0.025, 0.975]), rel=0.05)
    assert found[2].interval().endswith("to > 4")
