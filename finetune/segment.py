"""Segmentation: a U-shaped decoder on the maps of any backbone (UNETR, arXiv 2103.10504, on ViTs; U-Net on CNNs)."""

from collections.abc import Sequence
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from finetune.linear_decoder import LinearDecoder, stretched
from finetune.losses import VoxelLoss, voxel_loss
from finetune.surface import surface_scores
from finetune.tuned import Tuned
from finetune.tuning import Preset, Tuning
from ssl_med.backbones import Backbone
from ssl_med.decoders import PyramidDecoder
from ssl_med.errors import UserError
from ssl_med.transforms import Views
from ssl_med.types import Batch, Losses

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_BANDS = ("small", "medium", "large")
_BANDED = ("dice", "hd95", "surface_dice")


class Segment(Tuned):
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
            ``widths``. ``linear`` is a light one that only stretches the maps. By default a new U-shaped one.
        tuning: how the backbone is tuned, see :mod:`finetune.tuning`.
        loss: see :func:`finetune.losses.voxel_loss`.
        batch_dice: the sums of Dice and Tversky run over the batch instead of each crop.
        tolerance: mm, of the surface Dice.

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
        decoder: PyramidDecoder | LinearDecoder | Literal["linear"] | None = None,
        tuning: Preset | Tuning = "full",
        loss: VoxelLoss = "dice_ce",
        batch_dice: bool = False,
        tolerance: float = 2.0,
    ) -> None:
        super().__init__(backbone, window, frozen, views, tuning)
        self.classes, self.overlap = classes, overlap
        self.loss: VoxelLoss = loss
        self.batch_dice, self.tolerance = batch_dice, tolerance
        if decoder == "linear":
            decoder = LinearDecoder.for_backbone(backbone)
        self.decoder = PyramidDecoder.for_backbone(backbone, widths) if decoder is None else decoder
        self.widths = self.decoder.widths if isinstance(self.decoder, PyramidDecoder) else list(widths)
        made_for = (self.decoder.channels, self.decoder.strides, self.decoder.in_channels)
        if made_for != (list(backbone.channels), [tuple(s) for s in backbone.strides], backbone.in_channels):
            raise UserError(
                f"the decoder follows maps of {made_for[0]} channels at strides {made_for[1]} of {made_for[2]}-channel "
                f"images, the backbone makes {backbone.channels} at {backbone.strides} of {backbone.in_channels}: take "
                "both from one export"
            )
        self.head = _balanced(_CONV[backbone.spatial_dims](self.decoder.out_channels, classes, 1))

    def logits(self, image: Tensor, spacing: Tensor | None = None) -> Tensor:
        """(b, c, \\*space) -> (b, classes, \\*space)."""
        answer = self.head(self.decoder(self.features(image, spacing), image))
        return answer if answer.shape[2:] == image.shape[2:] else stretched(answer, tuple(image.shape[2:]))

    def forward(self, batch: Batch, progress: float) -> Losses:
        """The loss on augmented crops, and its parts."""
        view = self.view(batch, progress)
        mask = view["mask"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
        logits = self.logits(view["image"], view.get("spacing"))
        parts = voxel_loss(self.loss, logits, mask, self.batch_dice)
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

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
        """Of each class above 0, (b,) each: Dice (MONAI), HD95 in mm, surface Dice, and size in mm^axes.

        Voxels of label -1, padding among them, count nowhere: they are background on both sides. **A class absent from
        the reference** has NaN for all scores but its size of 0, and is left out of the means; ``extra`` then tells in
        mm^axes how much of it was predicted (NaN where the class is there). Absent from the prediction alone it has a
        Dice and a surface Dice of 0, and the image's diagonal for HD95.
        """
        from monai.metrics.meandice import compute_dice

        mask = batch["mask"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
        known = mask >= 0
        guess, truth = (self._one_hot(torch.where(known, labels, 0)) for labels in (prediction, mask))
        dice = compute_dice(guess, truth, include_background=False, ignore_empty=True)
        spacing = batch.get("spacing", torch.ones(len(mask), mask.ndim - 2, device=mask.device)).double()
        voxel, axes = spacing.prod(1).float(), tuple(range(1, mask.ndim - 1))
        scores = {f"dice_{value}": dice[:, value - 1] for value in range(1, self.classes)}
        for value in range(1, self.classes):
            size, found = (labels[:, value].sum(axes) * voxel for labels in (truth, guess))
            scores[f"size_{value}"] = size
            scores[f"extra_{value}"] = torch.where(size > 0, torch.nan, found)
            surfaces = self._surfaces(guess[:, value], truth[:, value], spacing)
            scores |= {f"hd95_{value}": surfaces[:, 0], f"surface_dice_{value}": surfaces[:, 1]}
        return scores

    def _surfaces(self, guess: Tensor, truth: Tensor, spacing: Tensor) -> Tensor:
        """(b, 2) from masks (b, \\*space)."""
        cases = zip(guess.cpu().numpy(), truth.cpu().numpy(), spacing.tolist(), strict=True)
        return torch.tensor([surface_scores(*case, self.tolerance) for case in cases], dtype=torch.float32)

    def _one_hot(self, labels: Tensor) -> Tensor:
        return torch.cat([labels == value for value in range(self.classes)], 1)

    def summarise(self, cases: dict[str, Tensor]) -> dict[str, float]:
        """Means of each score of each class over the cases that have it, and of Dice over classes.

        From six cases of a class on, its Dice, HD95 and surface Dice are also told for the small, medium and large
        thirds of them by size.
        """
        means = {name: _mean(values) for name, values in cases.items() if not name.startswith("size_")}
        dice = [value for name, value in means.items() if name.startswith("dice_")]
        bands: dict[str, float] = {}
        for name, sizes in cases.items():
            if name.startswith("size_"):
                for score in (f"{banded}_{name[5:]}" for banded in _BANDED):
                    bands |= size_bands(score, cases[score], sizes)
        return {"dice": _mean(torch.tensor(dice)), **means, **bands}

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Image, reference and prediction."""
        guess = self.logits(batch["image"], batch.get("spacing")).argmax(1, keepdim=True)
        mask = batch["mask"].float()  # pyright: ignore[reportTypedDictNotRequiredAccess]
        return {"input": batch["image"], "reference": mask, "prediction": guess.float()}


def size_bands(name: str, values: Tensor, sizes: Tensor) -> dict[str, float]:
    """Means of a score over the smallest, middle and largest third of the structures; empty for fewer than six."""
    order = torch.argsort(torch.where(values.isnan(), torch.inf, sizes), stable=True)[: int((~values.isnan()).sum())]
    if len(order) < 2 * len(_BANDS):
        return {}
    thirds = np.array_split(order.numpy(), len(_BANDS))
    return {f"{name}_{band}": _mean(values[third]) for band, third in zip(_BANDS, thirds, strict=True)}


def _mean(values: Tensor) -> float:
    """Mean of the defined values; NaN if there is none."""
    return float(values.nanmean())


@torch.no_grad()
def _balanced(head: nn.Module) -> nn.Module:
    """Random weights that sum to zero for each class, and no bias.

    The features of a decoder are mostly positive: a class whose weights have a low sum is named nowhere, and the Dice
    loss gives it up. A short training does not mend that, least of all on a pretrained decoder.
    """
    weight, bias = cast(Tensor, head.weight), cast(Tensor, head.bias)
    weight -= weight.mean(1, keepdim=True)
    bias.zero_()
    return head
