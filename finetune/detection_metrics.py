"""How good found boxes are: mean average precision as COCO counts it, and FROC as LUNA16 does.

Boxes are judged image by image (:func:`judge`), scores are worked out over any set of images (:func:`summary`).
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from finetune.box_geometry import centres, contain, iou, overlaps, sides

IOUS = (0.1, *[round(0.5 + 0.05 * i, 2) for i in range(10)])
"""0.1 is the usual one for lesions in volumes, 0.5 for images; 0.5 to 0.95 is COCO's range."""

FALSE_POSITIVES = (0.125, 0.25, 0.5, 1, 2, 4, 8)
"""Per image, where LUNA16 reads the sensitivity."""

HIT, FALSE, REPEATED = 1, 0, -1


def judge(found: Tensor, boxes: Tensor, labels: Tensor, classes: int) -> dict[str, Tensor]:
    """What each found box is worth.

    **Where the reference knows nothing** (boxes of the class -1 that are not zeros) a found box is neither right nor
    wrong: if its centre lies in such a box, or half of it does (COCO's rule for crowds), and it hits nothing known, it
    is struck out, that is, of the class -1. What it hits is told by IoU 0.1 of its class, or by LUNA16's rule.

    Args:
        found: (b, k, 2 * axes + 2): corners, score, class; class -1 where there is none; the best first.
        boxes: (b, n, 2 * axes) of the reference.
        labels: (b, n) their classes; -1 is no box, or one of which nothing is known.
        classes: how many there are.

    Returns:
        ``score`` and ``class`` of each found box (b, k); ``hits`` (b, k, 11): whether it is a true positive at each of
        :data:`IOUS`; ``froc`` (b, k): 1 first hit of a lesion, -1 a further hit of a lesion, 0 a false positive;
        ``lesions`` (b, classes): boxes of the reference. At least one column each, so that cases can be joined.
    """
    corners, score, kind = found[..., :-2], found[..., -2], found[..., -1].long()
    shared = iou(corners, boxes) * (kind[..., None] == labels[:, None]) * (labels >= 0)[:, None]
    lesions = torch.stack([(labels == value).sum(1) for value in range(classes)], 1)
    hits = true_positives(shared.cpu(), IOUS)
    verdict = _luna(corners.cpu(), kind.cpu() >= 0, boxes.cpu(), labels.cpu() >= 0)
    unsure = _where_unknown(corners, boxes, labels).cpu() & (verdict == FALSE)
    return {
        "score": score,
        "class": torch.where((unsure & ~hits[..., 0]).to(kind.device), -1, kind),
        "hits": hits.to(torch.uint8),
        "froc": torch.where(unsure, REPEATED, verdict),
        "lesions": lesions,
    }


