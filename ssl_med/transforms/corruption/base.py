"""What the corruptions share: only the image changes, and an image that is not chosen costs nothing."""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import Tensor

from ssl_med.errors import UserError
from ssl_med.ops.random import Draws, fold
from ssl_med.transforms.base import COMPOSE_STREAM, Compose, Params, Transform, draws_of
from ssl_med.types import Batch


class Corruption(Transform):
    """A change that a network shall undo. Mask, saliency and valid region stay as they are.

    Args:
        probability: share of the images that are changed.
    """

    def forward(self, batch: Batch, spare: Collection[str] = ()) -> Batch:
        """A changed copy of the batch; the input is left as it was."""
        return corrupt([self], batch, [draws_of(batch)])

    def draw(self, batch: Batch, draws: Draws) -> Params:
        """All that is drawn for a batch, and which of its images are ``chosen``."""
        return {**self.plan(batch, draws), "chosen": draws.bernoulli(self.probability)}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """The corrupted images, in the precision they came in."""
        return self.corrupt_(_volumes(x), params).reshape(x.shape).to(x.dtype)

    @abstractmethod
    def corrupt_(self, volumes: Tensor, params: Params) -> Tensor:
        """Change the images ``params["chosen"]`` of float32 volumes (b, c, z, y, x); images have z = 1.

        They may be overwritten; what counts is the answer.
        """


class Corruptions(Compose):
    """Corruptions one after the other, each with a random stream of its own, on one copy of the images.

    Gives what :class:`~ssl_med.transforms.Compose` gives, without a copy for each.

    Args:
        transforms: in order.
    """

    def __init__(self, transforms: list[Corruption]) -> None:
        super().__init__(list(transforms))

    def forward(self, batch: Batch) -> Batch:
        """Apply all; the key of the batch that comes out is that of the batch that went in."""
        keys, corruptions = draws_of(batch).keys, cast("list[Corruption]", list(self.transforms))
        streams = [Draws(fold(keys, COMPOSE_STREAM + number)) for number in range(len(corruptions))]
        return corrupt(corruptions, cast(Batch, {**batch, "key": keys}), streams)


def corrupt(corruptions: Sequence[Corruption], batch: Batch, streams: Sequence[Draws]) -> Batch:
    """The batch with its images corrupted by each in turn.

    Raises:
        UserError: the images have neither two nor three axes of space.
    """
    image = batch["image"]
    if image.ndim not in (4, 5):
        raise UserError(f"corruptions take images (b, c, y, x) or volumes (b, c, z, y, x), got {tuple(image.shape)}")
    volumes = _volumes(image)
    with torch.autocast(image.device.type, enabled=False):
        for corruption, draws in zip(corruptions, streams, strict=True):
            volumes = corruption.corrupt_(volumes, corruption.draw(batch, draws))
    return cast(Batch, {**batch, "image": volumes.reshape(image.shape).to(image.dtype)})


def _volumes(x: Tensor) -> Tensor:
    """A float32 copy as volumes."""
    copied = x.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return copied.reshape(*x.shape[:2], *space_of(x))


def space_of(x: Tensor) -> tuple[int, int, int]:
    """Voxels along z, y, x; z is 1 for images."""
    return (*[1] * (5 - x.ndim), *x.shape[2:])  # pyright: ignore[reportReturnType]


def integers_between(uniform: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Integers low .. high, both included, from uniform numbers in [0, 1)."""
    return low + (uniform.double() * (high - low + 1)).long()
