"""Boxes that cover a drawn share of an image (the cut-out of Swin UNETR's pretraining, arXiv 2111.14791)."""

import torch
from jaxtyping import Bool
from torch import Tensor

from ssl_med.ops.constants import constant
from ssl_med.ops.random import Draws

BOXES = {1: 24, 2: 64, 3: 256}
"""Boxes drawn for an image of so many axes; 30 % of it take about 18 in 2D and 120 in 3D."""


def covered_boxes(
    draws: Draws, space: tuple[int, ...], most: float, side: tuple[float, float]
) -> Bool[Tensor, "b 1 *space"]:
    """Voxels inside boxes that are added until their volumes reach a share of the image uniform in [0, ``most``).

    A box begins anywhere but in the last shortest side of an axis, its sides are uniform, and what stands out of the
    image is cut off. Volumes are added up as if boxes did not overlap, and the last box may exceed the share.

    Args:
        draws: one row per image.
        space: voxels along each axis.
        most: largest share.
        side: shortest and longest side as a share of the axis, in voxels at least one.
    """
    count, axes, device = BOXES[len(space)], len(space), draws.keys.device
    length = constant(space, device)
    low, high = ((length * share).floor().clamp(min=1).long() for share in side)
    wanted = draws.uniform(high=most) * length.double().prod()
    corner = (draws.uniform(count, axes).double() * (length - low + 1)).long()
    drawn = low + (draws.uniform(count, axes).double() * (high - low + 1)).long()
    sides = torch.minimum(drawn, length - corner)
    volume = sides.double().prod(-1)
    used = volume.cumsum(1) - volume < wanted[:, None]
    return inside_any(space, corner, torch.where(used[..., None], sides, 0))


def inside_any(space: tuple[int, ...], corners: Tensor, sides: Tensor) -> Bool[Tensor, "b 1 *space"]:
    """Voxels that lie in at least one box, from one matrix product per image.

    A voxel lies in a box if it does so along every axis: the product of the axes' indicators, summed over the boxes, is
    their number, and it is above 0 at any precision of the product.

    Args:
        space: voxels along each axis.
        corners: (b, m, n) first voxels.
        sides: (b, m, n) voxels along each axis; 0 for no box.
    """
    within = []
    for axis, length in enumerate(space):
        place, first = torch.arange(length, device=corners.device), corners[..., axis, None]
        within.append(((place >= first) & (place < first + sides[..., axis, None])).float())
    *others, last = within  # (b, m, length) each
    rows = others[0] if others else torch.ones_like(last[..., :1])
    for other in others[1:]:
        rows = (rows[..., :, None] * other[..., None, :]).flatten(2)
    return (rows.transpose(1, 2) @ last > 0).reshape(len(corners), 1, *space)
