"""Slices and the volume they come from shall look alike to one backbone (UniMiSS, ECCV 2022), beside any pretext task.

A volume is seen twice: whole, and as a set of slices that go through the 2D path and are averaged. Each sight predicts
the other. Images pass to the pretext task alone.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_med.backbones import Backbone, SharedViT
from ssl_med.errors import UserError
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

    Raises:
        UserError: no slice, or no such axis.
    """

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
        term = self.consistency(batch)
        return {**losses, "loss": losses["loss"] + self.weight * term, "consistency": term}

    def consistency(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean of both predictions: the volume from its slices, and the slices from their volume."""
        slices = self.cut(batch)
        volume, mean = self._see(self.backbone, batch, slices)
        target_volume, target_mean = volume.detach(), mean.detach()
        teacher = cast(Backbone, self.task.exports()["backbone"])
        if teacher is not self.backbone:
            with torch.no_grad():
                target_volume, target_mean = self._see(teacher, batch, slices)
        from_slices, from_volume = self.predictor(mean), self.predictor(volume)
        return (cosine_distance(from_slices, target_volume) + cosine_distance(from_volume, target_mean)) / 2

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
        """The part's."""
        return self.task.vital_signs(batch)

    def verdict(self, signs: Mapping[str, float]) -> str:
        """The part's."""
        return self.task.verdict(signs)

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The part's."""
        return self.task.pictures(batch)

    def exports(self) -> dict[str, nn.Module]:
        """The part's; ``backbone.rank(2)`` and ``backbone.rank(3)`` of it are ordinary ViTs."""
        return self.task.exports()

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; heads count as last."""
        return self.backbone.layers()
