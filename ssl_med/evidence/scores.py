"""Scores of a set of cases under case weights, many weightings at once: what a bootstrap over patients recomputes.

A weight is how often a case is in a resample. Balanced accuracy, AUROC and Dice of classes are not means over cases, so
they are worked out anew for every resample and not averaged from per-case numbers. A score that is not known here is
recomputed by the task itself on the repeated cases, one resample at a time.
"""

from collections.abc import Callable, Mapping

import numpy as np

Values = Mapping[str, np.ndarray]
"""What there is to know of each case, name -> (n, ...), as a task's ``score`` gave it."""
Score = Callable[[Values, np.ndarray], np.ndarray]
"""(values of n cases, weights (b, n)) -> (b,) scores; NaN where a resample holds no case that counts."""


def score_of(metric: str) -> Score | None:
    """The vectorised score of that name; None for one that only its task knows."""
    fixed = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy, "auroc": auroc, "dice": dice}
    if metric.startswith("dice_"):
        return lambda values, weights: _nanmean(np.asarray(values[metric], float), weights)
    return fixed.get(metric)


def less_is_better(metric: str) -> bool:
    """Errors, distances and what is found where nothing is; all other scores are better when they are larger."""
    errors = ("mean_absolute_error", "calibration_error", "brier", "negative_log_likelihood")
    return metric in errors or metric.startswith(("hd95", "extra_"))


def recomputed(summarise: Callable[[Values], Mapping[str, float]], metric: str) -> Score:
    """A score that a task computes from cases: each resample is written out and summarised.

    Args:
        summarise: scores of a set of cases, by name.
        metric: which of them.
    """

    def score(values: Values, weights: np.ndarray) -> np.ndarray:
        places = [np.repeat(np.arange(len(row)), row.astype(int)) for row in weights]
        found = [summarise({name: value[place] for name, value in values.items()})[metric] for place in places]
        return np.array(found, float)

    return score


def accuracy(values: Values, weights: np.ndarray) -> np.ndarray:
    """Share of right cases among those with a label."""
    right, label = _right(values)
    return _ratio(weights @ np.where(label >= 0, right, 0.0), weights @ (label >= 0))


def balanced_accuracy(values: Values, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes present of the share of right cases of each."""
    right, label = _right(values)
    shares = []
    for value in np.unique(label[label >= 0]):
        of_class = weights[:, label == value]
        shares.append(_ratio(of_class @ right[label == value], of_class.sum(1)))
    return _mean_of(np.stack(shares, 1))


def auroc(values: Values, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes present of the area under the ROC curve, one class against the rest; ties count half.

    The area is the chance that a case of the class scores above one of the rest (Mann-Whitney).
    """
    probability, label = np.asarray(values["probability"], float), np.asarray(values["label"])
    probability, weights, label = probability[label >= 0], weights[:, label >= 0], label[label >= 0]
    found = [_area(probability[:, value], label == value, weights) for value in np.unique(label)]
    return _mean_of(np.stack(found, 1))


def _area(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    sorted_weights, is_positive = weights[:, order], positive[order]
    above = np.add.reduceat(sorted_weights * is_positive, starts, 1)
    rest = np.add.reduceat(sorted_weights * ~is_positive, starts, 1)
    below = np.cumsum(rest, 1) - 0.5 * rest
    return _ratio((above * below).sum(1), above.sum(1) * rest.sum(1))


def dice(values: Values, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes of the mean Dice over the cases that have the class."""
    parts = [np.asarray(value, float) for name, value in values.items() if _is_class_dice(name)]
    return _mean_of(np.stack([_nanmean(part, weights) for part in parts], 1))


def contributions(metric: str, values: Values) -> np.ndarray | None:
    """What each case adds to the score of the whole set, (n,), summing to it; None for scores that are no such sum.

    With it a change of arm for one patient changes the score by a known amount, so sign-flip tests are exact and cheap.
    """
    if metric in ("accuracy", "balanced_accuracy"):
        right, label = _right(values)
        known = label >= 0
        if metric == "accuracy":
            return np.where(known, right, 0.0) / max(1, known.sum())
        classes, place, count = np.unique(label[known], return_inverse=True, return_counts=True)
        added = np.zeros(len(label))
        added[known] = right[known] / count[place] / len(classes)
        return added
    if metric == "dice" or _is_class_dice(metric):
        names = [metric] if metric != "dice" else [name for name in values if _is_class_dice(name)]
        parts = np.stack([np.asarray(values[name], float) for name in names])
        has = np.isfinite(parts)
        met = has.any(1)
        return (np.where(has, parts, 0.0) / has.sum(1, keepdims=True).clip(1))[met].sum(0) / max(1, met.sum())
    return None


def _is_class_dice(name: str) -> bool:
    return name.startswith("dice_") and name[5:].isdigit()


def _right(values: Values) -> tuple[np.ndarray, np.ndarray]:
    label = np.asarray(values["label"])
    return (np.asarray(values["probability"]).argmax(1) == label).astype(float), label


def _nanmean(value: np.ndarray, weights: np.ndarray) -> np.ndarray:
    has = np.isfinite(value)
    return _ratio(weights @ np.where(has, value, 0.0), weights @ has)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)


def _mean_of(parts: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is a number; NaN where nothing is."""
    has = np.isfinite(parts)
    return _ratio(np.where(has, parts, 0.0).sum(1), has.sum(1))
