"""Boxes as rows of lowest corner, highest corner along space, in voxels; 2D and 3D alike."""

from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_LARGEST = 4.0
"""Of the logarithm of a side in anchors: e^4 = 55 times as long."""


def sides(boxes: Float[Tensor, "*rows corners"]) -> Float[Tensor, "*rows d"]:
    """Lengths along each axis."""
    axes = boxes.shape[-1] // 2
    return boxes[..., axes:] - boxes[..., :axes]


def centres(boxes: Float[Tensor, "*rows corners"]) -> Float[Tensor, "*rows d"]:
    """Middles."""
    axes = boxes.shape[-1] // 2
    return (boxes[..., :axes] + boxes[..., axes:]) / 2


def contain(boxes: Float[Tensor, "b n corners"], points: Float[Tensor, "*more m d"]) -> Bool[Tensor, "b n m"]:
    """Which points lie inside which box; in one without extent none."""
    axes = points.shape[-1]
    points = points.unsqueeze(-3)
    return ((points >= boxes[..., None, :axes]) & (points < boxes[..., None, axes:])).all(-1)


def overlaps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of boxes (..., 2 * axes) that broadcast against each other."""
    axes = first.shape[-1] // 2
    low = torch.maximum(first[..., :axes], second[..., :axes])
    high = torch.minimum(first[..., axes:], second[..., axes:])
    shared = (high - low).clamp_min(0).prod(-1)
    return shared, sides(first).prod(-1) + sides(second).prod(-1) - shared


def iou(first: Float[Tensor, "*b n corners"], second: Float[Tensor, "*c m corners"]) -> Float[Tensor, "*d n m"]:
    """Intersection over union of every box with every box; boxes without extent share nothing."""
    shared, union = overlaps(first[..., :, None, :], second[..., None, :, :])
    return shared / union.clamp_min(1e-9)


def generalised_iou(first: Float[Tensor, "n corners"], second: Float[Tensor, "n corners"]) -> Float[Tensor, " n"]:
    """IoU of pairs less the share of their hull that neither fills: -1 to 1 (arXiv 1902.09630)."""
    axes = first.shape[-1] // 2
    shared, union = overlaps(first, second)
    low = torch.minimum(first[:, :axes], second[:, :axes])
    high = torch.maximum(first[:, axes:], second[:, axes:])
    hull = (high - low).prod(-1).clamp_min(1e-9)
    return shared / union.clamp_min(1e-9) - (hull - union) / hull


def decode(moves: Float[Tensor, "*rows corners"], anchors: Float[Tensor, "*more corners"]) -> Tensor:
    """Boxes from anchors: centre + side * move, side * exp(growth), as in R-CNN (arXiv 1311.2524).

    Args:
        moves: moves of the centre, then growths, along each axis.
        anchors: that broadcast against them.
    """
    axes = anchors.shape[-1] // 2
    length = sides(anchors)
    middle = centres(anchors) + length * moves[..., :axes]
    half = length * moves[..., axes:].clamp(-_LARGEST, _LARGEST).exp() / 2
    return torch.cat([middle - half, middle + half], -1)


def clipped(boxes: Float[Tensor, "n corners"], space: tuple[int, ...]) -> Float[Tensor, "n corners"]:
    """Boxes cut at the faces of an image."""
    limit = torch.tensor(space, device=boxes.device, dtype=boxes.dtype)
    return torch.minimum(boxes.clamp_min(0), limit.repeat(2))


def without_repeats(
    boxes: Float[Tensor, "n corners"],
    scores: Float[Tensor, " n"],
    classes: Int[Tensor, " n"],
    overlap: float,
    most: int,
) -> Int[Tensor, " m"]:
    """Places of the boxes to keep, the best score first: none with one of its class above an IoU (MONAI's NMS)."""
    from monai.data.box_utils import batched_nms

    return cast(Tensor, batched_nms(boxes, scores, classes, overlap, most)).long()
