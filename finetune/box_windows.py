"""Detection in images larger than the window: where windows lie, and which of two windows has the say."""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from finetune.box_geometry import centres

Window = tuple[tuple[int, ...], tuple[int, ...]]
"""First voxel and number of voxels along each axis."""


def windows_over(space: Sequence[int], window: Sequence[int], overlap: float) -> list[Window]:
    """Windows that cover an image evenly and share at least ``overlap`` of their length with their neighbours.

    An image shorter than the window along an axis has a shorter window there.
    """
    lengths = [min(length, size) for length, size in zip(window, space, strict=True)]
    starts = []
    for size, length in zip(space, lengths, strict=True):
        step = max(1, math.floor(length * (1 - overlap)))
        count = -(-(size - length) // step) + 1
        starts.append([round(i * (size - length) / max(1, count - 1)) for i in range(count)])
    return [(corner, tuple(lengths)) for corner in itertools.product(*starts)]


def has_the_say(
    boxes: Float[Tensor, "n corners"], window: Window, space: Sequence[int], overlap: float
) -> Bool[Tensor, " n"]:
    """Whether boxes of a window count: their centre is not in the outer quarter of the part shared with a neighbour.

    There the neighbour sees more of the box. The quarters leave each other room, so a box found by both a little
    displaced is not lost to either.

    Args:
        boxes: in voxels of the image.
        window: in which they were found.
        space: voxels of the image.
        overlap: of windows.
    """
    corner, lengths = window
    middle, counts = centres(boxes), torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    for axis, (start, length, size) in enumerate(zip(corner, lengths, space, strict=True)):
        rim = length * overlap / 4
        if start > 0:
            counts &= middle[:, axis] >= start + rim
        if start + length < size:
            counts &= middle[:, axis] < start + length - rim
    return counts
