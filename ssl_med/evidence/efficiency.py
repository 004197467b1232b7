"""The label-efficiency ratio: how many labels one arm needs to reach what another reaches with n.

The scores of both arms, over the logarithm of the number of labels, are made monotone (isotonic regression); those of
the arm that is asked are joined by straight lines and read backwards. On a level stretch, where many numbers of labels
give the score, the one nearest to n is taken, so that two equal arms always have the ratio 1. Where the score lies
outside of what was measured the answer is a bound: ``> x`` when even all labels do not reach it, ``< x`` when the
fewest measured already exceed it.
"""

from dataclasses import dataclass

import numpy as np

from ssl_med.evidence.statistics import Spread, stretch

_SAME = 1e-12


@dataclass(frozen=True)
class Ratio:
    """Labels needed over labels given.

    Attributes:
        value: the ratio; infinite where it is only known to be larger than ``most``, minus infinite where it is only
            known to be smaller than ``least``; NaN where it is not known.
        low, high: 95 % interval, in the same way.
        least, most: the smallest and largest ratio that the measured curve can show.
        percentile_low, percentile_high: the interval before it was widened.
    """

    value: float
    low: float
    high: float
    least: float
    most: float
    percentile_low: float = np.nan
    percentile_high: float = np.nan

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
    where, rows, last = np.log(labels), np.arange(len(target)), len(labels) - 1
    known = np.isfinite(target) & np.isfinite(curves).all(1)
    curves, wanted = np.where(known[:, None], curves, 0.0), np.where(known, target, 0.0)
    below, reached = (curves < wanted[:, None] - _SAME).sum(1), (curves <= wanted[:, None] + _SAME).sum(1)
    first, then = np.clip(below - 1, 0, last), np.minimum(below, last)
    level = np.clip(given, labels[then], np.maximum(labels[np.clip(reached - 1, 0, last)], labels[then]))
    rise = curves[rows, then] - curves[rows, first]
    share = (wanted - curves[rows, first]) / np.where(rise > 0, rise, 1.0)
    between = np.exp(where[first] + np.clip(share, 0, 1) * (where[then] - where[first]))
    cases = [~known, below > last, reached == 0, reached > below]  # the last: one point or a level stretch is at it
    return np.select(cases, [np.full(len(rows), value) for value in (np.nan, np.inf, -np.inf)] + [level], between)


@dataclass(frozen=True)
class Sources:
    """The same curves where only one thing is drawn anew, as pairs of baseline and other arm, (b, points) each.

    Attributes:
        patients: test patients are resampled; ``patient_count``: how many there are.
        runs: groups of runs are resampled; ``run_count``: how many there are.
    """

    patients: tuple[np.ndarray, np.ndarray]
    patient_count: int
    runs: tuple[np.ndarray, np.ndarray]
    run_count: int


def label_efficiency(
    labels: np.ndarray, baseline: np.ndarray, other: np.ndarray, sources: Sources | None = None
) -> list[Ratio]:
    """Ratio of the labels that the baseline needs to those that the other arm was given, with a bootstrap interval.

    Args:
        labels: numbers of labels of both curves, rising.
        baseline: its scores, (1 + b, points); the first row is what was observed, the others are resamples.
        other: scores of the other arm, (1 + b, points), in the same resamples.
        sources: of the variance; with them the interval is widened on the log scale for the few groups of runs it rests
            on, see :func:`ssl_med.evidence.statistics.widened`; the plain percentile interval without them.

    Returns:
        One ratio for each number of labels.
    """
    found = []
    for place, given in enumerate(labels.tolist()):
        ends = float(labels[0] / given), float(labels[-1] / given)
        ratios = _ratios(labels, baseline, other, place)
        known = ratios[1:][~np.isnan(ratios[1:])]
        low, high = np.quantile(known, [0.025, 0.975], method="inverted_cdf") if len(known) else (np.nan, np.nan)
        plain = float(low), float(high)
        interval = plain
        if sources is not None and len(known) and not np.isnan(ratios[0]):
            interval = _widened(ratios[0], known, plain, ends, stretch(_spread(labels, sources, place, ends)))
        found.append(Ratio(float(ratios[0]), *interval, *ends, *plain))
    return found


def _ratios(labels: np.ndarray, baseline: np.ndarray, other: np.ndarray, place: int) -> np.ndarray:
    given = float(labels[place])
    return labels_needed(labels, isotonic(baseline), isotonic(other)[:, place], given) / given


def _spread(labels: np.ndarray, sources: Sources, place: int, ends: tuple[float, float]) -> Spread:
    """Variances of the log ratio; what lies beyond the ends counts as lying there, in both alike."""
    parts = []
    for pair in (sources.patients, sources.runs):
        ratios = _ratios(labels, *pair, place)
        logs = np.log(np.clip(ratios[~np.isnan(ratios)], *ends))
        parts.append(float(logs.var(ddof=1)) if len(logs) > 1 else 0.0)
    return Spread(parts[0], sources.patient_count, parts[1] if sources.run_count > 1 else 0.0, sources.run_count)


def _widened(
    observed: float, ratios: np.ndarray, plain: tuple[float, float], ends: tuple[float, float], factor: float
) -> tuple[float, float]:
    """Both ends of the interval, stretched on the log scale; an end beyond what was measured is infinite.

    An interval that is all of it beyond stays as it is: nothing says how far away it would end.
    """
    if plain[0] == plain[1] and np.isinf(plain[0]) and (ratios == plain[0]).all():
        return plain
    logs, where = _log(ratios), _log(np.array([observed, *plain, *ends]))
    low = _lower(where[0], logs, where[1], where[4], factor)
    high = -_lower(-where[0], -logs, -where[2], -where[3], factor)
    return _told(low, where[3], where[4]), _told(high, where[3], where[4])


def _lower(observed: float, values: np.ndarray, low: float, most: float, factor: float) -> float:
    """The lower end; where the observed value, or the end itself, lies beyond ``most``, a normal curve stands for it.

    It has the share of resamples below ``most`` that there is, and their quantile at 2.5 % (or at half of the share).
    """
    from scipy.stats import norm

    if low == -np.inf or observed == -np.inf:
        return -np.inf
    if np.isfinite(observed) and np.isfinite(low):
        return observed - factor * (observed - low)
    share = float(np.clip((values < np.inf).mean(), 1 / (2 * len(values)), 1 - 1 / (2 * len(values))))
    level = min(0.025, share / 2)
    quantile = float(np.quantile(values, level, method="inverted_cdf"))
    if not np.isfinite(quantile):
        return quantile
    at_share, at_level, at_low = (float(norm.ppf(value)) for value in (share, level, 0.025))
    width = (most - quantile) / (at_share - at_level)
    centre = max(most, most - at_share * width)
    low = low if np.isfinite(low) else centre + at_low * width
    return centre - factor * (centre - low)


def _log(ratios: np.ndarray) -> np.ndarray:
    """Logarithm; minus infinity stands for a ratio below the least and stays."""
    return np.where(ratios > 0, np.log(np.where(ratios > 0, ratios, 1.0)), -np.inf)


def _told(end: float, least: float, most: float) -> float:
    """A ratio from its logarithm; infinite beyond what was measured."""
    if least - _SAME <= end <= most + _SAME:
        return float(np.exp(end))
    return float("inf") if end > most else float("-inf")
