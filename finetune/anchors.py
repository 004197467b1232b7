"""Anchors, one for each cell of a pyramid, and which of them answers for which box (ATSS, arXiv 1912.02424)."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finetune.box_geometry import centres, iou


def anchors_of(
    grids: Sequence[tuple[int, ...]], strides: Sequence[tuple[int, ...]], size: float, device: torch.device
) -> Float[Tensor, "m corners"]:
    """One box around the middle of every cell, ``size`` cells long, level after level.

    Args:
        grids: cells of each level along each axis.
        strides: voxels per cell of each level.
        size: side in cells.
        device: where to.
    """
    levels = []
    for grid, stride in zip(grids, strides, strict=True):
        step = torch.tensor(stride, device=device, dtype=torch.float32)
        places = [torch.arange(count, device=device, dtype=torch.float32) for count in grid]
        middle = (torch.stack(torch.meshgrid(*places, indexing="ij"), -1).flatten(0, -2) + 0.5) * step
        levels.append(torch.cat([middle - step * size / 2, middle + step * size / 2], 1))
    return torch.cat(levels)


def assign(
    boxes: Float[Tensor, "b n corners"],
    known: Bool[Tensor, "b n"],
    anchors: Float[Tensor, "m corners"],
    level_sizes: Sequence[int],
    candidates: int = 9,
) -> Int[Tensor, "b m"]:
    """The box that each anchor answers for, or -1.

    Of every level the ``candidates`` anchors nearest to a box are looked at. Those are taken that overlap it by at
    least the mean plus the standard deviation of all candidates' IoU, and whose centre lies inside. An anchor that
    several boxes want goes to the one it overlaps most. Two things differ from ATSS: the deviation is that of the
    candidates themselves (divided by n, not n - 1; with two levels, one of which fits, the other would put the
    threshold above the best candidate), and a box that gets none, being smaller than a cell, takes its best candidate.

    Args:
        boxes: of each image.
        known: lines that are boxes.
        anchors: of all levels.
        level_sizes: anchors of each level.
        candidates: 9 in the paper, 4 in MONAI's 3D detection.
    """
    if not boxes.shape[1]:
        return torch.full((len(boxes), len(anchors)), -1, device=boxes.device)
    anchors = anchors.to(boxes.dtype)
    shared = iou(boxes, anchors)
    chosen = _nearest(boxes, anchors, level_sizes, candidates)
    among = shared.gather(2, chosen)
    enough = among.mean(2) + among.std(2, correction=0)
    taken = (among >= enough[..., None]) & _inside(boxes, centres(anchors)[chosen])
    best = torch.zeros_like(taken).scatter(2, among.argmax(2, keepdim=True), True)
    taken = (taken | (best & ~taken.any(2, keepdim=True))) & known[..., None]
    wanted = torch.full_like(shared, -1.0).scatter(2, chosen, torch.where(taken, among, -1.0))
    value, box = wanted.max(1)
    return torch.where(value >= 0, box, -1)


def _nearest(boxes: Tensor, anchors: Tensor, level_sizes: Sequence[int], count: int) -> Tensor:
    """Places (b, n, k) of the anchors of each level whose centres are nearest to those of the boxes."""
    distance = torch.cdist(centres(boxes), centres(anchors)[None], compute_mode="donot_use_mm_for_euclid_dist")
    chosen, start = [], 0
    for size in level_sizes:
        level = distance[..., start : start + size]
        chosen.append(level.topk(min(count, size), dim=2, largest=False).indices + start)
        start += size
    return torch.cat(chosen, 2)


def _inside(boxes: Float[Tensor, "b n corners"], points: Float[Tensor, "b n k d"]) -> Bool[Tensor, "b n k"]:
    axes = points.shape[-1]
    low, high = boxes[:, :, None, :axes], boxes[:, :, None, axes:]
    return torch.minimum(points - low, high - points).amin(-1) > 0.01
