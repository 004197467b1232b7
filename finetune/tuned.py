"""What all supervised tasks of this package share: a backbone with something on it, and a way to tune the two."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finetune.lora import merge
from finetune.tuning import Frozen, Full, LoRA, Preset, Tuning, as_tuning
from ssl_med.backbones import Backbone
from ssl_med.evaluate import tiles
from ssl_med.recipe import build, recipe
from ssl_med.tasks import Rates, SupervisedTask
from ssl_med.transforms import SingleView, Views
from ssl_med.types import Batch, Features


class Tuned(SupervisedTask):
    """A supervised task on a backbone.

    Args:
        backbone: pretrained or not.
        window: voxels along each axis that are looked at together when whole images are predicted.
        frozen: keep the backbone as it is; the same as ``tuning="frozen"``, and stronger than ``tuning``.
        views: augmentation of the training images; none by default.
        tuning: name of a preset, or one with settings of its own.
    """

    def __init__(
        self,
        backbone: Backbone,
        window: Sequence[int],
        frozen: bool = False,
        views: Views | None = None,
        tuning: Preset | Tuning = "full",
    ) -> None:
        super().__init__()
        self.backbone, self.window, self.frozen, self.tuning = backbone, list(window), frozen, tuning
        self.views = views if views is not None else SingleView([])
        self._how = Frozen() if frozen else as_tuning(tuning)
        self._how.prepare(backbone)
        self._still = not self._how.trains(0.0)

    def train(self, mode: bool = True) -> "Tuned":
        """A backbone that holds still is in evaluation mode: no batch statistics, no stochastic depth."""
        super().train(mode)
        if self._still:
            self.backbone.eval()
        return self

    def view(self, batch: Batch, progress: float) -> Batch:
        """What a training step looks at; whether the backbone holds still is settled here."""
        still = not self._how.trains(progress)
        if still != self._still:
            self._still = still
            self.train(self.training)
        return self.views(batch)[0]

    def features(self, image: Tensor, spacing: Tensor | None = None) -> Features:
        """The backbone's, without a graph where it holds still."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._still):
            return self.backbone(image, spacing)

    def over_windows(self, batch: Batch, look: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        """Mean of what ``look`` says of windows that cover the image evenly, (b, k) float32."""
        image, spacing = batch["image"], batch.get("spacing")
        windows = tiles(tuple(image.shape[2:]), tuple(self.window))
        return torch.stack([look(image[(..., *window)], spacing).float() for window in windows]).mean(0)

    def rates(self, progress: float, warmup: float) -> Rates:
        """Those of the tuning."""
        return self._how.rates(progress, warmup)

    def layers(self) -> list[list[nn.Parameter]]:
        """The trunk; all else counts as last."""
        return list(self._how.layers(self.backbone))

    @classmethod
    def from_scratch(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The same schedule without protecting random weights; what is frozen altogether stays so, as a control."""
        given = settings.get("tuning") or "full"
        tuning = build(dict(given), Tuning, "task.tuning") if isinstance(given, Mapping) else as_tuning(given)
        other = tuning.from_scratch()
        return {**settings, **({} if other is tuning else {"tuning": recipe(other)})}

    def merged(self) -> SupervisedTask:
        """With low-rank changes added to the backbone's weights; see :class:`finetune.LoRA`."""
        if not isinstance(self._how, LoRA):
            return self
        twin = copy.deepcopy(self)  # the training may go on with this one
        merge(twin.backbone)
        twin.tuning, twin._how = "full", Full()
        return twin
