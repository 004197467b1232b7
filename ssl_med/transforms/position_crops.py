"""VoCo's crops: a grid of regions that tile an image, and random crops that overlap some of them."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ssl_med.errors import UserError
from ssl_med.ops.constants import constant
from ssl_med.ops.random import Draws, fold
from ssl_med.transforms.base import VIEW_STREAM, Compose, Transform, draws_of
from ssl_med.transforms.boxes import Boxes, read_boxes
from ssl_med.transforms.spatial import Flip
from ssl_med.types import Batch


class Regions(NamedTuple):
    """Crops of a batch of b images, all of one size.

    Attributes:
        base: (n * b) rows: all images in their first region, then all in the second, and so on.
        random: (k * b) rows in the same order.
        overlap: share of each random crop that lies in each region; each row sums to 1.
        present: regions that are not padding altogether.
        start: first voxel of each random crop, (b, k, axes).
    """

    base: Batch
    random: Batch
    overlap: Float[Tensor, "b k n"]
    present: Bool[Tensor, "b n"]
    start: Tensor


class PositionCrops(nn.Module):
    """Regions of a grid, and random crops of their size (VoCo, arXiv 2402.17300).

    Args:
        grid: regions along each axis; a number stands for the last two axes, the others are not divided (paper: 4 x 4
            in the plane of the slices).
        count: random crops per image.
        size: voxels of the crops for the network; by default those of the region.
        multiple: ``size`` is brought to the nearest multiple of this along each axis: a ViT's patch, the coarsest
            stride of a CNN.
        transforms: changes of the crops, drawn for each crop by itself; flips by default, as the authors do.
    """

    def __init__(
        self,
        grid: int | list[int] = 4,
        count: int = 2,
        size: list[int] | None = None,
        multiple: int | list[int] = 1,
        transforms: list[Transform] | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.count, self.size, self.multiple = grid, count, size, multiple
        self.transforms = nn.ModuleList([Flip()] if transforms is None else transforms)

    def forward(self, batch: Batch) -> Regions:
        """Cut the crops and say how they overlap.

        Raises:
            UserError: the grid does not divide the image.
        """
        image, keys = batch["image"], draws_of(batch).keys
        space = tuple(image.shape[2:])
        grid = self.grid_of(space)
        sides = [n // g for n, g in zip(space, grid, strict=True)]
        length = constant(sides, image.device)
        corners = itertools.product(*(range(0, n, n // g) for n, g in zip(space, grid, strict=True)))
        base = constant(list(corners), image.device).expand(len(image), -1, -1)
        free = constant(space, image.device) - length
        place = Draws(fold(keys, VIEW_STREAM)).uniform(self.count, len(space))
        start = torch.minimum((place.double() * (free + 1)).long(), free)
        both = self._cut(batch, torch.cat([base, start], 1), sides)
        rows = len(image) * base.shape[1]
        first = {name: value[:rows] for name, value in both.items()}  # pyright: ignore[reportIndexIssue]
        second = {name: value[rows:] for name, value in both.items()}  # pyright: ignore[reportIndexIssue]
        present = _present(batch, grid)
        return Regions(cast(Batch, first), cast(Batch, second), overlaps(start, base, length), present, start)

    def grid_of(self, space: tuple[int, ...]) -> tuple[int, ...]:
        """Regions along each axis of an image."""
        axes = len(space)
        grid = (1,) * (axes - 2) + (self.grid,) * 2 if isinstance(self.grid, int) else tuple(self.grid)
        if len(grid) != axes or any(g < 1 or n % g for n, g in zip(space, grid, strict=True)):
            raise UserError(
                f"PositionCrops: grid {self.grid} does not divide crops of {space} voxels: choose data.crop as a "
                "multiple of the grid along each axis"
            )
        return grid

    def _cut(self, batch: Batch, corners: Tensor, sides: list[int]) -> Batch:
        """Images of all boxes at ``corners`` (b, v, axes), each changed by itself."""
        image, keys = batch["image"], draws_of(batch).keys
        count, axes = corners.shape[1], image.ndim - 2
        space, size = constant(image.shape[2:], image.device), self._size(sides)
        length = constant(sides, image.device)
        shares = (corners / space).flatten(0, 1).float()
        turn = torch.eye(axes, device=image.device).expand(len(shares), -1, -1)
        boxes = Boxes(shares, (length / space).float().expand_as(shares), turn)
        key = torch.cat([fold(keys, VIEW_STREAM + 1 + number) for number in range(count)])
        with torch.autocast(image.device.type, enabled=False):  # half precision would move voxels
            crops: Batch = {"image": read_boxes(image, boxes, size, "bilinear"), "key": key}
            if "spacing" in batch:
                zoom = length / constant(size, image.device)
                crops["spacing"] = (batch["spacing"] * zoom).repeat(count, 1)
            return Compose(cast("list[Transform]", list(self.transforms)))(crops)

    def _size(self, length: Sequence[int]) -> list[int]:
        size = list(length) if self.size is None else self.size
        steps = [self.multiple] * len(length) if isinstance(self.multiple, int) else self.multiple
        if len(size) != len(length) or len(steps) != len(length):
            raise UserError(f"PositionCrops: size {self.size} or multiple {self.multiple} does not fit {length} voxels")
        return [max(1, math.floor(n / step + 0.5)) * step for n, step in zip(size, steps, strict=True)]


def overlaps(start: Tensor, base: Tensor, length: Tensor) -> Float[Tensor, "b k n"]:
    """Share of each crop at ``start`` (b, k, axes) that lies in each at ``base`` (b, n, axes), all of one length."""
    apart = (start[:, :, None] - base[:, None]).abs()
    return ((length - apart).clamp(min=0).double() / length).prod(-1).float()


def _present(batch: Batch, grid: tuple[int, ...]) -> Bool[Tensor, "b n"]:
    """Regions with at least one voxel that is not padding."""
    image = batch["image"]
    valid = batch.get("valid")
    if valid is None:
        return torch.ones(len(image), math.prod(grid), dtype=torch.bool, device=image.device)
    for axis, cells in enumerate(grid):  # each axis in turn becomes its cells, a region any of its voxels
        valid = valid.unflatten(2 + axis, (cells, -1)).any(3 + axis)
    return valid.flatten(1)
