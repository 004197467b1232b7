"""Weighted scores of classes, findings and grades: what ``finetune.metrics`` says of cases that are written out.

The kind of task shows in what is known of a case: ``labels`` (n, k) of findings, -1 or NaN where one is not known, or
the ``label`` (n,) of classes and of grades, -1 where it is not known; beside them stands the ``probability`` (n, k).
"""

from collections.abc import Mapping

import numpy as np

from ssl_med.evidence.weighted import area, average_precision, mean_of, ratio

Values = Mapping[str, np.ndarray]
_BINS = 15


def auroc(values: Values, weights: np.ndarray) -> np.ndarray:
    """Mean area under the ROC curve, ties count half, over the classes or findings that can be scored.

    The area is the chance that a case of the class scores above one of the rest (Mann-Whitney). A class that occurs in
    all or in none of the cases of a resample, or a finding that is known of none, is left out of its mean.
    """
    found = [area(score, there, weights[:, known]) for score, there, known in _columns(values)]
    return mean_of(found, len(weights))


def auroc_of(finding: int, values: Values, weights: np.ndarray) -> np.ndarray:
    """The area of one finding."""
    probability, labels = np.asarray(values["probability"], float)[:, finding], np.asarray(values["labels"])[:, finding]
    known = labels >= 0
    return area(probability[known], labels[known] == 1, weights[:, known])


def precision(values: Values, weights: np.ndarray) -> np.ndarray:
    """Mean average precision over the classes or findings that occur; of classes only where there are several."""
    found = []
    for score, there, known in _columns(values):
        own = weights[:, known]
        value = average_precision(score, there, own)
        if "labels" not in values:
            value = np.where(own @ ~there > 0, value, np.nan)
        found.append(value)
    return mean_of(found, len(weights))


def f1(values: Values, weights: np.ndarray) -> np.ndarray:
    """Mean of 2 tp / (2 tp + fp + fn) over the classes or findings that occur in the reference or the answers."""
    found = []
    if "labels" in values:
        pairs = [(score > 0.5, there, known) for score, there, known in _columns(values)]
    else:
        guess, label = guessed(values)
        known = label >= 0
        kinds = np.union1d(guess[known], label[known])
        pairs = [(guess[known] == kind, label[known] == kind, known) for kind in kinds]
    for told, there, known in pairs:
        own = weights[:, known]
        found.append(ratio(2.0 * (own @ (told & there)), own @ told + own @ there))
    return mean_of(found, len(weights))


def balanced_accuracy(values: Values, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes present of the share of right cases of each."""
    guess, label = guessed(values)
    shares = []
    for value in np.unique(label[label >= 0]):
        of_class = weights[:, label == value]
        shares.append(ratio(of_class @ (guess == label)[label == value], of_class.sum(1)))
    return mean_of(shares, len(weights))


def quadratic_kappa(values: Values, weights: np.ndarray) -> np.ndarray:
    """Cohen's kappa with quadratic weights: 1 - observed over expected squared distance; NaN where all is one grade."""
    grade, label = _grades(values)
    known = label >= 0
    own, guess, truth = weights[:, known], grade[known].astype(float), label[known].astype(float)
    moments = own @ guess**2 + own @ truth**2
    expected = moments - 2 * ratio((own @ guess) * (own @ truth), own.sum(1))
    return 1 - ratio(own @ (guess - truth) ** 2, expected)


def calibration_error(values: Values, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error (Guo et al., arXiv 1706.04599) in 15 bins of equal width over (0, 1]."""
    confidence, right, known = _answers(values)
    place = np.clip(np.ceil(np.where(known, confidence, 0.0) * _BINS).astype(int) - 1, 0, _BINS - 1)
    gaps = np.where(known, right - confidence, 0.0)
    of_bins = np.stack([np.where(place == value, gaps, 0.0).sum(1) for value in range(_BINS)], 1)
    return ratio(np.abs(weights @ of_bins).sum(1), weights @ known.sum(1))


def accuracy_parts(values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Whether each case is right, and whether it counts."""
    guess, label = guessed(values)
    return ((guess == label) & (label >= 0)).astype(float), label >= 0


def brier_parts(values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Squared distance from the reference of each case, and how often it counts: for each known finding, or once."""
    probability = np.asarray(values["probability"], float)
    if "labels" in values:
        labels = np.asarray(values["labels"])
        known = labels >= 0
        return np.where(known, (probability - (labels == 1)) ** 2, 0.0).sum(1), known.sum(1)
    label = np.asarray(values["label"])
    truth = label[:, None] == np.arange(probability.shape[1])
    return np.where(label >= 0, ((probability - truth) ** 2).sum(1), 0.0), label >= 0


def likelihood_parts(values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Minus the logarithm of the probability of what is true, and how often each case counts, as the Brier score."""
    probability = np.asarray(values["probability"], float)
    if "labels" in values:
        labels = np.asarray(values["labels"])
        known = labels >= 0
        of_truth = np.where(labels == 1, probability, 1 - probability)
        return np.where(known, -np.log(np.clip(of_truth, 1e-12, 1)), 0.0).sum(1), known.sum(1)
    label = np.asarray(values["label"])
    of_truth = probability[np.arange(len(label)), np.maximum(label, 0)]
    return np.where(label >= 0, -np.log(np.clip(of_truth, 1e-12, 1)), 0.0), label >= 0


def grade_error_parts(values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Distance of the decoded grade from the reference, and whether each case counts."""
    grade, label = _grades(values)
    return np.where(label >= 0, np.abs(grade - label), 0).astype(float), label >= 0


def guessed(values: Values) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest class and the reference."""
    return np.asarray(values["probability"]).argmax(1), np.asarray(values["label"])


def _grades(values: Values) -> tuple[np.ndarray, np.ndarray]:
    """The lowest grade up to which the probabilities add up to one half or more, and the reference."""
    return (np.asarray(values["probability"]).cumsum(1)[:, :-1] < 0.5).sum(1), np.asarray(values["label"])


def _columns(values: Values) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each class or finding, one against the rest: score and presence in the known cases, and which are known."""
    probability = np.asarray(values["probability"], float)
    if "labels" in values:
        labels = np.asarray(values["labels"])
        known = labels >= 0
        return [(probability[k, i], labels[k, i] == 1, k) for i, k in enumerate(known.T)]
    label = np.asarray(values["label"])
    known = label >= 0
    return [(probability[known, value], label[known] == value, known) for value in np.unique(label[known])]


def _answers(values: Values) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence, whether the answer is right, whether it is known: (n, k) of findings, (n, 1) of classes."""
    probability = np.asarray(values["probability"], float)
    if "labels" in values:
        labels = np.asarray(values["labels"])
        return np.maximum(probability, 1 - probability), (probability > 0.5) == (labels == 1), labels >= 0
    guess, label = guessed(values)
    confidence = probability[np.arange(len(label)), guess]
    return confidence[:, None], (guess == label)[:, None], (label >= 0)[:, None]
