"""Mixup and CutMix in 2D and 3D, drawn from the keys of the samples so that a resumed run repeats them."""

import numpy as np
import torch
from torch import Tensor, nn

from ssl_med.errors import UserError
from ssl_med.ops.random import Draws
from ssl_med.transforms.base import draws_of, spread
from ssl_med.types import Batch

_STREAM = 1 << 34
_POINTS = 1025


class Mixing(nn.Module):
    """Images and targets mixed with those of the next sample: mixup (arXiv 1710.09412) or CutMix (arXiv 1905.04899).

    Each sample draws its own share, ``lambda ~ Beta(a, a)``. Mixup blends the two images; CutMix pastes a box of the
    neighbour that covers ``1 - lambda`` of the image, cut at the border, and counts what it really covers (as timm's
    ``Mixup`` in ``elem`` mode). A sample without a label is neither mixed nor mixed in. On several processes each
    mixes its own part of the batch.

    Args:
        mixup: a of mixup; 0 for none.
        cutmix: a of CutMix; 0 for none.
        probability: share of the samples that are mixed.
        switch: share of CutMix among them where both are wanted.

    Raises:
        UserError: neither of the two is wanted.
    """

    def __init__(self, mixup: float = 0.8, cutmix: float = 1.0, probability: float = 1.0, switch: float = 0.5) -> None:
        super().__init__()
        if min(mixup, cutmix) < 0 or mixup + cutmix == 0:
            raise UserError(f"Mixing: mixup {mixup} and cutmix {cutmix}: one must be above 0, none below")
        self.mixup, self.cutmix, self.probability, self.switch = mixup, cutmix, probability, switch
        self.register_buffer("quantiles", torch.stack([beta_quantiles(a or 1.0) for a in (mixup, cutmix)]), False)

    def forward(self, batch: Batch, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images and targets.

        Args:
            batch: with keys.
            targets: (b, k); rows of zeros are unlabelled.
        """
        image, draws = batch["image"], draws_of(batch).child(_STREAM)
        known = targets.sum(-1) > 0
        mixed = draws.bernoulli(self.probability) & known & known.roll(-1)
        cut = draws.bernoulli(1.0 if not self.mixup else self.switch if self.cutmix else 0.0)
        share = self._share(draws.uniform(), cut)
        box = box_mask(image, share, draws)
        inside = torch.where(spread(cut, image), box, spread(1 - share, image)) * spread(mixed, image)
        other = inside.flatten(1).mean(1, keepdim=True)  # the neighbour's share
        image = image + inside.to(image.dtype) * (image.roll(-1, 0) - image)
        return image, targets + other * (targets.roll(-1, 0) - targets)

    def _share(self, uniform: Tensor, cut: Tensor) -> Tensor:
        """Beta-distributed shares, by linear interpolation of the quantiles."""
        place = uniform * (_POINTS - 1)
        low = place.floor().long().clamp(max=_POINTS - 2)
        table: Tensor = self.quantiles[cut.long()]  # pyright: ignore[reportIndexIssue]
        first, second = table.gather(1, low[:, None]), table.gather(1, low[:, None] + 1)
        return torch.lerp(first, second, (place - low)[:, None])[:, 0]


def beta_quantiles(a: float) -> Tensor:
    """Quantiles of Beta(a, a) at evenly spaced levels from 0 to 1, (1025,)."""
    from scipy.special import betaincinv

    return torch.from_numpy(betaincinv(a, a, np.linspace(0, 1, _POINTS))).float()


def box_mask(image: Tensor, share: Tensor, draws: Draws) -> Tensor:
    """1 inside a random box of ``1 - share`` of the image, cut where it leaves the image, (b, 1, \\*space)."""
    axes = image.ndim - 2
    inside = torch.ones_like(image[:, :1], dtype=torch.bool)
    for axis in range(axes):
        length = image.shape[2 + axis]
        side = (length * (1 - share) ** (1 / axes)).floor()
        centre = draws.integers(length)
        first = (centre - (side / 2).floor()).clamp(min=0)
        last = (centre - (side / 2).floor() + side).clamp(max=length)
        place = torch.arange(length, device=image.device)
        within = (place >= first[:, None]) & (place < last[:, None])
        inside = inside & within.reshape(len(image), 1, *[length if i == axis else 1 for i in range(axes)])
    return inside.float()
