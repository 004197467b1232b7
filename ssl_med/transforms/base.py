"""The promise of a transform: draw once per image, apply to everything that belongs to the image."""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn

from ssl_med.errors import UserError
from ssl_med.ops.random import Draws, fold
from ssl_med.transforms.box_corners import settled
from ssl_med.types import Batch

Params = dict[str, Tensor]
"""What a transform has drawn: tensors with the batch as first axis."""

COMPOSE_STREAM, VIEW_STREAM = 1 << 32, 1 << 33
"""First child numbers of transforms and views: a task that draws from the same key never meets their numbers."""


def draws_of(batch: Batch) -> Draws:
    """The batch's own random stream; a batch without keys gets fresh ones from torch's global generator."""
    keys = batch.get("key")
    if keys is None:
        image = batch["image"]
        keys = torch.randint(-(2**63), 2**63 - 1, (len(image),)).to(image.device)
    return Draws(keys)


def spread(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (b, ...) so that it broadcasts against ``like`` (b, c, \\*space)."""
    return values.reshape(*values.shape, *[1] * (like.ndim - values.ndim))


def check_range(name: str, values: tuple[float, float], least: float = -math.inf, most: float = math.inf) -> None:
    """Refuse a (low, high) setting that is out of order or outside ``least`` .. ``most``.

    Raises:
        UserError: names the setting, what it was and what it may be.
    """
    if len(values) != 2 or not least <= values[0] <= values[1] <= most:
        raise UserError(f"{name} must be (low, high) with {least} <= low <= high <= {most}, got {values}")


class Transform(nn.Module, ABC):
    """A change of whole batches on their device, where every image draws its own parameters.

    A subclass draws in :meth:`sample` and is deterministic in :meth:`transform`, so that image, saliency, mask and the
    valid region always get the same geometry.

    Args:
        probability: share of the images that are changed; the others pass untouched.

    Raises:
        UserError: the probability is not in [0, 1].
    """

    keys: tuple[str, ...] = ("image",)

    def __init__(self, probability: float = 1.0) -> None:
        super().__init__()
        check_range(f"{type(self).__name__}: probability", (probability, probability), 0.0, 1.0)
        self.probability = probability

    @abstractmethod
    def sample(self, image: Tensor, draws: Draws) -> Params:
        """All randomness: parameters for each image of (b, c, \\*space)."""

    @abstractmethod
    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """Deterministic: change the tensor that stands under ``key`` in the batch."""

    def plan(self, batch: Batch, draws: Draws) -> Params:
        """Parameters for a batch: those of :meth:`sample`, and what else of the batch the transform needs to know."""
        return self.sample(batch["image"], draws)

    def forward(self, batch: Batch, spare: Collection[str] = ()) -> Batch:
        """A changed copy of the batch; the input is left as it was.

        Args:
            batch: what to change.
            spare: names of tensors that nobody needs any more, so that they may be overwritten.
        """
        draws = draws_of(batch)
        with torch.autocast(batch["image"].device.type, enabled=False):  # half precision would move voxels
            if self.probability >= 1:
                return cast(Batch, {**batch, **self._changed(batch, draws)})
            chosen = draws.child(1).bernoulli(self.probability)
            if batch["image"].device.type == "cpu":
                return self._only(batch, draws, chosen.nonzero()[:, 0], spare)
            new = self._changed(batch, draws)
        return cast(Batch, {**batch, **{k: torch.where(spread(chosen, x), x, batch[k]) for k, x in new.items()}})

    def _changed(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """What the transform changes, of every image."""
        params = self.plan(batch, draws.child(0))
        return {key: self.transform(batch[key], params, key) for key in self.keys if key in batch}

    def _only(self, batch: Batch, draws: Draws, rows: Tensor, spare: Collection[str]) -> Batch:
        """Change some images and spend nothing on the others: worth its waiting where the device is the CPU."""
        if not len(rows):
            return cast(Batch, dict(batch))
        part = cast(Batch, {name: value[rows] for name, value in batch.items() if isinstance(value, Tensor)})
        new = self._changed(part, Draws(draws.keys[rows]))
        put = {k: (batch[k].index_copy_ if k in spare else batch[k].index_copy)(0, rows, x) for k, x in new.items()}
        return cast(Batch, {**batch, **put})


class SpatialTransform(Transform):
    """A change of geometry: everything that has voxels moves together, and boxes with it.

    :meth:`transform` finds the size of a voxel in ``params["spacing"]``, (b, n); it is one where the batch has none.
    """

    keys = ("image", "saliency", "mask", "valid")

    def corners(self, boxes: Tensor, params: Params, space: tuple[int, ...]) -> Tensor:
        """Boxes (b, n, 2 * axes) of images of ``space`` voxels, where the transform moves them; they may stick out.

        Raises:
            UserError: a transform that was not told how.
        """
        raise UserError(f"{type(self).__name__} does not move boxes: leave it out where data.targets is boxes")

    def _changed(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        params = self.plan(batch, draws.child(0))
        new = {key: self.transform(batch[key], params, key) for key in self.keys if key in batch}
        if "boxes" in batch and "box_labels" in batch:
            moved = self.corners(batch["boxes"], params, tuple(batch["image"].shape[2:]))
            size = tuple(new["image"].shape[2:])
            new["boxes"], new["box_labels"] = settled(moved, batch["box_labels"], size)
        return new

    def plan(self, batch: Batch, draws: Draws) -> Params:
        """The drawn parameters and the spacing of each image."""
        image = batch["image"]
        ones = torch.ones(len(image), image.ndim - 2, device=image.device)
        return {**self.sample(image, draws), "spacing": batch.get("spacing", ones)}


class Compose(nn.Module):
    """Transforms one after the other, each with a random stream of its own."""

    def __init__(self, transforms: list[Transform]) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)

    def forward(self, batch: Batch) -> Batch:
        """Apply all; the key of the batch that comes out is that of the batch that went in."""
        keys, given = draws_of(batch).keys, {_memory(x) for x in batch.values() if isinstance(x, Tensor)}
        for number, transform in enumerate(self.transforms):
            spare = _spare(batch, given)
            batch = transform(cast(Batch, {**batch, "key": fold(keys, COMPOSE_STREAM + number)}), spare)
        return cast(Batch, {**batch, "key": keys})


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _spare(batch: Batch, given: set[int]) -> set[str]:
    """Names of tensors with memory of their own, which an earlier transform of the chain has made."""
    memory = {name: _memory(x) for name, x in batch.items() if isinstance(x, Tensor)}
    shared = {place for place, count in Counter(memory.values()).items() if count > 1} | given
    plain = {name for name in memory if batch[name].is_contiguous() and not batch[name].requires_grad}
    return {name for name in plain if memory[name] not in shared}
