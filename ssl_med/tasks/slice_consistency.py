"""Slices and the volume they come from shall look alike to one backbone (UniMiSS, ECCV 2022), beside any pretext task.

A volume is seen twice: whole, and as a set of slices that go through the 2D path and are averaged. Each sight predicts
the other. Images pass to the pretext task alone.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_med.backbones import Backbone, SharedViT
from ssl_med.errors import UserError
from ssl_med.ops import ranks
from ssl_med.ops.collapse import feature_spread
from ssl_med.ops.joint import cosine_distance
from ssl_med.ops.random import Draws
from ssl_med.recipe import locate
from ssl_med.tasks.base import Choice, Plan, PretextTask
from ssl_med.tasks.heads import MLPHead
from ssl_med.tasks.hybrid import build_part, plain
from ssl_med.transforms.base import draws_of
from ssl_med.types import Batch, Losses

_SLICE_STREAM = 1 << 35
"""Child number of the slices: the pretext task, which draws from the same key, never meets it."""
_COLLAPSED = 0.02
"""Spread of the predictions up to which they count as one. After 150 steps on eight made-up volumes it was 0.3 to 0.4
in sound runs, and 0.01 without the stopped gradient at a hundredfold rate."""
_REMEMBERED = 0.9
"""Share of the old spread that stays in its moving average: a batch of volumes is small."""


class SliceConsistency(PretextTask):
    """A pretext task, and for volumes the agreement of slices and volume.

    UniMiSS compares distributions over prototypes; here cosines are compared behind a predictor (SimSiam, arXiv
    2011.10566), so that the term stands beside any task. Targets carry no gradient; they come from the part's teacher
    if that is what the part exports (DINO), as in UniMiSS, else from the backbone itself.

    Args:
        backbone: of images and volumes; it is what is exported, or the part's teacher of it.
        part: dotted path of a pretext task that takes both kinds, such as ``ssl_med.tasks.DINO``.
        settings: its arguments, without the backbone.
        weight: of the agreement, which is 0 for equal and 2 for unrelated features.
        slices: of each volume; UniMiSS takes all 16 of its volumes.
        axis: of the volume that slices are cut across: 0 gives axial ones.
        hidden_dim: width of the predictor's hidden layer.

    Attributes:
        spread: of the predictions for volumes, a moving average over the training; nan before the first volume. Looks
            at the run may see images only, see :class:`~ssl_med.data.several.SeveralStores`.

    Raises:
        UserError: no slice, or no such axis.
    """

    spread: Tensor

    def __init__(
        self,
        backbone: SharedViT,
        part: str,
        settings: dict[str, Any],
        weight: float = 1.0,
        slices: int = 4,
        axis: int = 0,
        hidden_dim: int = 512,
    ) -> None:
        super().__init__()
        if slices < 1 or axis not in (0, 1, 2):
            raise UserError(f"SliceConsistency: slices {slices} must be 1 or more, axis {axis} one of 0, 1, 2")
        self.backbone, self.part, self.settings = backbone, part, plain(settings)
        self.weight, self.slices, self.axis, self.hidden_dim = weight, slices, axis, hidden_dim
        self.task = build_part("part", {"class_path": part, "init_args": self.settings}, backbone)
        self.predictor = MLPHead([backbone.embed_dim, hidden_dim, backbone.embed_dim])
        self.register_buffer("spread", torch.tensor(torch.nan), persistent=False)

    @classmethod
    def choose(cls, settings: Mapping[str, Any], plan: Plan) -> dict[str, Choice]:
        """What the part chooses, under ``settings.SETTING``."""
        found = locate(settings["part"], "part").choose(settings["settings"], plan)
        return {f"settings.{setting}": choice for setting, choice in found.items()}

    def forward(self, batch: Batch, progress: float) -> Losses:
        """The part's losses; for volumes the agreement is added."""
        losses = self.task(batch, progress)
        if batch["image"].ndim == 4:
            return losses
        agreement = self.agree(batch)
        loss = losses["loss"] + self.weight * agreement["consistency"]
        if self.training and "consistency_spread" in agreement:
            new = agreement["consistency_spread"]
            self.spread = torch.where(self.spread.isfinite(), self.spread.lerp(new, 1 - _REMEMBERED), new)
        return {**losses, "loss": loss, **agreement}

    def consistency(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean of both predictions: the volume from its slices, and the slices from their volume."""
        return self.agree(batch)["consistency"]

    def agree(self, batch: Batch) -> dict[str, Tensor]:
        """:meth:`consistency`, and the spread of the predictions where there are two volumes or more."""
        slices = self.cut(batch)
        volume, mean = self._see(self.backbone, batch, slices)
        target_volume, target_mean = volume.detach(), mean.detach()
        teacher = cast(Backbone, self.task.exports()["backbone"])
        if teacher is not self.backbone:
            with torch.no_grad():
                target_volume, target_mean = self._see(teacher, batch, slices)
        from_slices, from_volume = self.predictor(mean), self.predictor(volume)
        term = (cosine_distance(from_slices, target_volume) + cosine_distance(from_volume, target_mean)) / 2
        said = [ranks.gather(x.detach()) for x in (from_slices, from_volume)]
        if len(said[0]) < 2:  # one volume has no spread
            return {"consistency": term}
        return {"consistency": term, "consistency_spread": torch.stack([feature_spread(x) for x in said]).mean()}

    def _see(self, backbone: Backbone, batch: Batch, slices: Tensor) -> tuple[Tensor, Tensor]:
        """Features of whole volumes (b, d), and means over those of their slices."""
        spacing = batch.get("spacing")
        whole = backbone(batch["image"], spacing).pooled
        flat = None
        if spacing is not None:
            kept = [axis for axis in range(3) if axis != self.axis]
            flat = spacing[:, kept].repeat_interleave(slices.shape[1], 0)
        return whole, backbone(slices.flatten(0, 1), flat).pooled.unflatten(0, slices.shape[:2]).mean(1)

    def cut(self, batch: Batch) -> Float[Tensor, "b s c y x"]:
        """Slices of each volume: one anywhere in each of equally thick slabs."""
        volume = batch["image"].movedim(self.axis + 2, 1)
        depth = volume.shape[1]
        count = min(self.slices, depth)
        draws: Draws = draws_of(batch).child(_SLICE_STREAM)
        slab = torch.arange(count, device=volume.device)
        index = ((slab + draws.uniform(count)) * (depth / count)).long().clamp(max=depth - 1)
        rows = torch.arange(len(volume), device=volume.device)[:, None]
        return volume[rows, index]

    def after_step(self, progress: float) -> None:
        """The part's."""
        self.task.after_step(progress)

    def vital_signs(self, batch: Batch) -> dict[str, Tensor]:
        """The part's, and the spread of the predictions: of this batch, or as remembered if it is of images."""
        signs = self.task.vital_signs(batch)
        if batch["image"].ndim == 5:
            return {**signs, **self.agree(batch)}
        return {**signs, "consistency_spread": self.spread} if self.spread.isfinite() else signs

    def verdict(self, signs: Mapping[str, float]) -> str:
        """The part's; then whether slices and volumes agree only because all predictions are one."""
        spread = signs.get("consistency_spread", math.inf)
        if (words := self.task.verdict(signs)) or spread > _COLLAPSED:
            return words
        return (
            f"slices and volumes agree because the prediction is nearly the same for all of them (spread {spread:.4f}, "
            "1 would be isotropic): lower task.weight or learner.lr, or lengthen the warm-up"
        )

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The part's."""
        return self.task.pictures(batch)

    def exports(self) -> dict[str, nn.Module]:
        """The part's; ``backbone.rank(2)`` and ``backbone.rank(3)`` of it are ordinary ViTs."""
        return self.task.exports()

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; heads count as last."""
        return self.backbone.layers()
