"""Barlow Twins: the cross-correlation of two views shall be the identity (Zbontar et al., 2021, arXiv 2103.03230)."""

from ssl_med.backbones import Backbone
from ssl_med.ops.joint import barlow_twins
from ssl_med.tasks.heads import MLPHead
from ssl_med.tasks.joint import TwoViewTask
from ssl_med.transforms import Views
from ssl_med.types import Batch, Losses


class BarlowTwins(TwoViewTask):
    """Redundancy reduction, with no negatives and no teacher.

    Args:
        backbone: any.
        views: two views; crops, flips, blur and noise by default, for RGB pictures colour instead of noise.
        out_dim: width of all three layers of the head (paper: 8192; a smaller one suits small data).
        redundancy: weight of the elements off the diagonal.
        scale: factor on the whole loss, which is a sum over all dimensions (official code: 1/40 for its optimiser).
    """

    def __init__(
        self,
        backbone: Backbone,
        views: Views | None = None,
        out_dim: int = 2048,
        redundancy: float = 5e-3,
        scale: float = 0.025,
    ) -> None:
        super().__init__(backbone, views)
        self.out_dim, self.redundancy, self.scale = out_dim, redundancy, scale
        self.head = MLPHead([backbone.embed_dim, out_dim, out_dim, out_dim], bias=False)

    def forward(self, batch: Batch, progress: float) -> Losses:
        """The weighted sum and its two parts."""
        first, second = (self.embed(view) for view in self.views(batch))
        parts = barlow_twins(first, second)
        loss = self.scale * (parts["invariance"] + self.redundancy * parts["redundancy"])
        return {"loss": loss, **parts}
