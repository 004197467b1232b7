"""Weighted scores of found boxes: ``finetune.detection_metrics.summary`` of images that are written out.

What is known of an image: ``score``, ``class`` (-1 is no box), ``hits`` (at each IoU) and ``froc`` of its found boxes,
and ``lesions``, boxes of the reference by class. The boxes are put in order once; the cumulated numbers of boxes, which
both curves are made of, are then sums over images, one matrix product for all resamples.
"""

from collections.abc import Mapping

import numpy as np

from ssl_med.evidence.weighted import blocks, mean_of, ratio, running

Values = Mapping[str, np.ndarray]
_PLACES = {"map_10": [0], "map_50": [1], "map_50_95": list(range(1, 11))}
"""Where ``hits`` holds the IoU of a score; 0.1 comes first, then 0.5, 0.55, ..."""
_RATES = (0.125, 0.25, 0.5, 1, 2, 4, 8)
_LEVELS = np.linspace(0, 1, 101)
_HIT, _FALSE = 1, 0


def mean_precision(metric: str, values: Values, weights: np.ndarray) -> np.ndarray:
    """Mean over classes and IoUs of :func:`precision`: ``map_10``, ``map_50``, ``map_50_95``; of a class ``ap_10_K``.

    Raises:
        KeyError: there is no such score.
    """
    if metric.startswith("ap_10_"):
        return precision(values, int(metric[6:]), 0, weights)
    classes = np.asarray(values["lesions"]).shape[1]
    found = [precision(values, value, place, weights) for value in range(classes) for place in _PLACES[metric]]
    return mean_of(found, len(weights))


def precision(values: Values, value: int, place: int, weights: np.ndarray) -> np.ndarray:
    """COCO's average precision of a class at an IoU, (b,): NaN where a resample has no box of it in the reference.

    Among the boxes only the hits matter: the best precision at a recall or beyond is always reached at one. Boxes of an
    image that is in a resample w times come w times in a row, which changes neither that nor the recalls.

    Args:
        values: of the images.
        value: class.
        place: of the IoU.
        weights: (b, images), whole numbers.
    """
    mine = np.asarray(values["class"]) == value
    score, hit = np.asarray(values["score"])[mine], np.asarray(values["hits"])[..., place][mine].astype(bool)
    order = np.argsort(-score, kind="stable")
    hit, image = hit[order], np.nonzero(mine)[0][order]
    unit, hit, units = _in_order(score[order], hit, image, weights)
    ends = np.flatnonzero(hit)
    counts = _cumulated(unit, ends, units.shape[1])
    lesions = weights @ np.asarray(values["lesions"])[:, value]
    found = np.full(len(weights), np.nan)
    for rows in blocks(len(weights), 4 * len(ends)):
        right = running(units[rows].take(unit[ends], 1))[:, 1:]
        reached = ratio(right, units[rows] @ counts)
        best = np.maximum.accumulate(np.nan_to_num(reached)[:, ::-1], 1)[:, ::-1]
        recall = ratio(right, np.broadcast_to(lesions[rows, None], right.shape))
        below = np.searchsorted(_LEVELS, recall, "right")
        levels = np.diff(below, axis=1, prepend=0)
        found[rows] = np.where(lesions[rows] > 0, (levels * best).sum(1) / len(_LEVELS), np.nan)
    return found


def froc(values: Values, weights: np.ndarray) -> np.ndarray:
    """Mean of the seven sensitivities of :func:`sensitivity`."""
    return _sensitivities(values, weights).mean(1)


def sensitivity(rate: float, values: Values, weights: np.ndarray) -> np.ndarray:
    """Share of lesions found at so many false positives per image (LUNA16, arXiv 1612.08012), (b,).

    Raises:
        KeyError: not one of LUNA16's seven rates.
    """
    if rate not in _RATES:
        raise KeyError(f"sensitivity_at_{rate:g}")
    return _sensitivities(values, weights)[:, _RATES.index(rate)]


