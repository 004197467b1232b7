"""MoCo v3 (Chen, Xie, He, ICCV 2021, arXiv 2104.02057), for any backbone in 2D and 3D.

Two views of an image attract each other and repel the other images of the batch; the keys come from a moving average.
Defaults (temperature 0.2, momentum 0.99 to 1, heads 4096 / 256) are those for ViT-S. Its patch projection stays random
and frozen: the shipped configs say so, since other backbones have none.
"""

from typing import Literal

import torch
from torch import Tensor

from ssl_med.backbones import Backbone, ViT
from ssl_med.errors import UserError
from ssl_med.tasks.appearance import appearance
from ssl_med.tasks.momentum_contrast import MomentumContrast, contrast
from ssl_med.transforms import Flip, PairedViews, RandomResizedCrop, Views
from ssl_med.types import Batch, Losses


class MoCoV3(MomentumContrast):
    """Momentum contrast without a queue.

    Args:
        backbone: any; it is the query branch's and is exported.
        views: two views of each image; by default crops, flips, blur (always in the first, rarely in the second) and
            noise, for 2D images of three channels the published changes of colour instead.
        temperature: of the contrast (ViT 0.2, ResNet 1.0).
        momentum: of the key branch at the start, cosine to 1; None is the paper's 0.99.
        hidden_dim: width inside the heads; None is the paper's 4096.
        out_dim: width of queries and keys.
        pooling: ``class``: the class token where there is one (the paper); ``mean``: the backbone's pooled feature.
        freeze_patch_embedding: leave a ViT's random patch projection as it is, which keeps its training stable (the
            paper, section 4); False for backbones that are no ViT.
    """

    def __init__(
        self,
        backbone: Backbone,
        views: Views | None = None,
        temperature: float = 0.2,
        momentum: float | None = None,
        hidden_dim: int | None = None,
        out_dim: int = 256,
        pooling: Literal["class", "mean"] = "class",
        freeze_patch_embedding: bool = False,
    ) -> None:
        views = views if views is not None else default_views(backbone.in_channels, backbone.spatial_dims)
        if freeze_patch_embedding:
            freeze_patches(backbone)
        super().__init__(backbone, views, temperature, momentum, hidden_dim, out_dim, pooling)
        self.freeze_patch_embedding = freeze_patch_embedding

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Each view's queries against the other view's keys."""
        first, second = self.views(batch)
        q1, q2, k1, k2 = self.query(first), self.query(second), self.key(first), self.key(second)
        return {"loss": contrast(q1, k2, self.temperature) + contrast(q2, k1, self.temperature)}

    def query(self, view: Batch) -> Tensor:
        """Backbone, projector, predictor."""
        return self.through(self.predictor, self.through(self.projector, self.represent(self.backbone, view)))

    @torch.no_grad()
    def key(self, view: Batch) -> Tensor:
        """The moving averages of backbone and projector."""
        return self.through(self.key_projector, self.represent(self.key_backbone, view))

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The image and its two views."""
        first, second = self.views(batch)
        return {"input": batch["image"], "first view": first["image"], "second view": second["image"]}


def freeze_patches(backbone: Backbone) -> None:
    """Send no gradient to the patch projection of a ViT.

    Raises:
        UserError: the backbone is no ViT.
    """
    if not isinstance(backbone, ViT):
        raise UserError(
            f"freeze_patch_embedding: {type(backbone).__name__} has no patch projection; set it to false or use a ViT"
        )
    backbone.patch_embed.requires_grad_(False)


def default_views(channels: int, spatial_dims: int) -> Views:
    """BYOL's views (arXiv 2006.07733); without colour for images that have none."""
    look = [appearance(channels, spatial_dims, 1.0), appearance(channels, spatial_dims, 0.1, solarized=0.2)]
    first, second = ([RandomResizedCrop(scale=(0.08, 1.0)), Flip(), *changes] for changes in look)
    return PairedViews(first, second)
