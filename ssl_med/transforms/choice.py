"""One transform out of several, drawn for each image."""

import torch
from torch import Tensor, nn

from ssl_med.errors import UserError
from ssl_med.ops.random import Draws
from ssl_med.transforms.base import Params, Transform, spread
from ssl_med.transforms.intensity import GaussianBlur
from ssl_med.transforms.intensity_scan import Sharpen


class OneOf(Transform):
    """Applies one of several changes of grey values, the same chance for each.

    On an accelerator all are computed and one is taken, so that an image never waits for its neighbour in the batch; on
    a CPU each is computed for the images that chose it.

    Args:
        transforms: to choose from, each of probability 1; blur or sharpening by default (3DINO, arXiv 2501.11755).
        probability: share of the images that are changed.

    Raises:
        UserError: nothing to choose from, a transform that moves voxels, or one with a probability of its own.
    """

    def __init__(self, transforms: list[Transform] | None = None, probability: float = 1.0) -> None:
        super().__init__(probability)
        members = [GaussianBlur(), Sharpen()] if transforms is None else transforms
        if not members or any(tuple(t.keys) != ("image",) or t.probability != 1 for t in members):
            raise UserError("OneOf chooses among one or more changes of grey values, each of probability 1")
        self.transforms = nn.ModuleList(members)

    def _members(self) -> list[Transform]:
        return [t for t in self.transforms if isinstance(t, Transform)]

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """Which one, and the keys from which each of them draws."""
        return {"chosen": draws.integers(len(self.transforms)), "keys": draws.keys}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """The image as the chosen one makes it."""
        result = x
        for number, member in enumerate(self._members()):
            mine = params["chosen"] == number
            if x.device.type != "cpu":
                result = torch.where(spread(mine, x), self._by(member, number, x, params["keys"]), result)
            elif mine.any():
                rows = mine.nonzero()[:, 0]
                result = result.index_copy(0, rows, self._by(member, number, x[rows], params["keys"][rows]))
        return result

    def _by(self, member: Transform, number: int, x: Tensor, keys: Tensor) -> Tensor:
        return member.transform(x, member.sample(x, Draws(keys).child(number)), "image")
