"""Local pixel shuffling of Models Genesis."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ssl_med.errors import UserError
from ssl_med.ops.constants import constant
from ssl_med.ops.random import Draws
from ssl_med.ops.shuffle import local_shuffle_
from ssl_med.transforms.base import Params, check_range
from ssl_med.transforms.corruption.base import Corruption, space_of
from ssl_med.types import Batch

PUBLISHED = 10_000 * (3.5 * 3.5 * 2.0) / (64 * 64 * 32)
"""Voxels of all windows together per voxel of the image, as published: 1.87, which moves nearly 80 % of the voxels."""


class LocalShuffle(Corruption):
    """Shuffles the voxels inside many small windows: texture is lost, shapes remain (arXiv 1908.06912).

    Windows take their voxels from the untouched image and are written one over the other, so the distortion does not
    accumulate. Sides are uniform in 1 .. limit along each axis, places uniform. All channels move together. Safe for
    all modalities: values keep their meaning.

    Args:
        probability: share of the images that are changed.
        largest: limit of a window's side along each axis, one number or one per axis; by default a tenth of the axis
            (rounded down), as published, but at least two voxels: one would change nothing on crops below 20.
        unit: of ``largest``: voxels, or mm, which takes the spacing of each image (one where the batch has none).
        windows: number per image; by default as many as cover the image as often as the published 10,000 windows cover
            64 x 64 x 32 voxels, which at that size are 10,000.
        faithful: a tenth of the axis as published, U{1..n//10}: sides of one voxel where the axis has fewer than 20.

    Raises:
        UserError: a setting out of its range, or ``mm`` without ``largest``.
    """

    def __init__(
        self,
        probability: float = 0.5,
        largest: float | Sequence[float] | None = None,
        unit: Literal["voxels", "mm"] = "voxels",
        windows: int | None = None,
        faithful: bool = False,
    ) -> None:
        super().__init__(probability)
        if windows is not None:
            check_range("LocalShuffle: windows", (0, windows), 0)
        if unit not in ("voxels", "mm") or (unit == "mm" and largest is None):
            raise UserError(f"LocalShuffle: unit is voxels or mm, and mm needs largest; got {unit}, largest {largest}")
        self.largest = list(largest) if isinstance(largest, Sequence) else largest
        self.unit, self.windows, self.faithful = unit, windows, faithful

    def plan(self, batch: Batch, draws: Draws) -> Params:
        """A key per image, the largest window of each in voxels (b, 3), and the number of its windows (b,)."""
        image = batch["image"]
        limits = self._limits(image, batch.get("spacing") if self.unit == "mm" else None)
        counts = self._counts(limits, math.prod(image.shape[2:]))
        return {**self.sample(image, draws), "limits": limits, "windows": counts}

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """A key per image: sizes, places and permutations of its windows are functions of it."""
        return {"key": draws.keys}

    def corrupt_(self, volumes: Tensor, params: Params) -> Tensor:
        """The shuffled images."""
        windows = (params["key"], params["limits"], params["windows"])
        return local_shuffle_(volumes, *windows, params["chosen"], self._bounds(volumes))

    def _counts(self, limits: Tensor, voxels: int) -> Tensor:
        """Windows of each image, (b,)."""
        mean_volume = ((limits + 1) / 2).double().prod(1)
        counts = (PUBLISHED * voxels / mean_volume).round().long()
        return counts if self.windows is None else torch.full_like(counts, self.windows)

    def _bounds(self, volumes: Tensor) -> tuple[int, int] | None:
        """Windows of an image and voxels of the largest one; None where they depend on the spacing."""
        if self.unit == "mm":
            return None
        limits = torch.tensor([self._sides(space_of(volumes))])
        return int(self._counts(limits, math.prod(volumes.shape[2:]))), int(limits.prod())

    def _limits(self, image: Tensor, spacing: Tensor | None) -> Tensor:
        """Largest side of a window of each image along z, y, x."""
        space, axes = space_of(image), image.ndim - 2
        if isinstance(self.largest, list) and len(self.largest) != axes:
            raise UserError(f"LocalShuffle: largest {self.largest} does not fit images of {axes} axes")
        if spacing is None or self.largest is None:
            return constant(self._sides(space), image.device).repeat(len(image), 1)
        sides = self.largest if isinstance(self.largest, list) else [self.largest] * axes
        sizes = constant(sides, image.device, torch.float32) / spacing
        longest = functional.pad(sizes.long(), (3 - axes, 0), value=1).clamp(min=1)
        return torch.minimum(longest, constant(space, image.device))

    def _sides(self, space: tuple[int, int, int]) -> list[int]:
        """Largest side of a window in voxels along z, y, x."""
        if self.largest is None:
            least = 1 if self.faithful else 2
            return [min(max(length // 10, least), length) for length in space]
        sides = self.largest if isinstance(self.largest, list) else [self.largest] * 3
        sides = [1] * (3 - len(sides)) + sides
        return [min(max(int(side), 1), length) for side, length in zip(sides, space, strict=True)]