def _sensitivities(values: Values, weights: np.ndarray) -> np.ndarray:
    """(b, 7); NaN where a resample has no lesion.

    Equal scores enter together. The curve is level where boxes are false positives only: of those points the last one
    before each hit says all, so that there are two points for each hit and not one for each box.
    """
    verdict = np.asarray(values["froc"])
    counted = (np.asarray(values["class"]) >= 0) & ((verdict == _HIT) | (verdict == _FALSE))
    score, verdict, image = np.asarray(values["score"])[counted], verdict[counted], np.nonzero(counted)[0]
    order = np.argsort(-score, kind="stable")
    score, is_hit, image = score[order], verdict[order] == _HIT, image[order]
    last = np.flatnonzero(np.append(np.diff(score) != 0, True)[: len(score)])
    with_hit = np.flatnonzero(np.diff(np.append(0, np.cumsum(is_hit)[last])))
    ends = np.unique(np.append(last[np.union1d(with_hit, np.maximum(with_hit - 1, 0))], last[-1:]))
    right, wrong = (_cumulated(image, ends, weights.shape[1], kind) for kind in (is_hit, ~is_hit))
    lesions = weights @ np.asarray(values["lesions"]).sum(1)
    found = np.full((len(weights), len(_RATES)), np.nan)
    for rows in blocks(len(weights), 4 * len(ends)):
        some = np.flatnonzero(lesions[rows] > 0) + rows.start
        share = weights[some] @ np.pad(right, ((0, 0), (1, 0))) / lesions[some, None]
        per_image = weights[some] @ np.pad(wrong, ((0, 0), (1, 0))) / weights[some].sum(1, keepdims=True)
        found[some] = _read(per_image, share)
    return found


def _read(wrong: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Curves (b, points) at the seven rates, as ``numpy.interp``: the last of equal places, level beyond the end."""
    row, found = np.arange(len(wrong)), np.empty((len(wrong), len(_RATES)))
    for column, rate in enumerate(_RATES):
        place = (wrong <= rate).sum(1) - 1
        after = np.minimum(place + 1, wrong.shape[1] - 1)
        rise, run = right[row, after] - right[row, place], wrong[row, after] - wrong[row, place]
        slope = np.divide(rise, run, out=np.zeros(len(row)), where=run > 0)
        found[:, column] = slope * (rate - wrong[row, place]) + right[row, place]
    return found


def _cumulated(unit: np.ndarray, ends: np.ndarray, units: int, counted: np.ndarray | None = None) -> np.ndarray:
    """How many boxes each unit has up to each end, (units, ends): the cumulated numbers are weights @ this.

    Args:
        unit: of each box, in order.
        ends: places of boxes, rising.
        units: how many there are.
        counted: which boxes count; all by default.
    """
    chosen = np.arange(len(unit)) if counted is None else np.flatnonzero(counted)
    segment = np.searchsorted(ends, chosen, "left")
    inside = segment < len(ends)
    found = np.zeros((units, len(ends)))
    np.add.at(found, (unit[chosen][inside], segment[inside]), 1.0)
    return np.cumsum(found, 1)


def _in_order(
    score: np.ndarray, hit: np.ndarray, image: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes as they stand when images are written out: the unit that each belongs to, hits, weights (b, units).

    The unit is the image for nearly all boxes. Equal scores of one image, some of them hits, are no such row: an image
    that is there twice has hit, miss, hit, miss. They are written out, and there once for each copy of the image.
    """
    same = (np.diff(score) == 0) & (np.diff(image) == 0)
    group = np.append(0, np.cumsum(~same))[: len(score)]
    share = np.bincount(group, hit) / np.bincount(group)
    mixed = ((share > 0) & (share < 1))[group]
    if not mixed.any():
        return image, hit, weights
    copies = int(weights[:, np.unique(image[mixed])].max())
    own = np.unique(image[mixed])
    parts = [np.clip(weights[:, [value]] - np.arange(copies), 0, 1) for value in own]
    order, unit = [], []
    for boxes in np.split(np.arange(len(score)), np.flatnonzero(~same) + 1):
        first = boxes[0]
        at = weights.shape[1] + int(np.searchsorted(own, image[first])) * copies
        for number in range(at, at + copies) if mixed[first] else [image[first]]:
            order.append(boxes)
            unit.append(np.full(len(boxes), number))
    return np.concatenate(unit), hit[np.concatenate(order)], np.concatenate([weights, *parts], 1)
