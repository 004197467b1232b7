"""Classification of whole images: one of several classes, on the features of any backbone."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from finetune.heads import Kind, Pooling, make_head
from finetune.losses import class_loss, hard_targets, inverse_frequency, log_prior
from finetune.metrics import classes_found
from finetune.mixing import Mixing
from finetune.tuned import Tuned
from finetune.tuning import Preset, Tuning
from ssl_med.backbones import Backbone
from ssl_med.errors import UserError
from ssl_med.tasks import Choice, Plan
from ssl_med.transforms import Views
from ssl_med.types import Batch, Losses

Balance = Literal["none", "logit_adjustment", "class_weights"]


class Classify(Tuned):
    """One of several classes per image.

    Args:
        backbone: pretrained or not.
        classes: number of classes.
        window: voxels along each axis that are looked at together; larger images are the mean over windows.
        frozen: keep the backbone as it is and train the head only (a linear probe).
        views: augmentation of the training images.
        smoothing: label smoothing.
        head: ``linear``, ``attentive`` (one query over the cells of the coarsest map) or ``mlp``.
        pooling: what a linear or MLP head sees of a ViT: the mean over patches, the class token, or both.
        tuning: how the backbone is tuned, see :mod:`finetune.tuning`.
        balance: against unequal classes. ``logit_adjustment`` adds the log prior to the logits in training only (Menon
            et al., arXiv 2007.07314; with their tau of 1 the balanced softmax of Ren et al., arXiv 2007.10740);
            ``class_weights`` weighs each class by n / (k n_c).
        class_counts: training images of each class, for ``balance``; counted in the labelled training images if absent.
        gamma: of the focal loss (arXiv 1708.02002; theirs is 2); 0 for plain cross-entropy.
        mixing: mixup and CutMix; none by default.

    Raises:
        UserError: counts that do not fit the classes.
    """

    metric = "balanced_accuracy"
    prior: Tensor
    weights: Tensor

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        window: Sequence[int],
        frozen: bool = False,
        views: Views | None = None,
        smoothing: float = 0.1,
        head: Kind = "linear",
        pooling: Pooling = "mean",
        tuning: Preset | Tuning = "full",
        balance: Balance = "none",
        class_counts: Sequence[int] | None = None,
        gamma: float = 0.0,
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__(backbone, window, frozen, views, tuning)
        self.classes, self.smoothing, self.pooling, self.gamma = classes, smoothing, pooling, gamma
        self.balance, self.class_counts, self.mixing = balance, class_counts, mixing
        if class_counts is not None and len(class_counts) != classes:
            raise UserError(f"class_counts: {len(class_counts)} counts for {classes} classes")
        counts = class_counts if class_counts is not None else [1] * classes
        self.register_buffer("prior", log_prior(counts) * (balance == "logit_adjustment"), False)
        weights = inverse_frequency(counts) if balance == "class_weights" else torch.ones(classes)
        self.register_buffer("weights", weights, False)
        self.head, self.readout = head, make_head(head, backbone, classes, pooling)

    @classmethod
    def choose(cls, settings: Mapping[str, Any], plan: Plan) -> dict[str, Choice]:
        """The classes' counts, where they are needed."""
        if settings.get("balance", "none") == "none" or plan.targets is None:
            return {}
        known = plan.targets[plan.targets >= 0]
        counts = np.bincount(known, minlength=settings["classes"]).tolist()
        return {"class_counts": Choice(counts, f"classes of the {len(known)} labelled training images")}

    def logits(self, image: Tensor, spacing: Tensor | None = None) -> Tensor:
        """(b, c, \\*space) -> (b, classes)."""
        return self.readout(self.features(image, spacing))

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Cross-entropy (or focal loss) on augmented, perhaps mixed images."""
        view = self.view(batch, progress)
        image, targets = view["image"], hard_targets(view["label"], self.classes)  # pyright: ignore
        if self.mixing is not None:
            image, targets = self.mixing(view, targets)
        logits = self.logits(image, view.get("spacing")) + self.prior
        return {"loss": class_loss(logits, targets, self.smoothing, self.gamma, self.weights)}

    def predict(self, batch: Batch) -> Tensor:
        """Class probabilities (b, classes), averaged over windows that cover the image."""
        return self.over_windows(batch, lambda image, spacing: self.logits(image, spacing).float().softmax(-1))

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Probabilities and reference of each case."""
        return {"probability": prediction, "label": batch["label"]}  # pyright: ignore[reportTypedDictNotRequiredAccess]

    def summarise(self, cases: dict[str, Tensor]) -> dict[str, float]:
        """Scores over the cases with a label, see :func:`finetune.metrics.classes_found`."""
        known = cases["label"] >= 0
        return classes_found(cases["probability"][known].double().numpy(), cases["label"][known].numpy())
