"""The vocabulary of the library: what a batch, a backbone's features and a task's losses are. Read me first.

Axes in every annotation: ``b`` batch, ``c`` channels, ``*space`` voxels, ``*grid`` patches, ``n`` tokens, ``v`` visible
tokens, ``d`` width (or the number of spatial axes in ``spacing``). Space is in memory order: (z, y, x) for volumes and
(y, x) for images, with voxels in RAS orientation, so ``spacing`` and every crop size are given in that order too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Required, TypedDict

from jaxtyping import Bool, Float, Int
from torch import Tensor


class Batch(TypedDict, total=False):
    """What travels: collated samples on one device. A *view* is a Batch too. Only ``image`` is always there."""

    image: Required[Float[Tensor, "b c *space"]]
    spacing: Float[Tensor, "b d"]  # mm per voxel along *space
    valid: Bool[Tensor, "b 1 *space"]  # False where a small image was padded up to the crop; absent: all is valid
    saliency: Float[Tensor, "b 1 *space"]  # what a task asks for; absent otherwise
    mask: Int[Tensor, "b 1 *space"]  # voxel labels; -1 = unlabelled
    label: Tensor  # (b,) class (or grade, for ordinal targets) of the whole image; -1 = unlabelled
    labels: Int[Tensor, "b k"]  # several findings: 1, 0, or -1 = unknown
    boxes: Float[Tensor, "b m faces"]  # lowest *space, highest *space (faces, in voxels), class; lines of -1 are no box
    key: Int[Tensor, " b"]  # random key of each sample, a function of (seed, its global position)
    id: list[str]  # keyed hash of the sample, never a path


@dataclass(frozen=True)
class Features:
    """What every backbone answers.

    Attributes:
        pooled: one vector per image, (b, embed_dim).
        maps: feature maps (b, channels[i], \\*grid_i), fine to coarse; ``strides[i]`` voxels per cell along each axis.
    """

    pooled: Float[Tensor, "b d"]
    maps: list[Tensor]


Losses = Mapping[str, Tensor]
"""What a task returns: ``loss`` is minimised, every entry is logged under its name."""
