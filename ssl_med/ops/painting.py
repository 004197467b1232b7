"""Boxes of noise, and noise around boxes (in-painting and out-painting of Models Genesis, arXiv 1908.06912)."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssl_med.ops.streams import compiled_for, noise


def paint_(
    image: Float[Tensor, "b c z y x"],
    keys: Int[Tensor, " b"],
    corners: Int[Tensor, "b k 3"],
    sides: Int[Tensor, "b k 3"],
    inward: Bool[Tensor, " b"],
    low: Float[Tensor, "b c"],
    span: Float[Tensor, "b c"],
    chosen: Bool[Tensor, " b"],
) -> Float[Tensor, "b c z y x"]:
    """Replace the inside or the outside of boxes by uniform noise, the same for all channels.

    Every voxel has one number of its own, also where boxes overlap: the last box would have drawn another one of the
    same distribution, so the law is that of one block of noise per box. ``image`` may be overwritten; what counts is
    the answer.

    Args:
        image: float32 volumes; images have z = 1.
        keys: random key of each image's noise.
        corners: first voxel of each box.
        sides: its voxels along each axis; 0 for no box.
        inward: noise inside the boxes; otherwise everywhere but in the boxes.
        low, span: noise lies in low .. low + span, per channel.
        chosen: the others stay as they are.
    """
    if compiled_for(image):
        from ssl_med.ops import corruption_kernels

        image = image.contiguous()
        parts = (image, keys, corners, sides, inward, low, span, chosen)
        corruption_kernels.paint(*(part.numpy() for part in parts))
        return image
    voxels = image.shape[2] * image.shape[3] * image.shape[4]
    grey = noise(keys, voxels)[:, None]
    grey = (low[..., None] + span[..., None] * grey).reshape(image.shape)
    replaced = inside_boxes(image.shape[2:], corners, sides) == inward[:, None, None, None]
    replaced = replaced & chosen[:, None, None, None]
    return torch.where(replaced[:, None], grey, image)


def inside_boxes(
    space: Sequence[int], corners: Int[Tensor, "b k 3"], sides: Int[Tensor, "b k 3"]
) -> Bool[Tensor, "b z y x"]:
    """Voxels that lie in at least one box."""
    inside = torch.ones((), dtype=torch.bool, device=corners.device)
    for axis, length in enumerate(space):
        place = torch.arange(length, device=corners.device)
        first = corners[..., axis, None]
        within = (place >= first) & (place < first + sides[..., axis, None])
        inside = inside & within.reshape(*within.shape[:2], *[length if a == axis else 1 for a in range(3)])
    return inside.any(1)
