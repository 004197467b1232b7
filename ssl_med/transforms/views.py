"""Views: several batches out of one, on its device."""

from abc import ABC, abstractmethod
from typing import cast

from torch import nn

from ssl_med.ops.random import fold
from ssl_med.transforms.base import VIEW_STREAM, Compose, Transform, draws_of
from ssl_med.types import Batch


class Views(nn.Module, ABC):
    """What a task sees of a batch: one or more changed copies; the batch itself is left as it was."""

    @abstractmethod
    def forward(self, batch: Batch) -> list[Batch]:
        """The views, each with random keys of its own."""


def _views(batch: Batch, lists: list[nn.ModuleList]) -> list[Batch]:
    """One view per list of transforms; each view has a key of its own, made from the sample's."""
    keys = draws_of(batch).keys
    views = []
    for number, transforms in enumerate(lists):
        keyed = cast(Batch, {**batch, "key": fold(keys, VIEW_STREAM + number)})
        views.append(Compose(cast("list[Transform]", list(transforms)))(keyed))
    return views


class SingleView(Views):
    """One changed copy of each batch.

    Args:
        transforms: what is done, in order; none at all is allowed.
    """

    def __init__(self, transforms: list[Transform]) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)

    def forward(self, batch: Batch) -> list[Batch]:
        """A list of one view."""
        return _views(batch, [self.transforms])


class PairedViews(Views):
    """Two views of every image, drawn independently (SimCLR, arXiv 2002.05709).

    Args:
        transforms: what is done to make the first view, in order.
        second: what is done to make the second view; the same as for the first if absent (BYOL, arXiv 2006.07733, has
            two different lists).
    """

    def __init__(self, transforms: list[Transform], second: list[Transform] | None = None) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)
        self.second = None if second is None else nn.ModuleList(second)

    def forward(self, batch: Batch) -> list[Batch]:
        """First and second view; row i of both shows image i."""
        return _views(batch, [self.transforms, self.transforms if self.second is None else self.second])
