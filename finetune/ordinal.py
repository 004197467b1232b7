"""Grades: classes in an order, as a cumulative-logit model."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from finetune.heads import Kind, Pooling, make_head
from finetune.losses import finding_loss
from finetune.metrics import calibration_error, negative_log_likelihood, quadratic_kappa
from finetune.tuned import Tuned
from finetune.tuning import Preset, Tuning
from ssl_med.backbones import Backbone
from ssl_med.errors import UserError
from ssl_med.transforms import Views
from ssl_med.types import Batch, Losses


class Ordinal(Tuned):
    """One of several grades per image (``data.targets: label``, grades 0, 1, ... in their order).

    ``P(grade > j) = sigmoid(f(x) - t_j)`` with one score f(x) and thresholds t_0 < t_1 < ... (McCullagh, 1980), trained
    by the sum of binary cross-entropies of the questions "above j?" (CORAL, Cao et al., arXiv 1901.07884). The
    thresholds are ordered by construction, so that no grade ever has a negative probability. **Decoding**: the median,
    that is the number of j with P(grade > j) above one half.

    Args:
        backbone: pretrained or not.
        classes: number of grades, 3 or more.
        window: voxels along each axis that are looked at together; larger images are the mean over windows.
        frozen: keep the backbone as it is.
        views: augmentation of the training images.
        head: ``linear``, ``attentive`` or ``mlp``.
        pooling: what a linear or MLP head sees of a ViT.
        tuning: how the backbone is tuned.

    Raises:
        UserError: fewer than three grades.
    """

    metric = "quadratic_kappa"

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
    ) -> None:
        super().__init__(backbone, window, frozen, views, tuning)
        if classes < 3:
            raise UserError(f"Ordinal: grades need an order of 3 or more, got {classes}; use finetune.Classify")
        self.classes, self.pooling = classes, pooling
        self.head, self.readout = head, make_head(head, backbone, 1, pooling)
        self.gaps = nn.Parameter(torch.full((classes - 2,), 0.5413))  # softplus of it is 1

    def logits(self, image: Tensor, spacing: Tensor | None = None) -> Tensor:
        """(b, c, \\*space) -> (b, classes - 1), of "above grade j?", falling in j; the head's bias is minus t_0."""
        steps = torch.cat([self.gaps.new_zeros(1), softplus(self.gaps).cumsum(0)])
        return self.readout(self.features(image, spacing)).float() - steps

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Mean over cases of the summed cross-entropies of all questions."""
        view = self.view(batch, progress)
        label: Tensor = view["label"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
        above = (label[:, None] > torch.arange(self.classes - 1, device=label.device)).long()
        asked = torch.where(label[:, None] >= 0, above, -1)
        logits = self.logits(view["image"], view.get("spacing"))
        return {"loss": finding_loss(logits, asked) * (self.classes - 1)}

    def predict(self, batch: Batch) -> Tensor:
        """Probabilities of the grades (b, classes), averaged over windows that cover the image."""

        def look(image: Tensor, spacing: Tensor | None) -> Tensor:
            above = self.logits(image, spacing).sigmoid()
            ones, zeros = torch.ones_like(above[:, :1]), torch.zeros_like(above[:, :1])
            return torch.cat([ones, above], 1) - torch.cat([above, zeros], 1)

        return self.over_windows(batch, look)

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Probabilities and reference of each case."""
        return {"probability": prediction, "label": batch["label"]}  # pyright: ignore[reportTypedDictNotRequiredAccess]

    def summarise(self, cases: dict[str, Tensor]) -> dict[str, float]:
        """Quadratic kappa (NaN where all cases have one grade), mean absolute error, accuracy, calibration.

        The grade is decoded here: votes of neighbours and means over a patient's images are probabilities alone.
        """
        known = cases["label"] >= 0
        probability = cases["probability"][known].double().numpy()
        grade, label = median_grade(cases["probability"][known]).numpy(), cases["label"][known].numpy()
        confidence = probability[range(len(grade)), grade]
        return {
            "quadratic_kappa": quadratic_kappa(grade, label, self.classes),
            "mean_absolute_error": float(abs(grade - label).mean()),
            "accuracy": float((grade == label).mean()),
            "calibration_error": calibration_error(confidence, grade == label),
            "negative_log_likelihood": negative_log_likelihood(probability, label),
        }


def median_grade(probability: Float[Tensor, "b k"]) -> Int[Tensor, " b"]:
    """The lowest grade up to which the probabilities add up to one half or more."""
    return (probability.cumsum(1)[:, :-1] < 0.5).sum(1)
