"""The label-efficiency ratio: how many labels one arm needs to reach what another reaches with n.

The scores of both arms, over the logarithm of the number of labels, are made monotone (isotonic regression); those of
the arm that is asked are joined by straight lines and read backwards. On a level stretch, where many numbers of labels
give the score, the one nearest to n is taken, so that two equal arms always have the ratio 1. Where the score lies
outside of what was measured the answer is a bound: ``> x`` when even all labels do not reach it, ``< x`` when the
fewest measured already exceed it.
"""

from dataclasses import dataclass

import numpy as np

_SAME = 1e-12


@dataclass(frozen=True)
class Ratio:
    """Labels needed over labels given.

    Attributes:
        value: the ratio; infinite where it is only known to be larger than ``most``, minus infinite where it is only
            known to be smaller than ``least``; NaN where it is not known.
        low, high: 95 % interval, in the same way.
        least, most: the smallest and largest ratio that the measured curve can show.
    """

    value: float
    low: float
    high: float
    least: float
    most: float

    def text(self) -> str:
        """``4.2``, ``> 10`` or ``< 1``."""
        return self.say(self.value)

    def interval(self) -> str:
        """``2.1 to > 10``."""
        return "not known" if np.isnan(self.low) else f"{self.say(self.low)} to {self.say(self.high)}"

    def say(self, value: float) -> str:
        """One of the numbers, or the bound that stands for it."""
        if np.isnan(value):
            return "not known"
        if np.isinf(value):
            return f"> {self.most:.3g}" if value > 0 else f"< {self.least:.3g}"
        return f"{value:.3g}"


def isotonic(scores: np.ndarray) -> np.ndarray:
    """Nearest non-decreasing curve in least squares along the last axis, by the max-min formula of the block means.

    ``f_j = max over i <= j of min over k >= j of mean(y_i .. y_k)`` (Barlow et al., Statistical Inference under Order
    Restrictions, 1972); curves have a handful of points, so all means are simply taken.
    """
    points = scores.shape[-1]
    sums = np.concatenate([np.zeros((*scores.shape[:-1], 1)), np.cumsum(scores, -1)], -1)
    first, last = np.arange(points)[:, None], np.arange(points)[None]
    means = (sums[..., 1:][..., None, :] - sums[..., :-1][..., :, None]) / np.maximum(last - first + 1, 1)
    fitted = [means[..., : j + 1, j:].min(-1).max(-1) for j in range(points)]
    return np.stack(fitted, -1)


def labels_needed(labels: np.ndarray, curves: np.ndarray, target: np.ndarray, given: float) -> np.ndarray:
    """Labels at which monotone curves reach their targets: ``(points,), (b, points), (b,) -> (b,)``.

    Infinite where a curve never does, minus infinite where it begins above, nearest to ``given`` on a level stretch.
    """
    where, needed = np.log(labels), np.full(len(target), np.nan)
    for row, (curve, wanted) in enumerate(zip(curves, target, strict=True)):
        if not (np.isfinite(wanted) and np.isfinite(curve).all()):
            continue
        below, reached = int((curve < wanted - _SAME).sum()), int((curve <= wanted + _SAME).sum())
        if below == len(curve):
            needed[row] = np.inf
        elif reached == 0:
            needed[row] = -np.inf
        elif reached > below:  # one point or a level stretch is at the target
            needed[row] = np.clip(given, labels[below], labels[reached - 1])
        else:
            share = (wanted - curve[below - 1]) / (curve[below] - curve[below - 1])
            needed[row] = np.exp(where[below - 1] + share * (where[below] - where[below - 1]))
    return needed


def label_efficiency(labels: np.ndarray, baseline: np.ndarray, other: np.ndarray) -> list[Ratio]:
    """Ratio of the labels that the baseline needs to those that the other arm was given, with a bootstrap interval.

    Args:
        labels: numbers of labels of both curves, rising.
        baseline: its scores, (1 + b, points); the first row is what was observed, the others are resamples.
        other: scores of the other arm, (1 + b, points), in the same resamples.

    Returns:
        One ratio for each number of labels.
    """
    curves, targets, found = isotonic(baseline), isotonic(other), []
    for place, given in enumerate(labels.tolist()):
        ratios = labels_needed(labels, curves, targets[:, place], given) / given
        known = ratios[1:][~np.isnan(ratios[1:])]
        low, high = np.quantile(known, [0.025, 0.975], method="inverted_cdf") if len(known) else (np.nan, np.nan)
        ends = float(labels[0] / given), float(labels[-1] / given)
        found.append(Ratio(float(ratios[0]), float(low), float(high), *ends))
    return found
