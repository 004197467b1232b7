"""Several findings per image, each there, absent or unknown."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from finetune.heads import Kind, Pooling, make_head
from finetune.losses import finding_loss
from finetune.metrics import findings_found
from finetune.tuned import Tuned
from finetune.tuning import Preset, Tuning
from ssl_med.backbones import Backbone
from ssl_med.errors import UserError
from ssl_med.tasks import Choice, Plan
from ssl_med.transforms import Views
from ssl_med.types import Batch, Losses

Loss = Literal["bce", "focal", "asymmetric"]
_LOSSES: dict[str, tuple[float, float, float]] = {  # gammas of what is there and of what is not, margin
    "bce": (0.0, 0.0, 0.0),
    "focal": (2.0, 2.0, 0.0),
    "asymmetric": (0.0, 4.0, 0.05),
}


class MultiLabel(Tuned):
    """Several findings per image (``data.targets: labels``); unknown ones count nowhere.

    Args:
        backbone: pretrained or not.
        classes: number of findings.
        window: voxels along each axis that are looked at together; larger images are the mean over windows.
        frozen: keep the backbone as it is.
        views: augmentation of the training images.
        head: ``linear``, ``attentive`` or ``mlp``.
        pooling: what a linear or MLP head sees of a ViT.
        tuning: how the backbone is tuned.
        loss: binary cross-entropy, focal with gamma 2, or asymmetric, see :func:`finetune.losses.finding_loss`.
        balance: weigh findings that are there by the odds of their absence, at most 100.
        positive_weight: these weights; counted in the training images if absent.

    Raises:
        UserError: weights that do not fit the findings.
    """

    metric = "auroc"
    answers = "finding_names"
    weights: Tensor

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        window: Sequence[int],
        frozen: bool = False,
        views: Views | None = None,
        head: Kind = "linear",
        pooling: Pooling = "mean",
        tuning: Preset | Tuning = "full",
        loss: Loss = "bce",
        balance: bool = False,
        positive_weight: Sequence[float] | None = None,
    ) -> None:
        super().__init__(backbone, window, frozen, views, tuning)
        self.classes, self.pooling, self.loss, self.balance = classes, pooling, loss, balance
        self.positive_weight = positive_weight
        if positive_weight is not None and len(positive_weight) != classes:
            raise UserError(f"positive_weight: {len(positive_weight)} weights for {classes} findings")
        weights = torch.tensor(positive_weight) if balance and positive_weight is not None else torch.ones(classes)
        self.register_buffer("weights", weights, False)
        self.head, self.readout = head, make_head(head, backbone, classes, pooling)

    @classmethod
    def choose(cls, settings: Mapping[str, Any], plan: Plan) -> dict[str, Choice]:
        """The weights, where they are needed."""
        if not settings.get("balance") or plan.targets is None:
            return {}
        there, absent = (plan.targets == 1).sum(0), (plan.targets == 0).sum(0)
        weights = [round(float(a) / max(int(t), 1), 4) for t, a in zip(there, absent, strict=True)]
        weights = [min(max(weight, 0.01), 100.0) for weight in weights]
        return {"positive_weight": Choice(weights, f"odds of absence in {len(plan.targets)} training images")}

    def logits(self, image: Tensor, spacing: Tensor | None = None) -> Tensor:
        """(b, c, \\*space) -> (b, classes)."""
        return self.readout(self.features(image, spacing))

    def forward(self, batch: Batch, progress: float) -> Losses:
        """The loss of all known findings of augmented images."""
        view = self.view(batch, progress)
        logits = self.logits(view["image"], view.get("spacing"))
        labels = view["labels"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
        return {"loss": finding_loss(logits, labels, *_LOSSES[self.loss], self.weights)}

    def predict(self, batch: Batch) -> Tensor:
        """Probability of each finding (b, classes), averaged over windows that cover the image."""
        return self.over_windows(batch, lambda image, spacing: self.logits(image, spacing).float().sigmoid())

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Probabilities and reference of each case."""
        return {"probability": prediction, "labels": batch["labels"]}  # pyright: ignore[reportTypedDictNotRequiredAccess]

    def summarise(self, cases: dict[str, Tensor]) -> dict[str, float]:
        """Scores over the known findings, see :func:`finetune.metrics.findings_found`."""
        return findings_found(cases["probability"].double().numpy(), cases["labels"].numpy())
