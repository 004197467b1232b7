"""Connected regions of a mask and their boxes, batched on the device without a step to the host."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional


class Boxes(NamedTuple):
    """One box per image.

    Attributes:
        lower: first voxel along each axis, (b, axes).
        upper: the voxel after the last, (b, axes).
        found: False where the image has no box; its numbers mean nothing then.
    """

    lower: Int[Tensor, "b axes"]
    upper: Int[Tensor, "b axes"]
    found: Bool[Tensor, " b"]


def components(mask: Bool[Tensor, "b 1 *space"]) -> Int[Tensor, "b n"]:
    """The largest flat index of each voxel's region as its name, -1 outside; diagonal neighbours are connected.

    Regions take their neighbours' larger names and then the names of these names, so that the number of rounds grows
    with the logarithm of the number of voxels (Shiloach and Vishkin, 1982).
    """
    inside = mask.flatten(1)
    index = torch.arange(inside.shape[1], device=mask.device).expand_as(inside)
    name = torch.where(inside, index, torch.zeros_like(index))
    for _ in range(max(1, math.ceil(math.log2(inside.shape[1])))):
        near = _largest_neighbour((name + 1) * inside, tuple(mask.shape[2:])) - 1
        near = torch.where(inside, torch.maximum(near, name), name)
        name = name.scatter_reduce(1, name, near, "amax")
        for _ in range(4):
            name = name.gather(1, name)
    return torch.where(inside, name, -torch.ones_like(name))


def _largest_neighbour(values: Tensor, space: tuple[int, ...]) -> Tensor:
    """Largest value within one voxel along every axis, in integers; outside the image it is 0."""
    x = values.reshape(len(values), *space)
    for axis, length in enumerate(space, 1):
        around = functional.pad(x, [0, 0] * (len(space) - axis) + [1, 1])
        before, here, after = (around.narrow(axis, start, length) for start in range(3))
        x = torch.maximum(torch.maximum(before, here), after)
    return x.flatten(1)


def boxes_of(names: Int[Tensor, "b n"], space: tuple[int, ...]) -> tuple[Tensor, Tensor, Bool[Tensor, "b n"]]:
    """Boxes of regions, each at the place of its name.

    Args:
        names: of :func:`components`.
        space: voxels along each axis.

    Returns:
        First voxel and the one after the last, (b, n, axes), and where a region has its name.
    """
    inside = names >= 0
    target, lows, highs = names.clamp(min=0), [], []
    for place in coordinates(space, names.device).unbind(1):
        value = place.expand_as(names)
        low = torch.full_like(names, max(space)).scatter_reduce(
            1, target, torch.where(inside, value, max(space)), "amin"
        )
        high = torch.full_like(names, -1).scatter_reduce(1, target, torch.where(inside, value, -1), "amax")
        lows.append(low)
        highs.append(high + 1)
    own = names == torch.arange(names.shape[1], device=names.device)
    return torch.stack(lows, -1), torch.stack(highs, -1), own


def coordinates(space: tuple[int, ...], device: torch.device) -> Int[Tensor, "n axes"]:
    """Index along each axis of every voxel, in raster order."""
    axes = [torch.arange(length, device=device) for length in space]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(space))


def choose(lower: Tensor, upper: Tensor, allowed: Bool[Tensor, "b n"], noise: Tensor) -> Boxes:
    """The allowed box with the largest number in ``noise`` (b, n): each one equally likely."""
    best = torch.where(allowed, noise, -1.0).argmax(1)
    row = torch.arange(len(best), device=best.device)
    return Boxes(lower[row, best], upper[row, best], allowed.any(1))