def _where_unknown(corners: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """(b, k): found boxes with their centre, or half of them, in a place of which nothing is known."""
    unknown = (labels < 0)[:, None]
    held = overlaps(corners[:, :, None], boxes[:, None])[0] / sides(corners).prod(-1).clamp_min(1e-9)[..., None]
    centred = contain(boxes, centres(corners)).transpose(1, 2)
    return (unknown & (centred | (held >= 0.5))).any(2)


def true_positives(shared: Tensor, thresholds: tuple[float, ...]) -> Tensor:
    """Greedy matching of COCO: (b, k, t) booleans.

    The best-scored box takes the box of its class that it overlaps most, among those that overlap enough and are not
    taken; then the next one.

    Args:
        shared: IoU (b, k, n), found boxes with the best score first; 0 for boxes of other classes.
        thresholds: least IoU.
    """
    least = torch.tensor(thresholds)
    free = torch.ones(len(shared), len(least), shared.shape[2], dtype=torch.bool)
    hits = torch.zeros(*shared.shape[:2], len(least), dtype=torch.bool)
    if not shared.shape[2]:
        return hits
    for rank in range(shared.shape[1]):
        value, place = torch.where(free, shared[:, rank, None], -1.0).max(2)
        hits[:, rank] = value >= least
        taken = torch.zeros_like(free).scatter(2, place[..., None], hits[:, rank, :, None])
        free &= ~taken
    return hits


def _luna(corners: Tensor, told: Tensor, boxes: Tensor, known: Tensor) -> Tensor:
    """Which found boxes hit a lesion, by LUNA16's rule, whatever their class; see :func:`froc`."""
    verdict = torch.zeros(corners.shape[:2], dtype=torch.int8)
    if not boxes.shape[1]:
        return verdict
    off = (centres(corners)[:, :, None] - centres(boxes)[:, None]) / (sides(boxes)[:, None] / 2).clamp_min(1e-6)
    distance = torch.where((told[..., None] & known[:, None]), off.square().sum(-1), torch.inf)
    free = known.clone()
    for rank in range(corners.shape[1]):
        inside = distance[:, rank] < 1
        value, place = torch.where(free, distance[:, rank], torch.inf).min(1)
        first = value < 1
        verdict[:, rank] = torch.where(first, HIT, torch.where(inside.any(1), REPEATED, FALSE)).to(torch.int8)
        free &= ~torch.zeros_like(free).scatter(1, place[:, None], first[:, None])
    return verdict


def average_precision(score: np.ndarray, hit: np.ndarray, count: int) -> float:
    """Mean over 101 recalls of the best precision at that recall or a higher one, as COCO; NaN without a reference.

    Args:
        score: of found boxes of one class, all images together.
        hit: whether each is a true positive.
        count: boxes of the reference.
    """
    if not count:
        return float("nan")
    order = np.argsort(-score, kind="stable")
    right = np.cumsum(hit[order].astype(float))
    precision = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
    place = np.searchsorted(right / count, np.linspace(0, 1, 101), side="left")
    return float(np.append(precision, 0.0)[place].mean())


def froc(score: np.ndarray, verdict: np.ndarray, images: int, lesions: int) -> np.ndarray:
    """Sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per image (LUNA16, arXiv 1612.08012).

    LUNA16's rule: a finding hits a lesion when its centre is nearer to the lesion's than the lesion's radius (in a box:
    within the ellipsoid that touches its sides). A lesion counts once, by its best-scored hit; further hits of it count
    as nothing, neither right nor wrong. What hits no lesion is a false positive. Between the points of the curve it is
    linear, and beyond its last point it is level.

    Args:
        score: of all found boxes.
        verdict: 1 first hit, -1 further hit, 0 false positive.
        images: how many were looked at, those without lesions too.
        lesions: how many there are.
    """
    if not lesions or not images:
        return np.full(len(FALSE_POSITIVES), np.nan)
    score, verdict = score[verdict != REPEATED], verdict[verdict != REPEATED]
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)[: len(order)]  # equal scores enter together
    right = np.append(0, np.cumsum(verdict[order] == HIT)[last]) / lesions
    wrong = np.append(0, np.cumsum(verdict[order] == FALSE)[last]) / images
    return np.interp(FALSE_POSITIVES, wrong, right)


def summary(cases: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Scores of a set of images from what :func:`judge` says of each.

    ``map_10``, ``map_50`` and ``map_50_95`` are means over the classes that the reference has; ``ap_10_K`` is that of
    class K. ``froc`` is the mean of LUNA16's seven points, ``sensitivity_at_X`` each of them; they ask whether lesions
    were found, not what they were called.
    """
    count = np.asarray(cases["lesions"])
    classes, told = count.shape[1], cases["class"] >= 0
    precision = np.full((classes, len(IOUS)), np.nan)
    for value in range(classes):
        mine = cases["class"] == value
        for place in range(len(IOUS)):
            precision[value, place] = average_precision(
                cases["score"][mine], cases["hits"][..., place][mine], int(count[:, value].sum())
            )
    points = froc(cases["score"][told], cases["froc"][told], len(count), int(count.sum()))
    scores = {"map_10": _mean(precision[:, 0]), "map_50": _mean(precision[:, 1])}
    scores |= {"map_50_95": _mean(precision[:, 1:]), "froc": float(points.mean())}
    scores |= {f"sensitivity_at_{rate:g}": float(value) for rate, value in zip(FALSE_POSITIVES, points, strict=True)}
    if classes > 1:
        scores |= {f"ap_10_{value}": float(precision[value, 0]) for value in range(classes)}
    return scores


def _mean(values: np.ndarray) -> float:
    """Mean of what is a number; NaN if nothing is."""
    has = np.isfinite(values)
    return float(values[has].mean()) if has.any() else float("nan")
