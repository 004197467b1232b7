"""SSiT, the saliency-guided self-supervised image transformer (Huang et al., JBHI 2024, arXiv 2210.10969), 2D and 3D.

MoCo v3 whose key branch sees only the most salient patches, and whose query branch also predicts the saliency map.
Defaults (a quarter dropped, threshold 0.5, segmentation weight 10, temperature 0.2) are the paper's and its code's.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ssl_med.backbones.vit import ViT
from ssl_med.errors import UserError
from ssl_med.ops import ranks
from ssl_med.ops.masking import random_order, visible_count
from ssl_med.ops.patches import grid_of, patchify, unpatchify
from ssl_med.schedules import cosine
from ssl_med.tasks.appearance import appearance
from ssl_med.tasks.momentum_contrast import MomentumContrast, contrast
from ssl_med.tasks.saliency import FineGrained, SaliencyProvider, StoredSaliency, fall_back
from ssl_med.transforms import Affine, Flip, PairedViews, RandomResizedCrop, Views
from ssl_med.transforms.base import draws_of, spread
from ssl_med.types import Batch, Losses

_NO_BETTER = 0.97
"""Share of the chance level from which on a segmentation is no better than chance."""


class Glance(NamedTuple):
    """What the query branch makes of a view.

    Attributes:
        query: (b, d).
        logits: of the saliency, (b, 1, \\*space); None without a segmentation head.
    """

    query: Float[Tensor, "b d"]
    logits: Float[Tensor, "b 1 *space"] | None


class SSiT(MomentumContrast):
    """Saliency-guided contrast.

    Args:
        backbone: a ViT; it is the query branch's and is exported.
        views: two views of each image, whose geometry moves the saliency map too; the paper's by default, without
            colour for images that have none.
        saliency: where the map comes from; by default the store's, and fine-grained where it has none.
        drop: what the key branch does not see: the least salient patches, as many random ones (control), or none
            (control).
        drop_ratio: share of the patches that is dropped.
        score: a patch is as salient as its ``max`` (the paper) or its ``mean``.
        temperature: of the contrast.
        momentum: of the key branch at the start, cosine to 1; None is the paper's 0.99.
        segmentation_weight: of the saliency segmentation; 0 leaves it out (control).
        segmentation_decay: let that weight fall to 0 along a cosine.
        threshold: saliency above which a voxel is to be predicted as salient.
        hidden_dim: width inside the heads; None is the paper's 4096.
        out_dim: width of queries and keys.
        pooling: ``class``: the class token where there is one (the paper); ``mean``: the mean of the patches.
    """

    def __init__(
        self,
        backbone: ViT,
        views: Views | None = None,
        saliency: SaliencyProvider | None = None,
        drop: Literal["saliency", "random", "none"] = "saliency",
        drop_ratio: float = 0.25,
        score: Literal["max", "mean"] = "max",
        temperature: float = 0.2,
        momentum: float | None = None,
        segmentation_weight: float = 10.0,
        segmentation_decay: bool = False,
        threshold: float = 0.5,
        hidden_dim: int | None = None,
        out_dim: int = 256,
        pooling: Literal["class", "mean"] = "class",
    ) -> None:
        views = views if views is not None else default_views(backbone.spatial_dims, backbone.in_channels)
        super().__init__(backbone, views, temperature, momentum, hidden_dim, out_dim, pooling)
        visible_count(1, drop_ratio)  # refuses a ratio outside [0, 1)
        if segmentation_weight < 0:
            raise UserError(f"SSiT: segmentation_weight must be 0 or more, got {segmentation_weight}")
        self.saliency = saliency if saliency is not None else StoredSaliency(FineGrained())
        self.drop: Literal["saliency", "random", "none"] = drop
        self.score: Literal["max", "mean"] = score
        self.drop_ratio, self.threshold = drop_ratio, threshold
        self.segmentation_weight, self.segmentation_decay = segmentation_weight, segmentation_decay
        voxels = backbone.patch_embed.proj.in_features // backbone.in_channels
        self.segment = nn.Linear(backbone.embed_dim, voxels) if segmentation_weight > 0 else None

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Each view's queries against the other view's keys, and each view's saliency from its own patches."""
        batch, constant = self.measure(batch)
        first, second = self.views(batch)
        one, two = self.glance(first), self.glance(second)
        k1, k2 = self.key(first), self.key(second)
        loss = contrast(one.query, k2, self.temperature) + contrast(two.query, k1, self.temperature)
        losses = {"contrast": loss, "degenerate_maps": ranks.total(constant.float().sum())}
        if self.segment is not None:
            losses["segmentation"] = self.error(one, first, constant) + self.error(two, second, constant)
            loss = loss + self.weight_at(progress) * losses["segmentation"]
        return {"loss": loss, **losses}

    def measure(self, batch: Batch) -> tuple[Batch, Bool[Tensor, " b"]]:
        """The batch with its saliency, and which maps were constant and so gave way to a uniform one."""
        saliency, constant = fall_back(self.saliency(batch, self.key_backbone), batch.get("valid"))
        return cast(Batch, {**batch, "saliency": saliency}), constant

    def equip(self, batch: Batch) -> Batch:
        """The batch with its saliency."""
        return self.measure(batch)[0]

    def glance(self, view: Batch) -> Glance:
        """All patches through the query branch."""
        vit = cast(ViT, self.backbone)
        tokens = vit.tokenize(view["image"], view.get("spacing"))
        encoded = vit.encode(tokens)
        query = self.through(self.predictor, self.through(self.projector, self.summary(vit, encoded)))
        if self.segment is None:
            return Glance(query, None)
        return Glance(query, unpatchify(self.segment(encoded[:, vit.prefix :]), vit.patch, tokens.grid))

    def query(self, view: Batch) -> Tensor:
        """Predictions of the keys from all patches of a view."""
        return self.glance(view).query

    @torch.no_grad()
    def key(self, view: Batch) -> Tensor:
        """The moving averages of backbone and projector on the patches that are kept."""
        vit = cast(ViT, self.key_backbone)
        tokens = vit.tokenize(view["image"], view.get("spacing"))
        if self.drop != "none":
            tokens = tokens.keep(self.kept(view))
        return self.through(self.key_projector, self.summary(vit, vit.encode(tokens)))

    def summary(self, vit: ViT, encoded: Float[Tensor, "b m d"]) -> Float[Tensor, "b d"]:
        """Class token or mean of the patches."""
        return encoded[:, 0] if self.pooling == "class" and vit.class_token else encoded[:, vit.prefix :].mean(1)

    def kept(self, view: Batch) -> Int[Tensor, "b v"]:
        """Patches that the key branch sees, the most salient first; equal ones in random order, padding last."""
        vit = cast(ViT, self.backbone)
        count = patch_count(view, vit.patch)
        padding = None
        if "valid" in view:
            padding = patchify(view["valid"].float(), vit.patch).amax(-1) == 0
        order, _ = random_order(draws_of(view).child(0), count, last=padding)
        if self.drop == "saliency":
            scores = self.scores(view) if padding is None else self.scores(view).masked_fill(padding, -1.0)
            order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
        return order[:, : visible_count(count, self.drop_ratio)]

    def scores(self, view: Batch) -> Float[Tensor, "b n"]:
        """Saliency of each patch."""
        values = patchify(map_of(view), cast(ViT, self.backbone).patch)
        return values.amax(-1) if self.score == "max" else values.mean(-1)

    def error(self, glance: Glance, view: Batch, constant: Bool[Tensor, " b"]) -> Float[Tensor, ""]:
        """Mean binary cross-entropy of a view's saliency over voxels that are no padding, in images that have a map."""
        if glance.logits is None:
            raise UserError("SSiT: there is no segmentation head; segmentation_weight is 0")
        target = (map_of(view) > self.threshold).float()
        losses = functional.binary_cross_entropy_with_logits(glance.logits.float(), target, reduction="none")
        weight = spread(~constant, target).float().expand_as(target)
        if "valid" in view:
            weight = weight * view["valid"]
        return ranks.total((losses * weight).sum()) / ranks.total(weight.sum()).clamp(min=1)

    def vital_signs(self, batch: Batch) -> dict[str, Tensor]:
        """The contrast's, and the segmentation of both views beside what a head that says 0.5 everywhere gets."""
        signs = super().vital_signs(batch)
        if self.segment is None:
            return signs
        batch, constant = self.measure(batch)
        errors = [self.error(self.glance(view), view, constant) for view in self.views(batch)]
        chance = errors[0].new_tensor(len(errors) * math.log(2))
        return {**signs, "segmentation": torch.stack(errors).sum(), "segmentation_chance": chance}

    def verdict(self, signs: Mapping[str, float]) -> str:
        """The contrast's, and a head that has learned nothing of the saliency after half the training."""
        words = super().verdict(signs)
        if words or self.segment is None or signs["progress"] < 0.5:
            return words
        value, chance = signs["segmentation"], signs["segmentation_chance"]
        if value < _NO_BETTER * chance:
            return ""
        return (
            f"saliency is not predicted: the segmentation is {value:.2f}, saying 0.5 everywhere is {chance:.2f} "
            "(2 ln 2); lower learner.lr, or look at the maps among the pictures"
        )

    def weight_at(self, progress: float) -> float:
        """Weight of the segmentation."""
        return cosine(progress, self.segmentation_weight, 0.0) if self.segmentation_decay else self.segmentation_weight

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Image, saliency, both views, and of the first its saliency, what the key branch sees and the prediction."""
        batch, _ = self.measure(batch)
        first, second = self.views(batch)
        shown = {"input": batch["image"], "saliency": map_of(batch), "first view": first["image"]}
        shown |= {"second view": second["image"], "saliency of the first": map_of(first)}
        shown["kept for the key"] = self._only_kept(first)
        logits = self.glance(first).logits
        return shown if logits is None else {**shown, "predicted saliency": logits.float().sigmoid()}

    def _only_kept(self, view: Batch) -> Tensor:
        image, patch = view["image"].float(), cast(ViT, self.backbone).patch
        if self.drop == "none":
            return image
        patches = patchify(image, patch)
        seen = torch.zeros_like(patches[..., 0]).scatter(1, self.kept(view), 1.0)
        shown = torch.where(seen[..., None] > 0, patches, image.min())
        return unpatchify(shown, patch, grid_of(tuple(image.shape[2:]), patch))


def map_of(view: Batch) -> Float[Tensor, "b 1 *space"]:
    """The saliency that a view carries.

    Raises:
        UserError: it carries none.
    """
    saliency = view.get("saliency")
    if saliency is None:
        raise UserError("SSiT: a view has lost its saliency map; views must pass on what else is in the batch")
    return saliency.float()


def patch_count(view: Batch, patch: tuple[int, ...]) -> int:
    """Patches of an image."""
    count = 1
    for cells in grid_of(tuple(view["image"].shape[2:]), patch):
        count *= cells
    return count


def default_views(spatial_dims: int, channels: int) -> Views:
    """The paper's views: a small crop that is always blurred, a large one that rarely is; colour for RGB pictures.

    Images turn by up to 180 degrees as in the paper, volumes by up to 30.
    """
    turn = 180.0 if spatial_dims == 2 else 30.0
    look = [appearance(channels, spatial_dims, 1.0), appearance(channels, spatial_dims, 0.1, solarized=0.2)]
    first, second = (
        [RandomResizedCrop(scale=share), Affine(rotation=turn, scale=(1.0, 1.0), probability=0.8), Flip(), *changes]
        for share, changes in zip([(0.08, 0.8), (0.8, 1.0)], look, strict=True)
    )
    return PairedViews(first, second)
