"""Classification of whole images: a norm and a linear layer on the pooled features of any backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finetune.losses import labelled_ce
from ssl_med.backbones import Backbone
from ssl_med.evaluate import tiles
from ssl_med.tasks import SupervisedTask
from ssl_med.transforms import SingleView, Views
from ssl_med.types import Batch, Losses


class Classify(SupervisedTask):
    """One of several classes per image.

    Args:
        backbone: pretrained or not.
        classes: number of classes.
        window: voxels along each axis that are looked at together; larger images are the mean over windows.
        frozen: keep the backbone as it is and train the head only (a linear probe).
        views: augmentation of the training images.
        smoothing: label smoothing.
    """

    metric = "balanced_accuracy"

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        window: Sequence[int],
        frozen: bool = False,
        views: Views | None = None,
        smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        self.backbone, self.classes, self.window = backbone, classes, list(window)
        self.frozen, self.smoothing = frozen, smoothing
        self.views = views if views is not None else SingleView([])
        self.norm = nn.LayerNorm(backbone.embed_dim)
        self.head = nn.Linear(backbone.embed_dim, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        backbone.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> "Classify":
        """A frozen backbone stays in evaluation mode: no batch statistics, no stochastic depth."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def logits(self, image: Tensor, spacing: Tensor | None = None) -> Tensor:
        """(b, c, \\*space) -> (b, classes)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            pooled = self.backbone(image, spacing).pooled
        return self.head(self.norm(pooled))

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Cross-entropy on augmented images."""
        view = self.views(batch)[0]
        label = view["label"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
        return {"loss": labelled_ce(self.logits(view["image"], view.get("spacing")), label, self.smoothing)}

    def predict(self, batch: Batch) -> Tensor:
        """Class probabilities (b, classes), averaged over windows that cover the image."""
        image, spacing = batch["image"], batch.get("spacing")
        windows = tiles(tuple(image.shape[2:]), tuple(self.window))
        return torch.stack([self.logits(image[(..., *w)], spacing).float().softmax(-1) for w in windows]).mean(0)

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Probabilities and reference of each case."""
        return {"probability": prediction, "label": batch["label"]}  # pyright: ignore[reportTypedDictNotRequiredAccess]

    def summarise(self, cases: dict[str, Tensor]) -> dict[str, float]:
        """Accuracy, balanced accuracy and (macro, one against the rest) AUROC over the cases with a label.

        A class without a case is left out of both means, as sklearn does; an AUROC needs two classes and is NaN else.
        """
        from torchmetrics.functional.classification import binary_auroc

        known = cases["label"] >= 0
        guess, label = cases["probability"][known], cases["label"][known]
        right, found = (guess.argmax(1) == label).double(), label.unique().tolist()
        areas = [binary_auroc(guess[:, value], (label == value).long()) for value in found if len(found) > 1]
        return {
            "balanced_accuracy": float(torch.tensor([right[label == value].mean() for value in found]).mean()),
            "accuracy": float(right.mean()),
            "auroc": float(torch.tensor(areas).mean()),
        }

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; norm and head count as last."""
        return self.backbone.layers()
