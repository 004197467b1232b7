"""Scores of classes, findings, grades and numbers, as plain functions of arrays; what is undefined is NaN."""

import numpy as np
from scipy.stats import rankdata


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve (Mann-Whitney, ties count half); NaN unless both kinds of case occur."""
    count = int(positive.sum())
    if not 0 < count < len(positive):
        return float("nan")
    ranks = float(rankdata(score)[positive].sum())
    return (ranks - count * (count + 1) / 2) / (count * (len(positive) - count))


def average_precision(score: np.ndarray, positive: np.ndarray) -> float:
    """Sum of precision times gain of recall over all thresholds, as scikit-learn; NaN without a positive case."""
    if not positive.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.append(np.diff(score[order]) != 0, True)  # the end of each run of equal scores
    recall, precision = hits[last] / hits[-1], hits[last] / (np.flatnonzero(last) + 1)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def f1(guess: np.ndarray, positive: np.ndarray) -> float:
    """2 tp / (2 tp + fp + fn); NaN where the kind occurs neither in the reference nor in the guesses."""
    below = int(guess.sum() + positive.sum())
    return 2 * float((guess & positive).sum()) / below if below else float("nan")


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599): 15 bins of equal width over (0, 1].

    Sum over bins of their share of the cases times |share that is right - mean confidence|.

    Args:
        confidence: probability of what was answered, (n,).
        right: whether the answer was right, (n,).
        bins: number of bins.
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(place, right.astype(float) - confidence, bins)
    return float(np.abs(gap).sum() / len(confidence)) if len(confidence) else float("nan")


def brier(probability: np.ndarray, label: np.ndarray) -> float:
    """Mean squared distance of the probabilities (n, k) from the one-hot label, summed over classes: 0 to 2."""
    truth = np.eye(probability.shape[1])[label]
    return float(((probability - truth) ** 2).sum(1).mean())


def negative_log_likelihood(probability: np.ndarray, label: np.ndarray) -> float:
    """Mean of -log of the probability of what is true; probabilities below 1e-12 count as that."""
    return float(-np.log(np.clip(probability[np.arange(len(label)), label], 1e-12, 1)).mean())


def quadratic_kappa(guess: np.ndarray, grade: np.ndarray, grades: int) -> float:
    """Cohen's kappa with quadratic weights: 1 - observed over expected squared distance; NaN where all is one grade."""
    table = np.bincount(guess * grades + grade, minlength=grades**2).reshape(grades, grades)
    cost = (np.arange(grades)[:, None] - np.arange(grades)) ** 2
    expected = np.outer(table.sum(1), table.sum(0)) / max(table.sum(), 1)
    below = float((cost * expected).sum())
    return 1 - float((cost * table).sum()) / below if below else float("nan")


def classes_found(probability: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Every score of probabilities (n, k) of classes against labels (n,).

    Means over classes (balanced accuracy, AUROC, AP: each class against the rest) are over those that occur in the
    reference; F1 is over those that occur in the reference or among the guesses, as scikit-learn. A score that needs
    two classes is NaN where there is one.
    """
    guess, found = probability.argmax(1), np.unique(label)
    kinds = np.union1d(found, guess)
    several = len(found) > 1
    recall = [float((guess[label == kind] == kind).mean()) for kind in found]
    area = [auroc(probability[:, kind], label == kind) for kind in found if several]
    precision = [average_precision(probability[:, kind], label == kind) for kind in found if several]
    confidence = probability.max(1)
    return {
        "balanced_accuracy": _mean(recall),
        "accuracy": float((guess == label).mean()),
        "auroc": _mean(area),
        "average_precision": _mean(precision),
        "f1": _mean([f1(guess == kind, label == kind) for kind in kinds]),
        "calibration_error": calibration_error(confidence, guess == label),
        "brier": brier(probability, label),
        "negative_log_likelihood": negative_log_likelihood(probability, label),
    }


def findings_found(probability: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores of probabilities (n, k) of findings against labels (n, k): means over the findings that can be scored.

    Unknown labels (-1) are left out. A finding that is known of no case, or there in all or in none of the cases, has
    no AUROC and is left out of that mean. F1 and ``calibration_error`` hold 0.5 for the limit and the answer's own
    probability for the confidence; Brier and log-likelihood are over all known findings.
    """
    known = labels >= 0
    columns = [(probability[k, i], labels[k, i] == 1) for i, k in enumerate(known.T) if k.any()]
    flat, truth = probability[known], labels[known] == 1
    both = np.stack([1 - flat, flat], 1)
    scores = {
        "auroc": _mean([auroc(score, there) for score, there in columns]),
        "average_precision": _mean([average_precision(score, there) for score, there in columns]),
        "f1": _mean([f1(score > 0.5, there) for score, there in columns]),
        "calibration_error": calibration_error(both.max(1), (flat > 0.5) == truth),
        "brier": float(((flat - truth) ** 2).mean()),
        "negative_log_likelihood": negative_log_likelihood(both, truth.astype(int)),
    }
    areas = {f"auroc_{i}": auroc(probability[k, i], labels[k, i] == 1) for i, k in enumerate(known.T)}
    return {**scores, **areas}


def numbers_found(guess: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """R2 (share of the variance explained), mean absolute error and Pearson's correlation of numbers (n,)."""
    error, spread = guess - truth, truth - truth.mean()
    variance, width = float((spread**2).sum()), float(guess.std() * truth.std())
    both = float(((guess - guess.mean()) * spread).mean())
    return {
        "r2": 1 - float((error**2).sum()) / variance if variance else float("nan"),
        "mean_absolute_error": float(np.abs(error).mean()),
        "pearson": both / width if width else float("nan"),
    }


def _mean(values: list[float]) -> float:
    """Mean of the defined values; NaN if there is none."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
