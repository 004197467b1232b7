"""VICReg: agree, keep a variance, do not repeat yourself (Bardes et al., ICLR 2022, arXiv 2105.04906)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ssl_med.backbones import Backbone
from ssl_med.ops.joint import vicreg
from ssl_med.tasks.heads import MLPHead
from ssl_med.tasks.joint import TwoViewTask
from ssl_med.transforms import Views
from ssl_med.types import Batch, Losses

_LEAST_DEVIATION = 0.1
"""Mean standard deviation of a dimension below which the embedding has shrunk; the loss asks for 1, sound small runs
have 0.3 to 0.4, into which they grow from the 0.03 of random weights."""


class VICReg(TwoViewTask):
    """Invariance, variance and covariance of the embedding, with no negatives and no teacher.

    Args:
        backbone: any.
        views: two views; crops, flips, blur and noise by default, for RGB pictures colour instead of noise.
        out_dim: width of all three layers of the head (paper: 8192; a smaller one suits small data).
        invariance: weight of the views' agreement.
        variance: weight of the hinge that keeps each dimension's standard deviation at 1.
        covariance: weight of the squared covariances.
    """

    remembered = ("_before",)
    _before = 0.0

    def __init__(
        self,
        backbone: Backbone,
        views: Views | None = None,
        out_dim: int = 2048,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
    ) -> None:
        super().__init__(backbone, views)
        self.out_dim, self.invariance, self.variance, self.covariance = out_dim, invariance, variance, covariance
        self.head = MLPHead([backbone.embed_dim, out_dim, out_dim, out_dim], bias=False)

    def forward(self, batch: Batch, progress: float) -> Losses:
        """The weighted sum and its three parts; ``variance`` at 1 is collapse."""
        first, second = (self.embed(view) for view in self.views(batch))
        parts = vicreg(first, second)
        weights = {"invariance": self.invariance, "variance": self.variance, "covariance": self.covariance}
        return {"loss": torch.stack([weights[name] * part for name, part in parts.items()]).sum(), **parts}

    def vital_signs(self, batch: Batch) -> dict[str, Tensor]:
        """Those of all tasks on two views, and the standard deviation that the variance term is to keep at 1."""
        embedding = self.embed(self.views(batch)[0])
        return {**self.signs_of(embedding), "embedding_deviation": embedding.float().std(0).mean()}

    def verdict(self, signs: Mapping[str, float]) -> str:
        """Shrunk to a point, which spread and rank, that have no scale, do not see; or what is wrong with the shape."""
        deviation = signs["embedding_deviation"]
        shrinks, self._before = deviation < self._before, deviation
        if shrinks and deviation < _LEAST_DEVIATION:  # a single image has none
            return (
                f"the embedding shrinks to a point (standard deviation {deviation:.3f}, the variance term is to keep "
                "it at 1): raise task.variance, lower the learning rate or lengthen the warm-up"
            )
        return super().verdict(signs)
