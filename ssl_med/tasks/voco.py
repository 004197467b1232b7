"""VoCo: where in the image does a crop lie? (Wu, Zhuang, Chen, CVPR 2024, arXiv 2402.17300).

The regions of a grid are kept apart in the embedding, and the similarity of a random crop to each of them shall be the
share of the crop that lies in it. Written from the paper's equations as others report them; see ``docs/tasks/voco.md``.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ssl_med.backbones import Backbone
from ssl_med.errors import UserError
from ssl_med.ops.collapse import effective_rank, feature_spread
from ssl_med.ops.ema import follow, teacher_of
from ssl_med.ops.position_contrast import Weighting, discrepancy_loss, position_loss, similarity
from ssl_med.tasks.base import PretextTask
from ssl_med.tasks.heads import MLPHead
from ssl_med.transforms import SingleView, Views
from ssl_med.transforms.base import check_range
from ssl_med.transforms.position_crops import PositionCrops, Regions
from ssl_med.types import Batch, Losses

_WARM = 0.25
"""Share of the training after which an embedding that knows no positions is worth a word."""


class VoCo(PretextTask):
    """Predicts the position of random crops by their similarity to the regions of the same image.

    Args:
        backbone: any; the pooled feature is used.
        views: changes of the whole image before it is cut; none by default.
        crops: how it is cut; by default 4 x 4 regions in the plane of the last two axes and two random crops.
        hidden_dim: width of the head's hidden layers.
        out_dim: width of the embedding.
        regularisation: weight of the term that keeps regions apart.
        weighting: of the pairs: ``overlap`` as the authors' code, ``equal`` as equations 3 and 5, see
            :func:`~ssl_med.ops.position_contrast.position_loss`.
        momentum: of the teacher that embeds the regions for the prediction (0.9 in the authors' code); 0 for none, as
            in the paper: then the student's own embeddings of the regions are the targets, without a gradient.

    Raises:
        UserError: the momentum is not in [0, 1), or the weighting is unknown.
    """

    def __init__(
        self,
        backbone: Backbone,
        views: Views | None = None,
        crops: PositionCrops | None = None,
        hidden_dim: int = 2048,
        out_dim: int = 2048,
        regularisation: float = 1.0,
        weighting: Weighting = "overlap",
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        check_range("VoCo: momentum", (momentum, momentum), 0.0, 0.9999)
        if weighting not in ("overlap", "equal"):
            raise UserError(f"VoCo: weighting is overlap or equal, got {weighting}")
        self.backbone, self.hidden_dim, self.out_dim = backbone, hidden_dim, out_dim
        self.regularisation, self.momentum = regularisation, momentum
        self.weighting: Weighting = weighting
        self.views = views if views is not None else SingleView([])
        self.crops = crops if crops is not None else PositionCrops(multiple=list(backbone.multiple()))
        self.head = MLPHead([backbone.embed_dim, hidden_dim, hidden_dim, out_dim])
        student = nn.ModuleList([backbone, self.head])
        self.teacher = teacher_of(student) if momentum else None
        self._progress = 0.0

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Prediction of the overlaps, similarity of the regions, and what no similarity at all would score."""
        regions = self.crops(self.views(batch)[0])
        cosine, bases = self.compare(regions)
        prediction = position_loss(cosine, regions.overlap, regions.present, self.weighting)
        discrepancy = discrepancy_loss(bases, regions.present, self.weighting)
        blind = position_loss(torch.zeros_like(cosine), regions.overlap, regions.present, self.weighting)
        loss = prediction + self.regularisation * discrepancy
        return {"loss": loss, "prediction": prediction, "discrepancy": discrepancy, "prediction_blind": blind}

    def compare(self, regions: Regions) -> tuple[Tensor, Tensor]:
        """Cosines of random crops and regions (b, k, n), and the student's embeddings of the regions (b, n, d)."""
        count = len(regions.overlap)
        bases, randoms = (self._rows(self.embed(crop), count) for crop in (regions.base, regions.random))
        targets = bases.detach() if self.teacher is None else self._rows(self.teach(regions.base), count)
        return similarity(randoms, targets), bases

    def embed(self, crops: Batch) -> Tensor:
        """Embeddings of crops (rows, out_dim)."""
        return self.head(self.backbone(crops["image"], crops.get("spacing")).pooled)

    @torch.no_grad()
    def teach(self, crops: Batch) -> Tensor:
        """The teacher's embeddings of crops."""
        backbone, head = cast(nn.ModuleList, self.teacher)
        return head(backbone(crops["image"], crops.get("spacing")).pooled)

    @staticmethod
    def _rows(embedding: Tensor, count: int) -> Tensor:
        """(v * b, d), crops of one number together, to (b, v, d)."""
        return embedding.unflatten(0, (-1, count)).transpose(0, 1)

    def after_step(self, progress: float) -> None:
        """The teacher follows."""
        self._progress = progress
        if self.teacher is not None:
            follow(self.teacher, nn.ModuleList([self.backbone, self.head]), self.momentum)

    @torch.no_grad()
    def vital_signs(self, batch: Batch) -> dict[str, Tensor]:
        """Spread and rank of the regions' embeddings, the prediction, and the overlapping pairs without a gradient."""
        regions = self.crops(self.views(batch)[0])
        cosine, bases = self.compare(regions)
        arguments = (regions.overlap, regions.present, self.weighting)
        overlapping = regions.overlap > 0
        return {
            "embedding_spread": feature_spread(bases.flatten(0, 1)),
            "embedding_rank": effective_rank(bases.flatten(0, 1)),
            "position_loss": position_loss(cosine, *arguments),
            "position_blind": position_loss(torch.zeros_like(cosine), *arguments),
            "dead_pairs": ((cosine <= 0) & overlapping).sum() / overlapping.sum(),
        }

    def verdict(self, signs: Mapping[str, float]) -> str:
        """A sentence if the embedding has collapsed, or knows no positions after the warm-up."""
        if signs["embedding_spread"] < 0.05:
            return (
                f"the embedding is nearly the same for all regions (spread {signs['embedding_spread']:.4f}, 1 would be "
                "isotropic): lower the learning rate or raise task.regularisation"
            )
        if self._progress < _WARM or signs["position_loss"] < signs["position_blind"]:
            return ""
        return (
            f"no position is found: the prediction scores {signs['position_loss']:.3f}, no similarity at all "
            f"{signs['position_blind']:.3f}; {signs['dead_pairs']:.0%} of the overlapping pairs have a cosine of 0 or "
            "less and so no gradient: train longer, change lr, or enlarge data.crop"
        )

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The image, the overlaps of its first random crop with the regions, and the similarities to them."""
        view = self.views(batch)[0]
        regions = self.crops(view)
        cosine, _ = self.compare(regions)
        image = view["image"].float()
        maps = {"overlap": regions.overlap[:, 0], "similarity": cosine[:, 0].relu()}
        return {"image": image, **{name: self._on_grid(value, image) for name, value in maps.items()}}

    def _on_grid(self, value: Tensor, image: Tensor) -> Tensor:
        """One number per region (b, n) as a picture of the size of the image."""
        space = tuple(image.shape[2:])
        grid = self.crops.grid_of(space)
        picture = value.reshape(len(value), 1, *grid)
        for axis, (length, cells) in enumerate(zip(space, grid, strict=True), 2):
            picture = picture.repeat_interleave(length // cells, axis)
        return picture.expand_as(image)

    def exports(self) -> dict[str, nn.Module]:
        """The student's backbone."""
        return {"backbone": self.backbone}

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; the head counts as last."""
        return self.backbone.layers()
