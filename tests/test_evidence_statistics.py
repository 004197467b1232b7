"""Intervals and tests against scipy and hand-made cases; the interval of a study covers as often as it says."""

import itertools

import numpy as np
import pytest
from scipy import stats

from ssl_med.evidence.analysis import Result, Study, compare
from ssl_med.evidence.planning import Comparison, Job
from ssl_med.evidence.resampling import Resamples, group_means, groups_of, mean_over_runs
from ssl_med.evidence.statistics import (
    Spread,
    bca,
    degrees_of_freedom,
    holm,
    percentile,
    sign_flip,
    swap_test,
    widened,
)


def mean_of(values, weights):
    return weights @ values["x"] / weights.sum(1)


@pytest.fixture
def sample():
    return np.random.default_rng(1).exponential(1.0, 40)


def bootstrap_means(sample, count=6000):
    drawn = Resamples.draw(len(sample), 1, count)
    return drawn.patients[1:] @ sample / drawn.patients[1:].sum(1)


def test_percentile_and_bca_agree_with_scipy(sample):
    values = bootstrap_means(sample)
    left_out = (sample.sum() - sample) / (len(sample) - 1)
    for own, method in (
        (percentile(values), "percentile"),
        (bca(values, float(sample.mean()), left_out), "BCa"),
    ):
        theirs = stats.bootstrap((sample,), np.mean, n_resamples=6000, method=method, rng=np.random.default_rng(3))
        assert own.low == pytest.approx(theirs.confidence_interval.low, abs=0.025), method
        assert own.high == pytest.approx(theirs.confidence_interval.high, abs=0.025), method
    plain, corrected = percentile(values), bca(values, float(sample.mean()), left_out)
    assert corrected.high > plain.high + 0.01  # a skewed sample: the correction is not a null operation


def test_bca_says_nothing_where_nothing_varies():
    assert np.isnan(bca(np.ones(50), 2.0, np.ones(5)).low)


@pytest.mark.parametrize("patients", [4, 9])
def test_sign_flips_are_exact_for_few_patients(patients):
    differences = np.random.default_rng(patients).normal(0.4, 1.0, patients)
    theirs = stats.permutation_test(
        (differences, np.zeros(patients)), lambda a, b: (a - b).sum(), permutation_type="samples", n_resamples=10**6
    )
    ours = sign_flip(differences, np.random.default_rng(0))
    assert ours == pytest.approx(theirs.pvalue, abs=1e-12)
    counted = [abs(np.dot(s, differences)) for s in itertools.product([1, -1], repeat=patients)]
    assert ours == pytest.approx(np.mean(np.array(counted) >= abs(differences.sum()) - 1e-12))


def test_sign_flips_of_many_patients_agree_with_scipy_and_are_never_zero():
    rng = np.random.default_rng(0)
    differences = rng.normal(0.25, 1.0, 60)
    theirs = stats.permutation_test(
        (differences, np.zeros(60)),
        lambda a, b: (a - b).sum(),
        permutation_type="samples",
        n_resamples=9999,
        rng=np.random.default_rng(5),
    )
    assert sign_flip(differences, rng) == pytest.approx(theirs.pvalue, abs=0.015)
    assert sign_flip(np.full(60, 1.0), rng) == pytest.approx(1 / 10_000)


def test_equal_arms_are_never_different():
    assert sign_flip(np.zeros(8), np.random.default_rng(0)) == 1.0
    assert sign_flip(np.zeros(80), np.random.default_rng(0)) == 1.0
    assert np.isnan(swap_test(lambda signs: np.full(len(signs), np.nan), 4, np.random.default_rng(0)))


def test_holm_by_hand():
    # 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.5 * 1: the third would be the smaller, so it stays at the second
    assert holm(np.array([0.03, 0.01, 0.5, 0.02])) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    found = holm(np.array([0.04, np.nan, 0.9]))
    assert found[[0, 2]] == pytest.approx([0.08, 0.9])
    assert np.isnan(found[1])


def test_degrees_of_freedom_are_those_of_the_larger_variance():
    assert degrees_of_freedom(Spread(0.0, 50, 1.0, 3)) == pytest.approx(2)
    assert degrees_of_freedom(Spread(1.0, 50, 0.0, 3)) == pytest.approx(49)
    assert degrees_of_freedom(Spread(1.0, 5, 1.0, 3)) == pytest.approx(4 / (1 / 4 + 1 / 2))
    assert degrees_of_freedom(Spread(1.0, 5, 9.0, 1)) == pytest.approx(4)  # one group of runs says nothing of runs
    assert degrees_of_freedom(Spread(0.0, 5, 0.0, 3)) == np.inf


