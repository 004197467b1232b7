"""In-painting and out-painting of Models Genesis."""

import torch
from torch import Tensor

from ssl_med.ops.constants import constant
from ssl_med.ops.painting import paint_
from ssl_med.ops.random import Draws
from ssl_med.ops.unit import UnitRange, check_unit, value_range
from ssl_med.transforms.base import Params, check_range
from ssl_med.transforms.corruption.base import Corruption, integers_between, space_of

BOXES, AGAIN, MARGIN = 5, 0.95, 3
"""Most boxes of an image, probability of each further one, and voxels between a box and the border."""


class Painting(Corruption):
    """Replaces boxes of the image, or all but boxes, by uniform noise; never both (arXiv 1908.06912).

    In-painting: up to five boxes, each drawn with probability 0.95 if those before it were; sides uniform in
    n//6 .. n//3 for an axis of n voxels; filled with noise. Out-painting: noise everywhere but in one box and up to
    four more; sides n - U{3n//7 .. 4n//7}. Boxes keep three voxels to the border, fewer where an axis of less than 14
    voxels leaves no room. Noise is the same for all channels. Axes of one voxel (z of an image) are covered whole.

    Args:
        probability: share of the images that are changed.
        inward: share of these that are in-painted; the others are out-painted.
        unit: the range of the noise, see :data:`ssl_med.ops.unit.UnitRange`.
    """

    def __init__(self, probability: float = 0.9, inward: float = 0.2, unit: UnitRange = "auto") -> None:
        super().__init__(probability)
        check_range("Painting: inward", (inward, inward), 0.0, 1.0)
        check_unit("Painting: unit", unit)
        self.inward = inward
        self.unit: UnitRange = unit

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """In or out (b,), corners and sides of the boxes (b, 5, 3) in voxels along z, y, x, and a key for the noise."""
        space = constant(space_of(image), image.device)
        numbers = draws.uniform(BOXES, 8)  # side and corner along three axes, whether there is another box, in or out
        inward = numbers[:, 0, 7] < self.inward
        inner = integers_between(numbers[..., :3], space // 6, space // 3)
        outer = space - integers_between(numbers[..., :3], 3 * space // 7, 4 * space // 7)
        sides = torch.where(inward[:, None, None], inner, outer).clamp(min=1)
        margin = ((space - sides) // 2).clamp(max=MARGIN)
        corners = integers_between(numbers[..., 3:6], margin, space - sides - margin)
        drawn = numbers[..., 6] < AGAIN
        drawn[:, 0] |= ~inward  # out-painting always keeps one box
        sides = torch.where(drawn.cumprod(1).bool()[..., None], sides, 0)
        return {"inward": inward, "corners": corners, "sides": sides, "key": draws.keys}

    def corrupt_(self, volumes: Tensor, params: Params) -> Tensor:
        """The painted images."""
        low, span = value_range(volumes, self.unit)
        boxes = (params["key"], params["corners"], params["sides"], params["inward"])
        return paint_(volumes, *boxes, low, span, params["chosen"])
