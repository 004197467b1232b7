"""Scores of a set of cases under case weights, many weightings at once: what a bootstrap over patients recomputes.

A weight is how often a case is in a resample. Balanced accuracy, AUROC and Dice of classes are not means over cases, so
they are worked out anew for every resample and not averaged from per-case numbers. All scores that the shipped heads
report are known here, but for those by size; any other is recomputed by the task itself on the repeated cases, one
resample at a time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf

import numpy as np

from ssl_med.evidence import box_scores, class_scores, number_scores
from ssl_med.evidence.weighted import mean_of, nanmean, ratio

Values = Mapping[str, np.ndarray]
"""What there is to know of each case, name -> (n, ...), as a task's ``score`` gave it."""
Score = Callable[[Values, np.ndarray], np.ndarray]
"""(values of n cases, weights (b, n)) -> (b,) scores; NaN where a resample holds no case that counts."""
Parts = Callable[[Values], tuple[np.ndarray, np.ndarray]]
"""Values of n cases -> what each adds to a mean, and how often it counts there, both (n,)."""

_ERRORS = ("mean_absolute_error", "calibration_error", "brier", "negative_log_likelihood")
_OF_CASES = ("dice_", "hd95_", "surface_dice_", "extra_")


def score_of(metric: str) -> Score | None:
    """The vectorised score of that name; None for one that only its task knows.

    It raises KeyError for cases of a task that keeps other facts under this name.
    """
    if metric in _WHOLE:
        return _WHOLE[metric]
    if metric in _MEANS:
        return partial(_mean, _MEANS[metric])
    if metric.startswith(_OF_CASES):
        return lambda values, weights: nanmean(np.asarray(values[metric], float), weights)
    start, _, number = metric.rpartition("_")
    if start == "auroc" and number.isdigit():
        return partial(class_scores.auroc_of, int(number))
    if start == "ap_10" and number.isdigit():
        return partial(box_scores.mean_precision, metric)
    if start == "sensitivity_at":
        return partial(box_scores.sensitivity, float(number))
    return None


def less_is_better(metric: str) -> bool:
    """Errors, distances and what is found where nothing is; all other scores are better when they are larger."""
    return metric in _ERRORS or metric.startswith(("hd95", "extra_"))


def limits(metric: str) -> tuple[float, float]:
    """The smallest and the largest value that a score can have; infinite where it is not known here."""
    if metric in ("quadratic_kappa", "pearson"):
        return -1.0, 1.0
    if metric == "r2":
        return -inf, 1.0
    if metric == "brier":
        return 0.0, 2.0
    if metric in ("mean_absolute_error", "negative_log_likelihood") or metric.startswith(("hd95_", "extra_")):
        return 0.0, inf
    return (0.0, 1.0) if score_of(metric) is not None else (-inf, inf)


@dataclass
class Recomputed:
    """A score that a task computes from cases: each resample is written out and summarised.

    Attributes:
        summarise: scores of a set of cases, by name.
        metric: which of them.
    """

    summarise: Callable[[Values], Mapping[str, float]]
    metric: str

    def __call__(self, values: Values, weights: np.ndarray) -> np.ndarray:
        """(b,) scores of the cases under weights (b, n)."""
        places = [np.repeat(np.arange(len(row)), row.astype(int)) for row in weights]
        repeated = ({name: value[place] for name, value in values.items()} for place in places)
        return np.array([self.summarise(cases)[self.metric] for cases in repeated], float)


def recomputed(summarise: Callable[[Values], Mapping[str, float]], metric: str) -> Recomputed:
    """See :class:`Recomputed`."""
    return Recomputed(summarise, metric)


def dice(values: Values, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes of the mean Dice over the cases that have the class."""
    parts = [np.asarray(value, float) for name, value in values.items() if _is_class_dice(name)]
    return mean_of([nanmean(part, weights) for part in parts], len(weights))


def contributions(metric: str, values: Values) -> np.ndarray | None:
    """What each case adds to the score of the whole set, (n,), summing to it; None for scores that are no such sum.

    With it a change of arm for one patient changes the score by a known amount, so sign-flip tests are exact and cheap.
    """
    try:
        return _contributions(metric, values)
    except KeyError:  # the task keeps other facts about its cases under this metric's name
        return None


def _contributions(metric: str, values: Values) -> np.ndarray | None:
    if metric in _MEANS:
        added, count = _MEANS[metric](values)
        return added / max(1, count.sum())
    if metric == "balanced_accuracy":
        guess, label = class_scores.guessed(values)
        known = label >= 0
        classes, place, count = np.unique(label[known], return_inverse=True, return_counts=True)
        added = np.zeros(len(label))
        added[known] = (guess == label)[known] / count[place] / len(classes)
        return added
    if metric == "dice" or (metric.startswith(_OF_CASES) and metric in values):
        names = [metric] if metric != "dice" else [name for name in values if _is_class_dice(name)]
        parts = np.stack([np.asarray(values[name], float) for name in names])
        has = np.isfinite(parts)
        met = has.any(1)
        return (np.where(has, parts, 0.0) / has.sum(1, keepdims=True).clip(1))[met].sum(0) / max(1, met.sum())
    return None


def _mean(parts: Parts, values: Values, weights: np.ndarray) -> np.ndarray:
    added, count = parts(values)
    return ratio(weights @ added, weights @ count)


def _errors(values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Of numbers and of grades."""
    return (number_scores.error_parts if "value" in values else class_scores.grade_error_parts)(values)


def _is_class_dice(name: str) -> bool:
    return name.startswith("dice_") and name[5:].isdigit()


_MEANS: dict[str, Parts] = {
    "accuracy": class_scores.accuracy_parts,
    "brier": class_scores.brier_parts,
    "negative_log_likelihood": class_scores.likelihood_parts,
    "mean_absolute_error": _errors,
}
_WHOLE: dict[str, Score] = {
    "balanced_accuracy": class_scores.balanced_accuracy,
    "auroc": class_scores.auroc,
    "average_precision": class_scores.precision,
    "f1": class_scores.f1,
    "calibration_error": class_scores.calibration_error,
    "quadratic_kappa": class_scores.quadratic_kappa,
    "r2": number_scores.r2,
    "pearson": number_scores.pearson,
    "dice": dice,
    "froc": box_scores.froc,
    "map_10": partial(box_scores.mean_precision, "map_10"),
    "map_50": partial(box_scores.mean_precision, "map_50"),
    "map_50_95": partial(box_scores.mean_precision, "map_50_95"),
}
