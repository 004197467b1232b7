"""Weighted scores of predicted numbers: ``prediction`` and ``value`` of each case, NaN where the number is unknown."""

from collections.abc import Mapping

import numpy as np

from ssl_med.evidence.weighted import ratio

Values = Mapping[str, np.ndarray]
_NOTHING = 1e-14
"""A variance below this share of the squared size of the numbers is the rounding of numbers that are all equal."""


def r2(values: Values, weights: np.ndarray) -> np.ndarray:
    """Share of the variance explained, of the cases with a number; NaN where all numbers are equal."""
    guess, truth, own = _known(values, weights)
    return 1 - ratio(own @ (guess - truth) ** 2, _variance(truth, own) * own.sum(1))


def pearson(values: Values, weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation, of the cases with a number; NaN where all of either are equal."""
    guess, truth, own = _known(values, weights)
    width = np.sqrt(_variance(guess, own) * _variance(truth, own))
    guess, truth = _centred(guess), _centred(truth)
    mean = [ratio(own @ value, own.sum(1)) for value in (guess * truth, guess, truth)]
    return ratio(mean[0] - mean[1] * mean[2], width)


def error_parts(values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Distance of the prediction from the number, and whether each case counts."""
    truth = np.asarray(values["value"], float)
    known = np.isfinite(truth)
    return np.where(known, np.abs(np.asarray(values["prediction"], float) - truth), 0.0), known


def _known(values: Values, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    truth = np.asarray(values["value"], float)
    known = np.isfinite(truth)
    return np.asarray(values["prediction"], float)[known], truth[known], weights[:, known]


def _centred(value: np.ndarray) -> np.ndarray:
    """Less their mean over all cases, so that sums of squares lose no digits."""
    return value - value.mean() if len(value) else value


def _variance(value: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Variance of each resample; 0 for what is only rounding."""
    size = np.abs(value).max(initial=0.0) ** 2
    value = _centred(value)
    total = weights.sum(1)
    found = ratio(weights @ value**2, total) - ratio(weights @ value, total) ** 2
    return np.where(found > _NOTHING * size, found, 0.0)
