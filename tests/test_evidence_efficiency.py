"""The label-efficiency ratio on curves whose answer is known, and isotonic regression against sklearn."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from ssl_med.evidence.efficiency import Sources, isotonic, label_efficiency, labels_needed
from ssl_med.evidence.planning import Comparison, Job
from ssl_med.evidence.ratios import ratios
from ssl_med.evidence.study import Result, Study

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


def drawn(rng: np.random.Generator, true: float, draws: int = 3, patients: int = 30, resamples: int = 60) -> Study:
    """Curves that rise with the logarithm of the labels, the pretrained one shifted by the true ratio."""
    results = []
    for draw in range(draws):
        for arm, shift in (("pretrained", true), ("scratch", 1.0)):
            for count in LABELS:
                level = 0.1 * np.log(count * shift) + rng.normal(0, 0.1)
                results.append(Result(Job(arm, int(count), draw, 0), {"x": level + rng.normal(0, 0.1, patients)}))
    return Study(results, np.arange(patients), "x", lambda v, w: w @ v["x"] / w.sum(1), resamples)


def test_the_widened_interval_covers_closer_to_what_it_says_where_all_hangs_on_three_draws():
    rng, trials, hits = np.random.default_rng(0), 60, np.zeros(2)
    for _ in range(trials):
        found = ratios(drawn(rng, 2.5), Comparison("pretrained", "scratch"))[1]
        for place, (low, high) in enumerate(
            [(found["percentile_low"], found["percentile_high"]), (found["low"], found["high"])]
        ):
            hits[place] += min(low, found["most"]) <= 2.5 <= max(high, found["least"])
    plain, wide = hits / trials
    assert plain < 0.92
    assert wide > plain
    assert abs(wide - 0.95) < abs(plain - 0.95)


def test_widening_is_on_the_log_scale_and_open_ends_stay_open():
    rng = np.random.default_rng(0)
    scratch = 0.1 * np.log(LABELS) + np.zeros((2001, 5))

    def made(middle: float, spread: float) -> np.ndarray:
        factor = np.r_[middle, np.exp(rng.normal(np.log(middle), spread, 2000))]
        return 0.1 * (np.log(LABELS)[None] + np.log(factor)[:, None])

    pretrained = made(4, 0.15)
    runs = Sources((scratch[1:], scratch[1:]), 30, (scratch[1:], pretrained[1:]), 3)  # all from three groups of runs
    plain, wide = (label_efficiency(LABELS, scratch, pretrained, sources) for sources in (None, runs))
    assert (wide[0].percentile_low, wide[0].percentile_high) == (plain[0].low, plain[0].high)
    assert np.log(4 / wide[0].low) == pytest.approx(4.3027 / 1.96 * np.log(4 / plain[0].low), rel=1e-3)
    assert np.log(wide[0].high / 4) == pytest.approx(4.3027 / 1.96 * np.log(plain[0].high / 4), rel=1e-3)
    assert wide[2].high == np.inf  # 40 labels: at most 4 can be shown, and half of the resamples lie beyond
    assert wide[2].low == pytest.approx(wide[0].low, rel=0.05)
    assert wide[4].interval() == "> 1 to > 1"  # with all labels all lie beyond
    worse = label_efficiency(LABELS, pretrained, scratch, Sources((scratch, scratch), 30, (pretrained, scratch), 3))
    assert worse[2].low == -np.inf
    assert worse[0].interval() == "< 1 to < 1"
    nothing = Sources((scratch, scratch), 30, (scratch, scratch), 3)
    assert label_efficiency(LABELS, scratch, pretrained, nothing)[0].interval() == plain[0].interval()


def test_the_lower_end_of_a_ratio_beyond_the_range_is_lower_than_the_plain_one():
    rng = np.random.default_rng(1)
    scratch = 0.1 * np.log(LABELS) + np.zeros((2001, 5))
    factor = np.r_[5.0, np.exp(rng.normal(np.log(5), 0.3, 2000))]
    pretrained = 0.1 * (np.log(LABELS)[None] + np.log(factor)[:, None])
    runs = Sources((scratch[1:], scratch[1:]), 30, (scratch[1:], pretrained[1:]), 3)
    found = label_efficiency(LABELS, scratch, pretrained, runs)[2]  # the range ends at 4
    assert (found.value, found.high) == (np.inf, np.inf)
    assert found.low == pytest.approx(5 * np.exp(-4.3027 * 0.3), rel=0.25)  # as if the range had not ended
