"""Nearest neighbours among feature vectors: votes with few labels, and retrieval."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_ROWS = 1024  # of a block: bounds the similarity matrix


def nearest(bank: np.ndarray, asked: np.ndarray, count: int, same: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` rows of the bank that are most similar to each row that is asked, nearest first.

    Args:
        bank: (m, d).
        asked: (n, d).
        count: of neighbours; all of the bank if it has fewer.
        same: the rows that are asked are the bank itself, and no row is its own neighbour.

    Returns:
        places in the bank (n, count) and cosine similarities (n, count).
    """
    count = min(count, len(bank) - same)
    units, others = _unit(bank), _unit(asked)
    places, values = np.empty((len(asked), count), np.int64), np.empty((len(asked), count))
    for first in range(0, len(asked), _ROWS):
        similarity = others[first : first + _ROWS] @ units.T
        rows = np.arange(len(similarity))
        if same:
            similarity[rows, first + rows] = -np.inf
        near = np.argsort(-similarity, 1, kind="stable")[:, :count]
        places[first : first + _ROWS] = near
        values[first : first + _ROWS] = np.take_along_axis(similarity, near, 1)
    return places, values


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, float)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)


def vote(
    bank: np.ndarray, labels: np.ndarray, asked: np.ndarray, classes: int, count: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """Share of each class in a vote of the nearest rows weighted by exp(cosine / temperature), (n, classes).

    Wu et al., arXiv 1805.01978, with the numbers of DINO.

    Args:
        bank: features of labelled images (m, d).
        labels: their classes.
        asked: features (n, d).
        classes: how many there are.
        count: of neighbours.
        temperature: of the weights.
    """
    places, similarity = nearest(bank, asked, count)
    weight = np.exp((similarity - similarity[:, :1]) / temperature)  # only ratios count: no overflow
    shares = np.zeros((len(asked), classes))
    np.add.at(shares, (np.arange(len(asked))[:, None], labels[places]), weight)
    return shares / shares.sum(1, keepdims=True)


def retrieval(features: np.ndarray, labels: np.ndarray | Sequence[int], count: int) -> dict[str, Any]:
    """For each image its neighbours, and how often they share its class.

    Args:
        features: (n, d).
        labels: class of each; -1 = unlabelled.
        count: of neighbours.

    Returns:
        ``places`` and ``similarity`` (n, count); ``precision``: class -> (mean share of labelled neighbours of the same
        class, images asked), over images with a label.
    """
    known = np.asarray(labels)
    places, similarity = nearest(features, features, count, same=True)
    near = known[places]
    seen = (near >= 0).sum(1)
    share = np.divide((near == known[:, None]).sum(1), seen, out=np.full(len(known), np.nan), where=seen > 0)
    asked = (known >= 0) & (seen > 0)
    classes = np.unique(known[asked])
    precision = {
        int(value): (float(share[asked & (known == value)].mean()), int((asked & (known == value)).sum()))
        for value in classes
    }
    return {"places": places, "similarity": similarity, "precision": precision}


def principal_axes(features: np.ndarray, axes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along the directions of largest variance (n, axes), and the share of the variance of each.

    The sign of each axis is the one whose largest entry is positive, so that the picture repeats.
    """
    centred = np.asarray(features, float) - np.mean(features, 0)
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    sign = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])[:axes]
    total = float((values**2).sum())
    shares = values[:axes] ** 2 / total if total > 0 else np.zeros(axes)
    return left[:, :axes] * values[:axes] * sign, shares
