"""Segmentation: a U-shaped decoder on the maps of any backbone (UNETR, arXiv 2103.10504, on ViTs; U-Net on CNNs)."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from finetune.losses import dice_ce
from ssl_med.backbones import Backbone
from ssl_med.decoders import PyramidDecoder
from ssl_med.errors import UserError
from ssl_med.tasks import SupervisedTask
from ssl_med.transforms import SingleView, Views
from ssl_med.types import Batch, Losses

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}


class Segment(SupervisedTask):
    """Voxel-wise classification.

    Args:
        backbone: pretrained or not.
        classes: number of labels, background included.
        window: voxels along each axis of the sliding window at prediction; the crop of the training.
        widths: channels of the decoder, fine to coarse.
        frozen: keep the backbone as it is and train the decoder only.
        views: augmentation of the training crops.
        overlap: of neighbouring windows at prediction.
        decoder: one to start from, as Models Genesis exports it beside the backbone; its widths take the place of
            ``widths``. By default a new one.

    Raises:
        UserError: the decoder was made for other maps than this backbone's.
    """

    metric = "dice"

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        window: Sequence[int],
        widths: Sequence[int] = (16, 32, 64, 128),
        frozen: bool = False,
        views: Views | None = None,
        overlap: float = 0.5,
        decoder: PyramidDecoder | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.classes, self.window = backbone, classes, list(window)
        self.frozen, self.overlap = frozen, overlap
        self.views = views if views is not None else SingleView([])
        self.decoder = PyramidDecoder.for_backbone(backbone, widths) if decoder is None else decoder
        self.widths = self.decoder.widths
        made_for = (self.decoder.channels, self.decoder.strides, self.decoder.in_channels)
        if made_for != (list(backbone.channels), [tuple(s) for s in backbone.strides], backbone.in_channels):
            raise UserError(
                f"the decoder follows maps of {made_for[0]} channels at strides {made_for[1]} of {made_for[2]}-channel "
                f"images, the backbone makes {backbone.channels} at {backbone.strides} of {backbone.in_channels}: take "
                "both from one export"
            )
        self.head = _CONV[backbone.spatial_dims](self.decoder.out_channels, classes, 1)
        backbone.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> "Segment":
        """A frozen backbone stays in evaluation mode: no batch statistics, no stochastic depth."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def logits(self, image: Tensor, spacing: Tensor | None = None) -> Tensor:
        """(b, c, \\*space) -> (b, classes, \\*space)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.backbone(image, spacing)
        return self.head(self.decoder(features, image))

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Dice and cross-entropy on augmented crops."""
        view = self.views(batch)[0]
        mask = view["mask"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
        return {"loss": dice_ce(self.logits(view["image"], view.get("spacing")), mask)}

    def predict(self, batch: Batch) -> Tensor:
        """Label map of whole images by a sliding window with Gaussian weights (MONAI)."""
        images, spacing = batch["image"], batch.get("spacing")
        logits = [self._slide(images[i : i + 1], None if spacing is None else spacing[i]) for i in range(len(images))]
        return torch.cat(logits).argmax(1, keepdim=True)

    def _slide(self, image: Tensor, spacing: Tensor | None) -> Tensor:
        from monai.inferers.utils import sliding_window_inference

        def of_windows(windows: Tensor) -> Tensor:
            return self.logits(windows, None if spacing is None else spacing.expand(len(windows), -1)).float()

        found = sliding_window_inference(image, self.window, 4, of_windows, overlap=self.overlap, mode="gaussian")
        return cast(Tensor, found)

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Dice of each class above 0 (MONAI), (b,) each; a class absent from the reference gives NaN and is left out.

        Voxels of label -1, padding among them, count nowhere: they are background on both sides.
        """
        from monai.metrics.meandice import compute_dice

        mask = batch["mask"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
        known = mask >= 0
        guess, truth = (self._one_hot(torch.where(known, labels, 0)) for labels in (prediction, mask))
        dice = compute_dice(guess, truth, include_background=False, ignore_empty=True)
        return {f"dice_{value}": dice[:, value - 1] for value in range(1, self.classes)}

    def _one_hot(self, labels: Tensor) -> Tensor:
        return torch.cat([labels == value for value in range(self.classes)], 1)

    def summarise(self, cases: dict[str, Tensor]) -> dict[str, float]:
        """Mean Dice of each class over the cases that have it, and the mean over classes."""
        means = {name: float(values.nanmean()) for name, values in cases.items() if name.startswith("dice_")}
        return {"dice": float(torch.tensor(list(means.values())).nanmean()), **means}

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Image, reference and prediction."""
        guess = self.logits(batch["image"], batch.get("spacing")).argmax(1, keepdim=True)
        mask = batch["mask"].float()  # pyright: ignore[reportTypedDictNotRequiredAccess]
        return {"input": batch["image"], "reference": mask, "prediction": guess.float()}

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; decoder and head count as last."""
        return self.backbone.layers()
