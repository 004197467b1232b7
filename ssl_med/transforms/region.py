"""Crops that contain a given box, at a random offset (lesion-based contrast, arXiv 2107.08274)."""

from typing import cast

import torch
from torch import Tensor

from ssl_med.ops.constants import constant
from ssl_med.ops.random import Draws
from ssl_med.ops.regions import Boxes
from ssl_med.transforms.box_corners import settled
from ssl_med.transforms.spatial import least
from ssl_med.types import Batch

_VOXELS = ("image", "saliency", "mask", "valid")


def crop_corner(boxes: Boxes, size: tuple[int, ...], space: tuple[int, ...], draws: Draws) -> Tensor:
    """First voxel of a crop that holds the whole box, (b, axes); it may lie outside the image.

    The law of the paper's code along each axis: the slack (crop minus box) is shared out between both sides; a box of
    width w that begins before ``length - w`` gets int(U * min(room before it, slack)) of it before, any other box the
    same seen from the other end. The crop of an image without a box lies anywhere inside it.

    Args:
        boxes: no longer than the crop.
        size: voxels of the crop along each axis.
        space: voxels of the images.
        draws: one stream per image.
    """
    device = boxes.lower.device
    sizes, lengths = (constant(values, device) for values in (size, space))
    width = boxes.upper - boxes.lower
    slack = (sizes - width).clamp(min=0)
    chance = draws.uniform(len(size))
    before = (chance * torch.minimum(boxes.lower, slack)).long()
    after = (chance * torch.minimum(lengths - boxes.upper, slack)).long()
    near_start = boxes.lower < lengths - width
    around = torch.where(near_start, boxes.lower - before, boxes.lower - (slack - after))
    anywhere = (draws.uniform(len(size)) * (lengths - sizes + 1).clamp(min=1)).long()
    return torch.where(boxes.found[:, None], around, anywhere)


def crop(batch: Batch, corner: Tensor, size: tuple[int, ...]) -> Batch:
    """Cut all that has voxels, without interpolation; what lies outside an image is its least value, like air.

    Outside, the mask is -1, the saliency 0, and nothing is valid. Boxes move along, clipped to the crop.

    Args:
        batch: images.
        corner: first voxel of each crop, (b, axes).
        size: voxels of the crop along each axis.
    """
    image = batch["image"]
    valid = batch.get("valid", torch.ones_like(image[:, :1], dtype=torch.bool))
    whole, cut = {**batch, "valid": valid}, dict(batch)
    for key in _VOXELS:
        if key in whole:
            cut[key] = _cut(whole[key], corner, size, _outside(key, whole[key]))
    if "boxes" in batch and "box_labels" in batch:
        moved = batch["boxes"] - corner.repeat(1, 2)[:, None]
        cut["boxes"], cut["box_labels"] = settled(moved, batch["box_labels"], size)
    return cast(Batch, cut)


def _outside(key: str, x: Tensor) -> Tensor:
    return least(x) if key == "image" else torch.full_like(x[:1, :1].flatten()[:1], -1 if key == "mask" else 0)


def _cut(x: Tensor, corner: Tensor, size: tuple[int, ...], outside: Tensor) -> Tensor:
    beyond = torch.zeros([len(x), 1, *size], dtype=torch.bool, device=x.device)
    for axis, length in enumerate(size):
        place = corner[:, axis, None] + torch.arange(length, device=x.device)
        shape = [len(x), 1, *[length if other == axis else 1 for other in range(len(size))]]
        beyond = beyond | ((place < 0) | (place >= x.shape[2 + axis])).reshape(shape)
        target = [*x.shape]
        target[2 + axis] = length
        index = place.clamp(0, x.shape[2 + axis] - 1).reshape(shape).expand(target)
        x = x.gather(2 + axis, index)
    return torch.where(beyond, outside, x)
