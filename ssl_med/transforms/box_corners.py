"""Boxes that move with their images: corners through a map, and what is left of them in the new picture."""

import itertools

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssl_med.ops.constants import constant

_LEAST = 1e-3
"""Voxels: a line without a box stays one however it is turned."""


def mirrored(
    boxes: Float[Tensor, "b n corners"], chosen: Bool[Tensor, " b"], axis: int, size: int
) -> Float[Tensor, "b n corners"]:
    """Boxes of the chosen images, mirrored along an axis of ``size`` voxels."""
    axes = boxes.shape[2] // 2
    low, high = boxes[..., axis], boxes[..., axes + axis]
    moved = boxes.clone()
    moved[..., axis] = torch.where(chosen[:, None], size - high, low)
    moved[..., axes + axis] = torch.where(chosen[:, None], size - low, high)
    return moved


def transposed(
    boxes: Float[Tensor, "b n corners"], chosen: Bool[Tensor, " b"], first: int, second: int
) -> Float[Tensor, "b n corners"]:
    """Boxes of the chosen images with two axes swapped."""
    axes = boxes.shape[2] // 2
    order = list(range(axes))
    order[first], order[second] = second, first
    swapped = boxes.unflatten(2, (2, axes))[..., order].flatten(2)
    return torch.where(chosen[:, None, None], swapped, boxes)


def enclosing(
    boxes: Float[Tensor, "b n corners"], matrix: Float[Tensor, "b d d"], offset: Float[Tensor, "b d"]
) -> Float[Tensor, "b n corners"]:
    """The straight boxes around boxes mapped by ``matrix @ corner + offset``."""
    axes = boxes.shape[2] // 2
    ends = boxes.unflatten(2, (2, axes))
    picks = constant(list(itertools.product((0, 1), repeat=axes)), boxes.device)
    corners = ends[:, :, picks, torch.arange(axes, device=boxes.device)]  # (b, n, 2 ** d, d)
    moved = (corners[..., None, :] * matrix[:, None, None]).sum(-1) + offset[:, None, None]  # in full precision
    return torch.cat([moved.amin(2), moved.amax(2)], 2)


def settled(
    boxes: Float[Tensor, "b n corners"], labels: Int[Tensor, "b n"], size: tuple[int, ...]
) -> tuple[Float[Tensor, "b n corners"], Int[Tensor, "b n"]]:
    """Boxes clipped to a picture of ``size`` voxels; of the class -1 where it does not show the centre.

    What it shows of those is kept, since it is no background; of what it does not show at all the line is zeros.
    """
    axes = len(size)
    limit = constant(size, boxes.device, boxes.dtype)
    centre = (boxes[..., :axes] + boxes[..., axes:]) / 2
    kept = ((centre >= 0) & (centre < limit)).all(2) & (labels >= 0)
    clipped = torch.minimum(boxes.clamp_min(0), limit.repeat(2))
    shown = kept | (clipped[..., axes:] - clipped[..., :axes] > _LEAST).all(2)
    return torch.where(shown[..., None], clipped, 0.0), torch.where(kept, labels, -1)
