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

MODALITIES = ("", "CT", "MR", "PT", "US", "CR", "DX", "MG", "NM", "XA", "RF", "OP", "OPT", "SM", "ES", "XC")
"""DICOM's words for modalities; their places are the numbers in a batch, so new ones are added at the end."""


def modality_code(word: str) -> int:
    """Place of a modality in :data:`MODALITIES`; 0 where it is none of them."""
    return MODALITIES.index(word) if word in MODALITIES else 0


class Batch(TypedDict, total=False):
    """What travels: collated samples on one device. A *view* is a Batch too. Only ``image`` is always there.

    Boxes are float32 (b, n, 2 * axes): the lowest corner, then the highest, each along *space (z, y, x, or y, x), in
    voxels of this batch's ``image``. They are faces: the voxel 3 alone is a box from 3 to 4, and an image of 96 voxels
    goes from 0 to 96. A crop keeps the boxes whose centre it shows, clipped to it. ``n`` is the largest number of boxes
    that an image of the split has; lines beyond an image's own, and boxes that left the picture, have ``box_labels`` -1
    and hold zeros. They need not stand at the end: choose by ``box_labels >= 0``. A line of -1 that is not zeros is a
    place where nothing is known, or what is seen of a box whose centre is out of the picture: no box, and no background
    either. Transforms of geometry move boxes with the image (a turned box becomes the straight one around it); views
    that cut several crops leave them out.
    """

    image: Required[Float[Tensor, "b c *space"]]
    spacing: Float[Tensor, "b d"]  # mm per voxel along *space
    valid: Bool[Tensor, "b 1 *space"]  # False where a small image was padded up to the crop; absent: all is valid
    saliency: Float[Tensor, "b 1 *space"]  # what a task asks for; absent otherwise
    mask: Int[Tensor, "b 1 *space"]  # voxel labels; -1 = unlabelled
    label: Tensor  # (b,) class (or grade, for ordinal targets) of the whole image; -1 = unlabelled
    labels: Int[Tensor, "b k"]  # several findings: 1, 0, or -1 = unknown
    value: Float[Tensor, " b"]  # a measured number, such as an age or a volume; always known where it is there
    boxes: Float[Tensor, "b n corners"]  # lowest, then highest corner, see below; lines without any box are zeros
    box_labels: Int[Tensor, "b n"]  # class of each box; -1 = none, or not known where the line is not zeros
    modality: Int[Tensor, " b"]  # place in MODALITIES; 0 = unknown or none of them
    key: Int[Tensor, " b"]  # random key of each sample, a function of (seed, its global position)
    id: list[str]  # keyed hash of the sample, never a path


@dataclass(frozen=True)
class Features:
    """What every backbone answers.

    Attributes:
        pooled: one vector per image, (b, embed_dim).
        maps: feature maps (b, channels[i], \\*grid_i), fine to coarse; ``strides[i]`` voxels per cell along each axis.
        token: the class token of each image (b, embed_dim); None of backbones without one.
    """

    pooled: Float[Tensor, "b d"]
    maps: list[Tensor]
    token: Float[Tensor, "b d"] | None = None


Losses = Mapping[str, Tensor]
"""What a task returns: ``loss`` is minimised, every entry is logged under its name."""
