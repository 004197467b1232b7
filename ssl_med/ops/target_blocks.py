"""Blocks of patches to predict and a block to predict them from (I-JEPA, arXiv 2301.08243), for any number of axes."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssl_med.ops import ranks
from ssl_med.ops.constants import constant
from ssl_med.ops.patches import patch_centres
from ssl_med.ops.random import Draws

Range = tuple[float, float]


class Blocks(NamedTuple):
    """Which patches are seen and which are predicted.

    Attributes:
        context: (b, v) patches that are seen.
        targets: (b, m, t) patches of each of m target blocks, in raster order.
        grid: patches along each axis.
    """

    context: Int[Tensor, "b v"]
    targets: Int[Tensor, "b m t"]
    grid: tuple[int, ...]


def block_sides(draws: Draws, grid: tuple[int, ...], scale: Range, aspect: Range) -> Float[Tensor, "b axes"]:
    """Sides of a block in whole patches, at least one and at most those of the grid.

    The block has a share of the grid uniform in ``scale``. It is as wide as the grid in proportion, but the side of
    every axis before the last is stretched by its own ratio, uniform in ``aspect``, relative to the last. On a square
    grid this is the paper's law: sides sqrt(area * ratio) and sqrt(area / ratio).

    Args:
        draws: one row per block.
        grid: patches along each axis.
        scale: range of the share of the patches.
        aspect: range of the ratios.
    """
    axes = len(grid)
    share = draws.uniform(low=scale[0], high=scale[1])[:, None]
    ratio = draws.uniform(axes, low=aspect[0], high=aspect[1])
    ratio = torch.cat([ratio[:, :-1], torch.ones_like(ratio[:, :1])], 1)
    space = constant(grid, share.device, torch.float32)
    sides = space * ratio * (share / ratio.prod(1, keepdim=True)) ** (1 / axes)
    return torch.minimum(sides.round().clamp(min=1), space)


def place_blocks(
    draws: Draws, sides: Float[Tensor, "1 axes"], grid: tuple[int, ...], count: int
) -> Bool[Tensor, "b m n"]:
    """``count`` blocks of one size in each image, each anywhere in the grid; True for the patches inside."""
    space = constant(grid, sides.device, torch.float32)
    start = (draws.uniform(count, len(grid)) * (space - sides + 1)).floor()
    start = torch.minimum(start, space - sides)[:, :, None]
    place = patch_centres(grid, sides.device)
    return ((place >= start) & (place < start + sides)).all(-1)


def draw_blocks(
    step: Draws,
    images: Draws,
    grid: tuple[int, ...],
    count: int,
    target: tuple[Range, Range],
    context: tuple[Range, Range],
    padding: Bool[Tensor, "b n"] | None = None,
    least: int = 1,
) -> Blocks:
    """Target blocks and the context: a larger block without the targets, trimmed to the same number everywhere.

    The number of context patches is the smallest in the batch of all processes; what is too much is dropped at random.
    An image whose context would have less than ``least`` gets patches from outside its context block, but none of the
    targets. One whose context would be empty, in grids of a few patches, keeps one patch: one outside the targets if
    there is any.

    Args:
        step: one row: sizes are drawn once, for all images of all processes.
        images: one row per image: places.
        grid: patches along each axis.
        count: number of target blocks of an image.
        target: scale and aspect of target blocks, see :func:`block_sides`.
        context: likewise of the context block.
        padding: True for patches that show nothing; they are context only where nothing else is left.
        least: context patches of an image, where as many are in no target.
    """
    hidden = place_blocks(images.child(0), block_sides(step.child(0), grid, *target), grid, count)
    block = place_blocks(images.child(1), block_sides(step.child(1), grid, *context), grid, 1)[:, 0]
    covered = hidden.any(1)
    blank = torch.zeros_like(covered) if padding is None else padding
    seen = block & ~covered & ~blank
    free = (~covered & ~blank).sum(1).min().clamp(max=least)
    fewest = torch.maximum(seen.sum(1).min(), free).clamp(min=1)
    sizes = torch.stack([ranks.least(fewest), hidden[0, 0].sum()])
    visible, width = sizes.tolist()  # the one host sync of a step: shapes of tensors are numbers of the host
    worse = torch.where(seen, 0, 1 + covered.int() + 2 * blank.int())
    order = (worse + images.child(2).uniform(math.prod(grid))).argsort(1)
    inside = hidden.int().argsort(dim=2, descending=True, stable=True)
    return Blocks(order[:, :visible], inside[..., :width], grid)
