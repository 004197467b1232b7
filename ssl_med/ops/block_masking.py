"""Hiding blocks of patches, an exact number of them, for any number of axes and without a loop over images."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssl_med.ops.constants import constant
from ssl_med.ops.patches import patch_centres
from ssl_med.ops.random import Draws

BLOCKS = 24
SMALLEST = 4


def block_order(draws: Draws, grid: tuple[int, ...]) -> Int[Tensor, "b n"]:
    """Patches in the order in which random blocks cover them; what no block covers comes last, in random order.

    Blocks have a volume uniform from 4 patches to half the image, and sides whose ratios to each other reach from 0.3
    to 1 / 0.3 (BEiT, arXiv 2106.08254; DINOv2). A patch belongs to the first block that covers it, so the first k
    patches of the order are k different ones: overlaps are not counted twice, and the last block is cut.

    Args:
        draws: one row per image.
        grid: patches along each axis.
    """
    axes, count = len(grid), math.prod(grid)
    most = max(SMALLEST, count // 2)
    volume = draws.uniform(BLOCKS, low=min(SMALLEST, count), high=most).log()
    stretch = draws.uniform(BLOCKS, axes, low=math.log(0.3), high=math.log(1 / 0.3)) / 2
    stretch = stretch - stretch.mean(-1, keepdim=True)
    space = constant(grid, volume.device, torch.float32)
    sides = torch.exp(volume[..., None] / axes + stretch).round().clamp(min=1)
    sides = torch.minimum(sides, space)
    start = (draws.uniform(BLOCKS, axes) * (space - sides + 1)).floor()
    start = torch.minimum(start, space - sides)[..., None, :]
    place = patch_centres(grid, volume.device)
    inside = ((place >= start) & (place < start + sides[..., None, :])).all(-1)  # (b, blocks, n)
    first = torch.where(inside.any(1), inside.int().argmax(1), BLOCKS)
    within = torch.arange(count, device=volume.device) / count  # the last block is cut in raster order
    rest = draws.uniform(count)
    return (first + torch.where(first < BLOCKS, within, rest)).argsort(dim=1, stable=True)


def hidden_first(
    draws: Draws, grid: tuple[int, ...], ratio: tuple[float, float], blocks: bool
) -> tuple[Int[Tensor, "b h"], Bool[Tensor, "b h"], Float[Tensor, " b"]]:
    """Which patches of each image are hidden, with room for as many as the highest ratio needs.

    Args:
        draws: one row per image.
        grid: patches along each axis.
        ratio: range of the share of hidden patches; that of each image is uniform in it.
        blocks: hide blocks, or single patches anywhere.

    Returns:
        Patches, which of them are really hidden (the first ones of each row), and how many those are: the drawn ratio
        to the nearest patch, at least one.
    """
    count = math.prod(grid)
    wanted = (draws.uniform(low=ratio[0], high=ratio[1]) * count).round().clamp(min=1)
    room = max(1, min(count, math.floor(ratio[1] * count + 0.5)))
    order = block_order(draws.child(0), grid) if blocks else draws.child(1).uniform(count).argsort(dim=1, stable=True)
    wanted = wanted.clamp(max=room)
    return order[:, :room], torch.arange(room, device=order.device) < wanted[:, None], wanted