def test_widening_is_t_over_z():
    values = np.random.default_rng(0).normal(0, 1, 20_000)
    plain, wide = percentile(values), widened(values, 0.0, Spread(0.0, 9, 1.0, 3))
    assert wide.high / plain.high == pytest.approx(stats.t.ppf(0.975, 2) / stats.norm.ppf(0.975))
    assert widened(values, 0.0, Spread(0.0, 9, 0.0, 3)) == plain


def test_the_variance_from_draws_is_unbiased():
    means = np.array([1.0, 2.0, 6.0])
    scores = np.tile(means, (20_001, 1))
    values = mean_over_runs(scores, np.arange(3), Resamples.draw(7, 3, 20_000))
    assert values[0] == pytest.approx(3.0)
    assert values[1:].var() == pytest.approx(means.var(ddof=1) / 3, rel=0.03)


def test_runs_are_grouped_by_draw_and_else_by_seed():
    assert groups_of([(0, 0), (0, 1), (2, 0)]).tolist() == [0, 0, 1]
    assert groups_of([(1, 0), (1, 1)]).tolist() == [0, 1]
    assert groups_of([(1, 0)]).tolist() == [0]
    scores = np.array([[1.0, 3.0, 8.0]])
    drawn = Resamples.draw(3, 2, 1)
    found = mean_over_runs(np.repeat(scores, 2, 0), np.array([0, 0, 1]), drawn)
    assert found[0] == pytest.approx(5.0)  # (2 + 8) / 2: a draw with two seeds counts no more than one with one
    assert group_means(scores[0], np.array([0, 0, 1])).tolist() == [2.0, 8.0]


def study_of(rng, patients, draws, seeds, sizes, resamples=300):
    """Differences with a true mean of 0: patient, draw, seed and the rest."""
    of_patient, results = rng.normal(0, sizes[0], patients), []
    for draw in range(draws):
        of_draw = rng.normal(0, sizes[1])
        for seed in range(seeds):
            x = of_patient + of_draw + rng.normal(0, sizes[2]) + rng.normal(0, sizes[3], patients)
            results.append(Result(Job("pretrained", 8, draw, seed), {"x": x}))
            results.append(Result(Job("scratch", 8, draw, seed), {"x": np.zeros(patients)}))
    return Study(results, np.arange(patients), "x", mean_of, resamples)


@pytest.mark.parametrize(
    ("patients", "draws", "seeds", "sizes", "least"),
    [(40, 3, 2, (1.0, 0.16, 0.0, 0.5), 0.95), (40, 3, 2, (0.3, 0.3, 0.1, 0.3), 0.92), (12, 3, 2, (1, 0, 0, 0.3), 0.95)],
)
def test_the_interval_covers_the_truth(patients, draws, seeds, sizes, least):
    """Not three standard errors of a binomial below 95 %; below 92 % where everything hangs on three draws."""
    rng, trials, hits = np.random.default_rng(0), 150, 0
    for _ in range(trials):
        study = study_of(rng, patients, draws, seeds, sizes)
        entry = compare(study, Comparison("pretrained", "scratch"), tested=False)[0]
        hits += entry["low"] <= 0 <= entry["high"]
    assert hits / trials > least - 3 * (least * (1 - least) / trials) ** 0.5


def test_the_plain_percentile_interval_would_cover_too_rarely():
    """Why it is widened: with three draws that differ much, the plain one misses the truth far too often."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(100):
        study = study_of(rng, 40, 3, 2, (0.02, 0.3, 0.1, 0.1), 200)
        entry = compare(study, Comparison("pretrained", "scratch"), tested=False)[0]
        hits += entry["percentile_low"] <= 0 <= entry["percentile_high"]
    assert hits < 90


def test_false_alarms_are_as_rare_as_stated():
    """Arms without a difference in patients who differ: p below 0.05 in about one of twenty studies."""
    rng, alarms = np.random.default_rng(2), 0
    for _ in range(200):
        alarms += sign_flip(rng.normal(0, 1, 10), rng) < 0.05
    assert 1 <= alarms <= 10 + 3 * (200 * 0.05 * 0.95) ** 0.5
