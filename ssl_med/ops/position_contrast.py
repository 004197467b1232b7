"""VoCo's losses: how similar a crop is to the regions of its volume tells where it lies (arXiv 2402.17300)."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from ssl_med.ops import ranks

Weighting = Literal["overlap", "equal"]
EPSILON = 1e-6


def similarity(x: Float[Tensor, "b k d"], y: Float[Tensor, "b n d"]) -> Float[Tensor, "b k n"]:
    """Cosines of all pairs of rows of the same image, in full precision."""
    with torch.autocast(x.device.type, enabled=False):
        return normalize(x.float(), dim=-1) @ normalize(y.float(), dim=-1).transpose(1, 2)


def position_loss(
    cosine: Float[Tensor, "b k n"],
    overlap: Float[Tensor, "b k n"],
    present: Bool[Tensor, "b n"],
    weighting: Weighting = "overlap",
) -> Float[Tensor, ""]:
    """How far similarities are from overlaps, over all processes; ``s = max(cosine, 0)``, ``d = |overlap - s|``.

    ``equal`` is the paper's equation 3, ``mean -log(1 - d)``. ``overlap`` is what its authors run: the mean of
    ``-log(1 - d)`` weighted by the overlaps, plus the mean of ``s^2`` over the pairs that do not overlap.

    Args:
        cosine: of random crops and base crops.
        overlap: share of the random crop that lies in the base crop.
        present: base crops that show something.
        weighting: of the pairs.
    """
    with torch.autocast(cosine.device.type, enabled=False):
        score, there = cosine.float().relu(), present[:, None].expand_as(overlap).float()
        distance = -(1 - (overlap - score).abs() + EPSILON).log()
        if weighting == "equal":
            return _mean(distance, there)
        apart = there * (overlap == 0)
        return _mean(distance, there * overlap) + _mean(score.square(), apart)


def discrepancy_loss(
    bases: Float[Tensor, "b n d"], present: Bool[Tensor, "b n"], weighting: Weighting = "overlap"
) -> Float[Tensor, ""]:
    """How similar different regions of one image are: mean over their pairs, with ``s = max(cosine, 0)``.

    ``equal`` is the mean of ``s``, equation 5 with the code's ReLU. ``overlap`` is what the authors run: of ``s^2``.

    Args:
        bases: embeddings of the regions.
        present: regions that show something.
        weighting: as in :func:`position_loss`.
    """
    with torch.autocast(bases.device.type, enabled=False):
        score = similarity(bases, bases).relu()
        if weighting == "overlap":
            score = score.square()
        pairs = (present[:, :, None] & present[:, None]).float().triu(1)
        return _mean(score, pairs)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over the rows of all processes; 0 where nothing has a weight."""
    return ranks.total((values * weight).sum()) / ranks.total(weight.sum()).clamp(min=EPSILON)
