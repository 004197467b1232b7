"""SwAV (Caron et al., NeurIPS 2020, arXiv 2006.09882): clusters that are found while the features are learned.

Each large crop of an image gets a code, a soft choice among prototypes for which all prototypes are used alike over the
batch; the other crops of the image must predict it. No teacher and no negatives. Defaults are the paper's.
"""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from ssl_med.backbones import Backbone
from ssl_med.errors import UserError
from ssl_med.ops.centring import Sinkhorn
from ssl_med.ops.distillation import teacher_signs, view_distillation
from ssl_med.tasks.base import Choice, Plan, PretextTask
from ssl_med.tasks.heads import MLPHead
from ssl_med.transforms import MultiCrop, Views
from ssl_med.types import Batch, Losses

PROTOTYPES, FREEZE = 3000, 0.0025
"""The paper's values of what is chosen from the data when it is left open; frozen for one of 400 epochs."""
GLOBAL_VIEWS = 2
INFORMED = 0.02
"""Nats by which the prototypes must tell images apart; less means that all images get the same answer."""


def swav_views(backbone: Backbone) -> MultiCrop:
    """Two large and six small crops: of the paper's sizes for images, of 3DINO's (arXiv 2501.11755) for volumes."""
    multiple = list(backbone.multiple())
    if backbone.spatial_dims != 2:
        return MultiCrop(6, multiple)
    return MultiCrop(6, multiple, global_scale=(0.14, 1.0), local_scale=(0.05, 0.14))


class SwAV(PretextTask):
    """Swapped prediction of online clusters. The paper's queue for small batches is not part of it.

    Args:
        backbone: any; it is what is exported.
        views: two global views first, then local ones; 2 + 6 by default, see :func:`swav_views`.
        prototypes: number of clusters; chosen from the number of images and the batch if left open, 3000 (the paper's)
            where they are not known.
        hidden_dim: width of the head's hidden layer.
        out_dim: width of the embedding.
        temperature: of the predictions.
        epsilon: of the codes: smaller is sharper.
        freeze: share of the training in which the prototypes stay; one epoch, chosen likewise.

    Raises:
        UserError: a setting out of range.
    """

    def __init__(
        self,
        backbone: Backbone,
        views: Views | None = None,
        prototypes: int | None = None,
        hidden_dim: int = 2048,
        out_dim: int = 128,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        freeze: float | None = None,
    ) -> None:
        super().__init__()
        if min(temperature, epsilon) <= 0:
            raise UserError(f"SwAV: temperature {temperature} and epsilon {epsilon} must be above 0")
        self.backbone = backbone
        self.views = views if views is not None else swav_views(backbone)
        self.prototypes = PROTOTYPES if prototypes is None else prototypes
        self.hidden_dim, self.out_dim = hidden_dim, out_dim
        self.temperature, self.epsilon = temperature, epsilon
        self.freeze = FREEZE if freeze is None else freeze
        if self.prototypes < 2:
            raise UserError(f"SwAV: prototypes must be 2 or more, got {self.prototypes}")
        self.head = MLPHead([backbone.embed_dim, hidden_dim, out_dim])
        self.clusters = nn.Parameter(normalize(torch.randn(self.prototypes, out_dim), dim=1))
        self.codes = Sinkhorn()

    @classmethod
    def choose(cls, settings: Mapping[str, Any], plan: Plan) -> dict[str, Choice]:
        """No more prototypes than images that can fill them; frozen for the first epoch."""
        count = min(PROTOTYPES, max(8, min(plan.images // 8, plan.forward_size)))
        epoch = plan.images / plan.batch_size / plan.steps
        return {
            "prototypes": Choice(
                count,
                f"the least of {PROTOTYPES} (the paper's), {plan.images} images / 8, and the {plan.forward_size} "
                "images of a forward pass, which the codes share out evenly",
            ),
            "freeze": Choice(round(min(epoch, 0.1), 4), "the first epoch, at most a tenth of the training"),
        }

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Crop; score every crop against the prototypes; code the large crops; predict each code from the others."""
        frozen = progress < self.freeze
        scores = self.score(self.views(batch), frozen)
        codes = torch.stack([self.codes(view, self.epsilon) for view in scores[:GLOBAL_VIEWS].detach()])
        loss = view_distillation(codes, scores, self.temperature)
        entropy = torch.special.entr(codes).sum(-1).mean()
        if frozen:  # several processes wait for a gradient of every parameter; this one is zero
            loss = loss + 0.0 * self.clusters.sum()
        return {"loss": loss, "code_entropy": entropy}

    def score(self, views: list[Batch], frozen: bool = False) -> Tensor:
        """Cosine of each crop's embedding to each prototype, (v, b, k); one forward pass for each size of crop."""
        if len(views) < GLOBAL_VIEWS:
            raise UserError(f"SwAV needs two global views or more, got {len(views)}")
        features = [self._features(list(group)) for _, group in groupby(views, lambda view: view["image"].shape)]
        embedding = normalize(self.head(torch.cat(features)).float(), dim=1)
        clusters = self.clusters.detach() if frozen else self.clusters
        with torch.autocast(embedding.device.type, enabled=False):  # half precision is coarse beside epsilon
            return linear(embedding, clusters).unflatten(0, (len(views), -1))

    def _features(self, views: list[Batch]) -> Tensor:
        image = torch.cat([view["image"] for view in views])
        spacing = torch.cat([view["spacing"] for view in views]) if "spacing" in views[0] else None  # pyright: ignore
        return self.backbone(image, spacing).pooled

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Prototypes stay of length 1."""
        self.clusters.copy_(normalize(self.clusters, dim=1))

    def vital_signs(self, batch: Batch) -> dict[str, Tensor]:
        """How the prototypes are used on the large crops, without the balancing that hides a collapse."""
        scores = self.score(self.views(batch)[:GLOBAL_VIEWS]).flatten(0, 1)
        signs = teacher_signs((scores / self.temperature).softmax(-1))
        return {name.removeprefix("teacher_"): value for name, value in signs.items()}

    def verdict(self, signs: Mapping[str, float]) -> str:
        """All images alike, or nothing to say."""
        if signs["information"] > INFORMED:
            return ""
        return (
            f"the prototypes tell no image from another ({signs['information']:.4f} nats of at most ln K = "
            f"{signs['ln_prototypes']:.2f}; the loss then stays near ln K): lower learner.lr, lengthen the warm-up, or "
            "take fewer prototypes (task.prototypes)"
        )

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The image and its two large crops."""
        first, second = self.views(batch)[:GLOBAL_VIEWS]
        return {
            "input": batch["image"].float(),
            "global view 1": first["image"].float(),
            "global view 2": second["image"].float(),
        }

    def exports(self) -> dict[str, nn.Module]:
        """The backbone; head and prototypes are thrown away."""
        return {"backbone": self.backbone}

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; head and prototypes count as last."""
        return self.backbone.layers()
