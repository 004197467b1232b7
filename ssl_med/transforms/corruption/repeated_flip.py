"""The flip of Models Genesis."""

import torch
from torch import Tensor

from ssl_med.ops.random import Draws
from ssl_med.transforms.base import Params, SpatialTransform, check_range
from ssl_med.transforms.box_corners import mirrored
from ssl_med.transforms.spatial import flip_images


class RepeatedFlip(SpatialTransform):
    """Mirrors along a random axis, up to three times, each time going on with a probability (arXiv 1908.06912).

    Mind that the last axis of a RAS volume is left-right: mirroring it makes situs inversus.

    Args:
        again: probability of the first, and of each further flip; two along one axis undo each other.
        faithful: as the original did, the axis is one of channel (which changes nothing), y and x, so that depth is
            never flipped; by default it is one of the axes of space.
    """

    times = 3

    def __init__(self, again: float = 0.4, faithful: bool = False) -> None:
        super().__init__()
        check_range("RepeatedFlip: again", (again, again), 0.0, 1.0)
        self.again, self.faithful = again, faithful

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """Which axes of each image end up mirrored, (b, n)."""
        axes = image.ndim - 2
        going = draws.bernoulli(self.again, self.times).cumprod(1)
        if self.faithful:
            axis = axes - 3 + draws.integers(3, self.times)
            axis = torch.where(axis == axes - 3, -1, axis)  # stands for the channel
        else:
            axis = draws.integers(axes, self.times)
        turns = ((axis[..., None] == torch.arange(axes, device=image.device)) * going[..., None]).sum(1)
        return {"flipped": turns % 2 == 1}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """The mirrored tensor."""
        flipped = params["flipped"]
        if x.device.type != "cpu":
            for axis, chosen in enumerate(flipped.unbind(1)):
                x = flip_images(x, chosen, axis)
            return x
        moved = x.clone()  # one image at a time: a third of the work, as most of them stay as they are
        for row, axes in enumerate(flipped.tolist()):
            if any(axes):
                moved[row] = x[row].flip([1 + axis for axis, chosen in enumerate(axes) if chosen])
        return moved

    def corners(self, boxes: Tensor, params: Params, space: tuple[int, ...]) -> Tensor:
        """The mirrored boxes."""
        for axis, chosen in enumerate(params["flipped"].unbind(1)):
            boxes = mirrored(boxes, chosen, axis, space[axis])
        return boxes
