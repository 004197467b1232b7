"""Weighted sums that scores of many resamples are made of: weights (b, n) of n cases, one row for each resample."""

from collections.abc import Iterator, Sequence

import numpy as np

_ENTRIES = 1 << 18
"""Numbers in one block of resamples: small enough to stay in a processor's cache."""


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotient; NaN where there is nothing to divide by."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


def nanmean(value: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of the cases that have a number, (b,); NaN where none has."""
    has = np.isfinite(value)
    return ratio(weights @ np.where(has, value, 0.0), weights @ has)


def mean_of(parts: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Mean of scores (b,) of classes over those that are a number; NaN where none is.

    Args:
        parts: of each class.
        count: resamples b, also where there is no class.
    """
    scores = np.stack(parts, 1) if parts else np.empty((count, 0))
    has = np.isfinite(scores)
    return ratio(np.where(has, scores, 0.0).sum(1), has.sum(1))


def area(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve (Mann-Whitney, ties count half), (b,); NaN unless both kinds of case occur.

    Args:
        score: of each case, (n,).
        positive: which cases are of the kind, (n,).
        weights: (b, n).
    """
    ordered = np.argsort(score[~positive], kind="stable")
    rest, points = np.flatnonzero(~positive)[ordered], np.flatnonzero(positive)
    places = [np.searchsorted(score[rest], score[points], side) for side in ("left", "right")]
    found = np.full(len(weights), np.nan)
    for rows in blocks(len(weights), len(score)):
        above = weights[rows].take(points, 1)
        total = running(weights[rows].take(rest, 1))
        below = total.take(places[0], 1) + total.take(places[1], 1)
        found[rows] = ratio((above * below).sum(1) / 2, above.sum(1) * total[:, -1])
    return found


def average_precision(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum of precision times gain of recall over all thresholds, as scikit-learn, (b,); NaN without a positive case.

    Args:
        score: of each case, (n,).
        positive: which cases are of the kind, (n,).
        weights: (b, n).
    """
    order = np.argsort(-score, kind="stable")
    points = np.flatnonzero(positive[order])
    ends = np.searchsorted(-score[order], -score[order][points], "right")  # equal scores enter together
    reached = np.searchsorted(points, ends, "left")
    found = np.full(len(weights), np.nan)
    for rows in blocks(len(weights), len(score)):
        ordered = weights[rows].take(order, 1)
        own = ordered.take(points, 1)
        hits, total = running(own), running(ordered)
        precision = np.nan_to_num(ratio(hits.take(reached, 1), total.take(ends, 1)))
        found[rows] = ratio((own * precision).sum(1), hits[:, -1])
    return found


def running(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ..., n numbers of each row, (b, n + 1)."""
    total = np.zeros((len(values), values.shape[1] + 1))
    np.cumsum(values, 1, out=total[:, 1:])
    return total


def blocks(rows: int, width: int) -> Iterator[slice]:
    """All rows, so many at a time as bound the memory for rows of this width."""
    step = max(1, _ENTRIES // max(1, width))
    return (slice(first, first + step) for first in range(0, rows, step))
