"""A number per image, such as an age, a volume or an ejection fraction."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import huber_loss, mse_loss

from finetune.heads import Kind, Pooling, make_head
from finetune.metrics import numbers_found
from finetune.tuned import Tuned
from finetune.tuning import Preset, Tuning
from ssl_med.backbones import Backbone
from ssl_med.errors import UserError
from ssl_med.ops import ranks
from ssl_med.tasks import Choice, Plan
from ssl_med.transforms import Views
from ssl_med.types import Batch, Losses


class Regress(Tuned):
    """A number per image (``data.targets: value``); NaN is unknown and counts nowhere.

    The head answers in units of the spread of the training images around their mean, so that an untrained one predicts
    the mean.

    Args:
        backbone: pretrained or not.
        window: voxels along each axis that are looked at together; larger images are the mean over windows.
        frozen: keep the backbone as it is.
        views: augmentation of the training images.
        head: ``linear``, ``attentive`` or ``mlp``.
        pooling: what a linear or MLP head sees of a ViT.
        tuning: how the backbone is tuned.
        loss: squared error, or Huber's, which is linear beyond one standard deviation.
        mean, spread: of the numbers of the training images; taken from them if absent, 0 and 1 without any.

    Raises:
        UserError: the spread is not positive.
    """

    metric = "r2"
    answers = "value"

    def __init__(
        self,
        backbone: Backbone,
        window: Sequence[int],
        frozen: bool = False,
        views: Views | None = None,
        head: Kind = "linear",
        pooling: Pooling = "mean",
        tuning: Preset | Tuning = "full",
        loss: Literal["mse", "huber"] = "mse",
        mean: float | None = None,
        spread: float | None = None,
    ) -> None:
        super().__init__(backbone, window, frozen, views, tuning)
        if spread is not None and not spread > 0:
            raise UserError(f"Regress: spread must be above 0, got {spread}: all training images have one number")
        self.pooling, self.loss, self.mean, self.spread = pooling, loss, mean, spread
        self.head, self.readout = head, make_head(head, backbone, 1, pooling)

    @classmethod
    def choose(cls, settings: Mapping[str, Any], plan: Plan) -> dict[str, Choice]:
        """Mean and standard deviation of the training images' numbers."""
        if plan.targets is None:
            return {}
        known = plan.targets[~np.isnan(plan.targets)]
        reason = f"of the {len(known)} training images with a number"
        return {"mean": Choice(float(known.mean()), reason), "spread": Choice(float(known.std()) or 1.0, reason)}

    def logits(self, image: Tensor, spacing: Tensor | None = None) -> Tensor:
        """(b, c, \\*space) -> (b, 1), standardised."""
        return self.readout(self.features(image, spacing))

    def forward(self, batch: Batch, progress: float) -> Losses:
        """The loss of the standardised numbers that are known."""
        view = self.view(batch, progress)
        guess = self.logits(view["image"], view.get("spacing"))[:, 0].float()
        value = (view["value"] - (self.mean or 0.0)) / (self.spread or 1.0)  # pyright: ignore
        known = torch.isfinite(value)
        value = torch.where(known, value, guess.detach())
        each = (mse_loss if self.loss == "mse" else huber_loss)(guess, value, reduction="none")
        return {"loss": (each * known).sum() / ranks.mean(known.sum().float()).clamp(min=1e-12)}

    def predict(self, batch: Batch) -> Tensor:
        """Numbers (b, 1) in the units of the data, averaged over windows that cover the image."""
        return self.over_windows(batch, self.logits) * (self.spread or 1.0) + (self.mean or 0.0)

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Prediction and reference of each case."""
        return {"prediction": prediction[:, 0], "value": batch["value"]}  # pyright: ignore

    def summarise(self, cases: dict[str, Tensor]) -> dict[str, float]:
        """R2, mean absolute error and Pearson's correlation over the cases with a number."""
        known = torch.isfinite(cases["value"])
        return numbers_found(*(cases[name][known].double().numpy() for name in ("prediction", "value")))
