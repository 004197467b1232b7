"""LeJEPA: views agree and their embedding is an isotropic Gaussian (Balestriero and LeCun, arXiv 2511.08544)."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ssl_med.backbones import Backbone
from ssl_med.ops.joint import sigreg
from ssl_med.ops.random import Draws
from ssl_med.ops.ranks import gather, mean
from ssl_med.tasks.heads import MLPHead
from ssl_med.tasks.joint import TwoViewTask
from ssl_med.transforms import Views
from ssl_med.transforms.base import draws_of
from ssl_med.types import Batch, Losses


class LeJEPA(TwoViewTask):
    """One weight, no teacher, no negatives, no schedule.

    Args:
        backbone: any.
        views: two or more views; crops, flips, blur and noise by default, for RGB pictures colour instead of noise.
        hidden_dim: width of the head's hidden layers.
        out_dim: width of the embedding.
        weight: of the Gaussian's term; the views' agreement has the rest (paper: 0.01 to 0.1).
        directions: number of random directions along which the embedding is compared with a Gaussian.
        centre_views: how many of the views, from the first, make the centre that all views are drawn to; the paper
            takes the large crops.
    """

    def __init__(
        self,
        backbone: Backbone,
        views: Views | None = None,
        hidden_dim: int = 2048,
        out_dim: int = 64,
        weight: float = 0.05,
        directions: int = 1024,
        centre_views: int = 2,
    ) -> None:
        super().__init__(backbone, views)
        self.hidden_dim, self.out_dim, self.weight = hidden_dim, out_dim, weight
        self.directions, self.centre_views = directions, centre_views
        self.head = MLPHead([backbone.embed_dim, hidden_dim, hidden_dim, out_dim])

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Agreement, Gaussianity and their weighted sum."""
        embedding = torch.stack([self.embed(view) for view in self.views(batch)]).float()
        centre = embedding[: self.centre_views].mean(0)
        agreement = mean((embedding - centre).square().mean())
        gaussian = sigreg(embedding, self._directions(batch, embedding.shape[-1]))
        loss = (1 - self.weight) * agreement + self.weight * gaussian
        return {"loss": loss, "agreement": agreement, "gaussian": gaussian}

    def _directions(self, batch: Batch, width: int) -> Tensor:
        """New directions for each batch, the same on every process: from the first key of the whole batch."""
        draws = Draws(gather(draws_of(batch).keys[:1])[:1]).child(0)
        return normalize(draws.normal(width, self.directions)[0], dim=0)
