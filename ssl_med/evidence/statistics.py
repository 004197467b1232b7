"""The statistics of a study: intervals, paired tests, several tests at once. Arrays in, numbers out."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

EXACT_PATIENTS = 12
"""Up to so many patients a sign-flip test looks at all 2^n flips."""


class Interval(NamedTuple):
    """Where a quantity plausibly lies; NaN where there is nothing to say."""

    low: float
    high: float


class Spread(NamedTuple):
    """The two sources of variance of a mean over runs and patients.

    Attributes:
        patients: variance from the choice of test patients; ``patient_count``: how many there are.
        runs: variance from the choice of training patients and seeds; ``run_count``: how many independent groups of
            runs there are.
    """

    patients: float
    patient_count: int
    runs: float
    run_count: int


def percentile(values: np.ndarray, level: float = 0.95) -> Interval:
    """The middle ``level`` of bootstrap values; those that are not finite are left out."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return Interval(np.nan, np.nan)
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def widened(values: np.ndarray, observed: float, spread: Spread, level: float = 0.95) -> Interval:
    """Percentile interval stretched about the observed value by t / z for the few groups of runs it rests on.

    A bootstrap knows the variance of three draws as badly as anybody. The degrees of freedom of the sum of both
    variances are Satterthwaite's (Biometrics Bulletin 2(6), 1946); the stretch is the Student quantile at these over
    the normal one: 1.0 where patients dominate and are many, up to 2.2 where everything hangs on three draws.

    Args:
        values: of the bootstrap, (b,).
        observed: the value without resampling.
        spread: the variances from patients and from runs.
        level: of the interval.
    """
    plain, factor = percentile(values, level), stretch(spread, level)
    return Interval(observed - factor * (observed - plain.low), observed + factor * (plain.high - observed))


def stretch(spread: Spread, level: float = 0.95) -> float:
    """Student's quantile over the normal one at the degrees of freedom of two variances; 1 where nothing varies."""
    from scipy.stats import norm, t

    freedom = degrees_of_freedom(spread)
    if not np.isfinite(freedom):
        return 1.0
    return float(t.ppf((1 + level) / 2, freedom) / norm.ppf((1 + level) / 2))


def degrees_of_freedom(spread: Spread) -> float:
    """Satterthwaite: (v1 + v2)^2 / (v1^2 / (n1 - 1) + v2^2 / (n2 - 1)); infinite where nothing varies."""
    parts = [(spread.patients, spread.patient_count), (spread.runs, spread.run_count)]
    below = sum(variance**2 / (count - 1) for variance, count in parts if count > 1)
    return float(sum(variance for variance, count in parts if count > 1) ** 2 / below) if below > 0 else float("inf")


def bca(values: np.ndarray, observed: float, jackknife: np.ndarray, level: float = 0.95) -> Interval:
    """Bias-corrected and accelerated interval (Efron, JASA 82(397), 1987).

    Args:
        values: of the bootstrap, (b,).
        observed: the value without resampling.
        jackknife: values with one patient left out each.
        level: of the interval.
    """
    from scipy.stats import norm

    finite = values[np.isfinite(values)]
    below = ((finite < observed).mean() + (finite <= observed).mean()) / 2 if len(finite) else np.nan
    if not 0 < below < 1:
        return Interval(np.nan, np.nan)
    bias = norm.ppf(below)
    away = jackknife.mean() - jackknife
    scale = 6 * (away**2).sum() ** 1.5
    acceleration = (away**3).sum() / scale if scale > 0 else 0.0
    edges = bias + norm.ppf([(1 - level) / 2, (1 + level) / 2])
    shares = norm.cdf(bias + edges / (1 - acceleration * edges))
    low, high = np.quantile(finite, shares)
    return Interval(float(low), float(high))


def sign_flip(differences: np.ndarray, rng: np.random.Generator, flips: int = 9999) -> float:
    """Two-sided p of the sum of paired differences under random exchange of the two arms within each patient.

    Exact for up to 12 patients, else by ``flips`` random ones with one added to both counts, so that it is never 0
    (Phipson and Smyth, arXiv 1603.05766).

    Args:
        differences: what each patient adds to the difference of the arms, (patients,).
        rng: for the random flips.
        flips: how many.
    """
    return swap_test(lambda signs: signs @ differences, len(differences), rng, flips)


def swap_test(
    difference: Callable[[np.ndarray], np.ndarray],
    patients: int,
    rng: np.random.Generator,
    flips: int = 9999,
    most_exact: int = EXACT_PATIENTS,
) -> float:
    """The same for any difference that can be recomputed when the arms of some patients are exchanged.

    Args:
        difference: signs (b, patients), -1 where a patient's two arms are exchanged -> differences (b,).
        patients: how many.
        rng: for the random flips.
        flips: how many.
        most_exact: up to so many patients all flips are looked at.
    """
    exact = patients <= most_exact
    if exact:
        signs = 1.0 - 2.0 * ((np.arange(2**patients)[:, None] >> np.arange(patients)) & 1)
    else:
        signs = rng.choice([-1.0, 1.0], (flips, patients))
    observed = abs(float(difference(np.ones((1, patients)))[0]))
    if not np.isfinite(observed):
        return float("nan")
    reached = ~(np.abs(difference(signs)) < observed - 1e-12)  # an exchange without a score counts against
    return float(reached.mean()) if exact else float((reached.sum() + 1) / (flips + 1))


def holm(values: np.ndarray) -> np.ndarray:
    """Adjusted p values that hold the chance of any false alarm (Holm, Scand. J. Statist. 6(2), 1979); NaN stays."""
    adjusted = np.full(len(values), np.nan)
    order = [place for place in np.argsort(values) if np.isfinite(values[place])]
    reached = 0.0
    for rank, place in enumerate(order):
        reached = max(reached, min(1.0, (len(order) - rank) * values[place]))
        adjusted[place] = reached
    return adjusted
