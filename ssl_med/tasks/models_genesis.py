"""Models Genesis (Zhou et al., MICCAI 2019, arXiv 1908.06912; Medical Image Analysis 2021, arXiv 2004.07882).

An image is corrupted (voxels shuffled in small windows, grey values bent or inverted, boxes replaced by noise) and an
encoder-decoder restores it. Probabilities and laws are the paper's. US patent 11,922,628 covers the method; this file
was written from a description, nothing was taken from the authors' code, whose licence is non-commercial.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ssl_med.backbones import Backbone
from ssl_med.backbones.unet import CONV
from ssl_med.decoders import PyramidDecoder
from ssl_med.ops.ranks import mean
from ssl_med.ops.unit import UnitRange, check_unit, from_unit, to_unit, value_range
from ssl_med.tasks.base import PretextTask
from ssl_med.transforms import (
    Corruption,
    Corruptions,
    IntensityCurve,
    LocalShuffle,
    Painting,
    RepeatedFlip,
    SingleView,
    Views,
)
from ssl_med.types import Batch, Losses

_WARM, _HALF = 0.1, 0.5
"""Shares of the training after which a network that is worse than a copy, or than one grey, is worth a word."""


class Pair(NamedTuple):
    """What the network gets and what it shall give, (b, c, \\*space) in [0, 1].

    Attributes:
        corrupted: the input.
        target: the image.
        valid: voxels that count; None for all.
        low, span: values of the image that stand for 0 and for the way to 1, (b, c).
        spacing: mm per voxel, if known.
    """

    corrupted: Float[Tensor, "b c *space"]
    target: Float[Tensor, "b c *space"]
    valid: Bool[Tensor, "b 1 *space"] | None
    low: Float[Tensor, "b c"]
    span: Float[Tensor, "b c"]
    spacing: Tensor | None


class ModelsGenesis(PretextTask):
    """Restores corrupted images with an encoder-decoder, both of which are exported.

    Args:
        backbone: any; with a :class:`~ssl_med.backbones.UNetEncoder` the whole is a U-Net, as in the paper.
        views: changes of input and target alike; the paper's flips by default.
        corruptions: changes of the input alone, of values in [0, 1]; by default the paper's at its probabilities: local
            shuffling 0.5, intensity curve 0.9 (half of them inverting), painting 0.9 (a fifth inwards).
        unit: which values become 0 and 1. ``auto`` leaves images that lie in [0, 1] (CT scaled from a fixed window) as
            they are and takes the percentiles of each other one, so that the curves do not clamp z-scores.
        widths: channels of the decoder, fine to coarse; fine-tuning that starts from the decoder takes them over.
        faithful: the original's quirks in what is built by default: depth is never flipped and a third of the flips do
            nothing; 10,000 shuffling windows whatever the size of the crop, of one voxel along axes below 20.
    """

    def __init__(
        self,
        backbone: Backbone,
        views: Views | None = None,
        corruptions: list[Corruption] | None = None,
        unit: UnitRange = "auto",
        widths: Sequence[int] = (16, 32, 64, 128),
        faithful: bool = False,
    ) -> None:
        super().__init__()
        check_unit("ModelsGenesis: unit", unit)
        self.backbone, self.widths, self.faithful = backbone, list(widths), faithful
        self.unit: UnitRange = unit
        self.views = views if views is not None else SingleView([RepeatedFlip(faithful=faithful)])
        self.corruptions = nn.ModuleList(published(faithful) if corruptions is None else corruptions)
        self.decoder = PyramidDecoder.for_backbone(backbone, widths)
        self.head = CONV[backbone.spatial_dims](self.decoder.out_channels, backbone.in_channels, 1)
        self._progress = 0.0

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Corrupt, restore, compare with the image; beside it what copying the input and one constant would score."""
        pair = self.corrupt(batch)
        restored = self.restore(pair)
        count = mean(weight_of(pair))
        squares = {"loss": restored, "identity_mse": pair.corrupted, "constant_mse": constant_of(pair, count)}
        losses = {name: squared_error(guess, pair) / count for name, guess in squares.items()}
        return {**losses, "changed_voxels": changed(pair) / count}

    def corrupt(self, batch: Batch) -> Pair:
        """The image after its views, mapped to [0, 1], and its corrupted copy."""
        view = self.views(batch)[0]
        image, valid = view["image"], view.get("valid")
        low, span = value_range(image, self.unit, valid)
        target = to_unit(image, low, span)
        corruptions = Corruptions(cast("list[Corruption]", list(self.corruptions)))
        corrupted = corruptions(cast(Batch, {**view, "image": target}))["image"]
        return Pair(corrupted, target, valid, low, span, view.get("spacing"))

    def restore(self, pair: Pair) -> Float[Tensor, "b c *space"]:
        """The network's answer in [0, 1]; it sees the image in its own values, as it will in fine-tuning."""
        seen = from_unit(pair.corrupted, pair.low, pair.span)
        return self.head(self.decoder(self.backbone(seen, pair.spacing), seen)).float().sigmoid()

    def after_step(self, progress: float) -> None:
        """Remembers how far the training is, for :meth:`verdict`."""
        self._progress = progress

    @torch.no_grad()
    def vital_signs(self, batch: Batch) -> dict[str, Tensor]:
        """Errors of the network, of copying the corrupted image, and of one constant."""
        losses = self(batch, self._progress)
        return {"restoration_mse": losses["loss"], **{k: losses[k] for k in ("identity_mse", "constant_mse")}}

    def verdict(self, signs: Mapping[str, float]) -> str:
        """A sentence if the network does worse than a copy after the warm-up, or than one grey after half the time."""
        restored, copied, constant = (signs[k] for k in ("restoration_mse", "identity_mse", "constant_mse"))
        floors = {"copying the corrupted input": copied if self._progress >= _WARM else math.inf}
        floors["a constant grey"] = constant if self._progress >= _HALF else math.inf
        what, floor = min(floors.items(), key=lambda pair: pair[1])
        if restored < floor:
            return ""
        return (
            f"the restored images are no better than {what} (mean squared error {restored:.4f} against {floor:.4f}): "
            "nothing is learned yet; train longer, or change lr"
        )

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Target, what the network got, what it made of it, in the image's own values, and the absolute error."""
        pair = self.corrupt(batch)
        parts = {"target": pair.target, "corrupted": pair.corrupted, "restored": self.restore(pair)}
        images = {name: from_unit(part, pair.low, pair.span) for name, part in parts.items()}
        return {**images, "error": (images["restored"] - images["target"]).abs()}

    def exports(self) -> dict[str, nn.Module]:
        """Encoder and decoder; the 1-wide convolution to grey values has no use afterwards."""
        return {"backbone": self.backbone, "decoder": self.decoder}

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; the decoder counts as last."""
        return self.backbone.layers()


def published(faithful: bool = False) -> list[Corruption]:
    """The corruptions of the paper, in its order, for values in [0, 1]."""
    return [
        LocalShuffle(windows=10_000 if faithful else None, faithful=faithful),
        IntensityCurve(unit=(0.0, 1.0)),
        Painting(unit=(0.0, 1.0)),
    ]


def weight_of(pair: Pair) -> Tensor:
    """Numbers that count in the errors: valid voxels times channels."""
    if pair.valid is None:
        return torch.full((), pair.target.numel(), dtype=torch.float32, device=pair.target.device)
    return pair.valid.sum().float() * pair.target.shape[1]


def total_of(values: Tensor, pair: Pair) -> Tensor:
    """Sum over what counts."""
    return values.sum() if pair.valid is None else (values * pair.valid).sum()


def squared_error(guess: Tensor, pair: Pair) -> Tensor:
    """Sum of squared differences to the target over what counts."""
    return total_of((guess - pair.target) ** 2, pair)


def changed(pair: Pair) -> Tensor:
    """Number of values that the corruption changed, of those that count."""
    return total_of((pair.corrupted != pair.target).float(), pair)


def constant_of(pair: Pair, count: Tensor) -> Tensor:
    """The best constant: the mean of the targets of all processes."""
    return mean(total_of(pair.target, pair)) / count
