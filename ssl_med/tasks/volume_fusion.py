"""Volume Fusion: name the share of another image in every voxel (Wang et al., MIS-FM, arXiv 2306.16925).

Boxes of a foreground image are blended into a background image with one of K + 1 fixed coefficients, and an
encoder-decoder segments the blend by coefficient: a segmentation with labels that cost nothing.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssl_med.backbones import Backbone
from ssl_med.backbones.unet import CONV
from ssl_med.decoders import PyramidDecoder
from ssl_med.errors import UserError
from ssl_med.ops.fusion import draw_fusion_boxes, fuse, fusion_losses, paint_classes
from ssl_med.ops.neighbours import check_neighbours, neighbour
from ssl_med.tasks.base import PretextTask
from ssl_med.transforms import Flip, SingleView, Views
from ssl_med.transforms.base import check_range, draws_of
from ssl_med.types import Batch, Losses

_WARM = 0.25
"""Share of the training after which a network that sees nothing is worth a word."""


class Fused(NamedTuple):
    """What the network gets and what it shall say.

    Attributes:
        image: the blend.
        classes: of the coefficient, 0 = background alone.
        counted: voxels that are padding in neither image.
        background, foreground: what was blended.
        spacing: mm per voxel of the background, if known.
    """

    image: Float[Tensor, "b c *space"]
    classes: Int[Tensor, "b 1 *space"]
    counted: Bool[Tensor, "b 1 *space"]
    background: Float[Tensor, "b c *space"]
    foreground: Float[Tensor, "b c *space"]
    spacing: Tensor | None


class VolumeFusion(PretextTask):
    """Segments blends of two images by the coefficient of the blend; encoder and decoder are exported.

    Every image is the background once, and the foreground of the image before it in the global batch once.

    Args:
        backbone: any with feature maps.
        views: changes of the images before they are blended; flips by default.
        levels: K: the coefficients are 0, 1/K ... 1, and there are K + 1 classes.
        boxes: fewest and most boxes of a blend; a later box covers an earlier one.
        side: shortest and longest side of a box as a share of the axis (paper: 8 to 80 of 128 voxels).
        widths: channels of the decoder, fine to coarse.

    Raises:
        UserError: a setting out of its range.
    """

    def __init__(
        self,
        backbone: Backbone,
        views: Views | None = None,
        levels: int = 4,
        boxes: tuple[int, int] = (10, 40),
        side: tuple[float, float] = (0.0625, 0.625),
        widths: Sequence[int] = (32, 64, 128, 256),
    ) -> None:
        super().__init__()
        if levels < 1:
            raise UserError(f"VolumeFusion: levels must be 1 or more, got {levels}")
        check_range("VolumeFusion: boxes", boxes, 1)
        check_range("VolumeFusion: side", side, 0.0, 1.0)
        self.backbone, self.levels, self.widths = backbone, levels, list(widths)
        self.boxes, self.side = (boxes[0], boxes[1]), (side[0], side[1])
        self.views = views if views is not None else SingleView([Flip()])
        self.decoder = PyramidDecoder.for_backbone(backbone, widths)
        self.classify = CONV[backbone.spatial_dims](self.decoder.out_channels, levels + 1, 1)
        self._progress = 0.0

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Dice and cross-entropy of the classes, and the cross-entropy of a network that sees nothing.

        Raises:
            UserError: in training, a global batch of one image: foreground and background would be the same.
        """
        if self.training:
            check_neighbours("VolumeFusion", len(batch["image"]))
        fused = self.fuse(batch)
        parts = fusion_losses(self.segment(fused), fused.classes, fused.counted)
        return {"loss": parts["dice"] + parts["cross_entropy"], **parts}

    def fuse(self, batch: Batch) -> Fused:
        """Blend every image with the next one of the global batch."""
        view = self.views(batch)[0]
        background = view["image"].float()
        foreground, space = neighbour(background), tuple(background.shape[2:])
        drawn = draw_fusion_boxes(draws_of(view).child(0), space, self.levels, self.boxes, self.side)
        classes = paint_classes(space, *drawn)
        counted = torch.ones_like(classes, dtype=torch.bool)
        if "valid" in view:
            counted = view["valid"] & neighbour(view["valid"])
        blend = fuse(foreground, background, classes, self.levels)
        return Fused(blend, classes, counted, background, foreground, view.get("spacing"))

    def segment(self, fused: Fused) -> Float[Tensor, "b k *space"]:
        """Logits of the classes."""
        return self.classify(self.decoder(self.backbone(fused.image, fused.spacing), fused.image)).float()

    def after_step(self, progress: float) -> None:
        """Remembers how far the training is, for :meth:`verdict`."""
        self._progress = progress

    @torch.no_grad()
    def vital_signs(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the network, and of the frequencies of the classes alone."""
        losses = self(batch, self._progress)
        return {"fusion_cross_entropy": losses["cross_entropy"], "fusion_chance": losses["chance"]}

    def verdict(self, signs: Mapping[str, float]) -> str:
        """A sentence if the network does no better than the frequencies of the classes after the warm-up."""
        entropy, chance = signs["fusion_cross_entropy"], signs["fusion_chance"]
        if self._progress < _WARM or entropy < chance:
            return ""
        return (
            f"the fusion classes are not seen: cross-entropy {entropy:.3f}, and {chance:.3f} from their frequencies "
            "alone; train longer, change lr, or look whether the images of a batch are all the same"
        )

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Both images, the blend, its coefficients, and the coefficients that the network names."""
        fused = self.fuse(batch)
        named = self.segment(fused).argmax(1, keepdim=True)
        shape = fused.image.shape
        maps = {"coefficients": fused.classes, "predicted": named}
        return {
            "background": fused.background,
            "foreground": fused.foreground,
            "fused": fused.image,
            **{name: (value.float() / self.levels).expand(shape) for name, value in maps.items()},
        }

    def exports(self) -> dict[str, nn.Module]:
        """Encoder and decoder: a segmentation can start from both."""
        return {"backbone": self.backbone, "decoder": self.decoder}

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; the decoder counts as last."""
        return self.backbone.layers()
