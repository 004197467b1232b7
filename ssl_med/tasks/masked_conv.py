"""Masked image modelling for convolutional networks: blank blocks of the input, rebuild them by encoder and decoder.

A CNN cannot leave patches out, so hidden blocks are blanked in the input, as context encoders do (arXiv 1604.07379),
with MAE's share and MAE's loss on the hidden voxels only (arXiv 2111.06377). OpenMind's best CNN result was made so
(arXiv 2412.17041).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ssl_med.backbones import Backbone
from ssl_med.backbones.unet import CONV
from ssl_med.decoders import PyramidDecoder
from ssl_med.ops import ranks
from ssl_med.ops.masking import hidden_blocks, visible_count
from ssl_med.tasks.base import PretextTask
from ssl_med.transforms import SingleView, Views
from ssl_med.transforms.base import draws_of
from ssl_med.types import Batch, Losses


class MaskedConv(PretextTask):
    """Blank blocks, rebuild them; encoder and decoder are exported.

    Args:
        backbone: any with feature maps; made for CNNs.
        views: changes of the image before it is hidden; none by default.
        mask_ratio: share of the blocks that is blanked.
        mask_block: voxels along each axis of a block, one number or one per axis.
        widths: channels of the decoder's levels, fine to coarse.
    """

    def __init__(
        self,
        backbone: Backbone,
        views: Views | None = None,
        mask_ratio: float = 0.75,
        mask_block: int | list[int] = 16,
        widths: Sequence[int] = (32, 64, 128, 256),
    ) -> None:
        super().__init__()
        visible_count(1, mask_ratio)  # refuses a ratio outside [0, 1)
        self.backbone, self.mask_ratio, self.mask_block, self.widths = backbone, mask_ratio, mask_block, list(widths)
        self.views = views if views is not None else SingleView([])
        self.decoder = PyramidDecoder.for_backbone(backbone, widths)
        self.predict = CONV[backbone.spatial_dims](self.decoder.out_channels, backbone.in_channels, 1)

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Mean squared error over blanked voxels of all processes that are not padding."""
        view = self.views(batch)[0]
        hidden = self.hide(view)
        weight = hidden if "valid" not in view else hidden & view["valid"]
        error = (self.reconstruct(view, hidden) - view["image"].float()).square() * weight
        return {"loss": ranks.total(error.sum()) / ranks.total(weight.sum() * error.shape[1]).clamp(min=1)}

    def hide(self, view: Batch) -> Bool[Tensor, "b 1 *space"]:
        """True where the image is blanked.

        Raises:
            UserError: the block does not divide the image.
        """
        given, space = self.mask_block, tuple(view["image"].shape[2:])
        block = (given,) * len(space) if isinstance(given, int) else tuple(given)
        return hidden_blocks(draws_of(view).child(0), space, block, self.mask_ratio, (1,) * len(space))

    def reconstruct(self, view: Batch, hidden: Tensor) -> Float[Tensor, "b c *space"]:
        """Predicted voxels; the network sees 0 in the blanked places, encoder and decoder alike."""
        seen = view["image"].masked_fill(hidden, 0.0)
        return self.predict(self.decoder(self.backbone(seen, view.get("spacing")), seen)).float()

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Input, what the network sees, the prediction in the blanked places, and its absolute error."""
        view = self.views(batch)[0]
        hidden = self.hide(view)
        image = view["image"].float()
        rebuilt = torch.where(hidden, self.reconstruct(view, hidden), image)
        masked = image.masked_fill(hidden, 0.0)
        return {"input": image, "masked": masked, "reconstruction": rebuilt, "error": (rebuilt - image).abs()}

    def exports(self) -> dict[str, nn.Module]:
        """Encoder and decoder: segmentation can start from both."""
        return {"backbone": self.backbone, "decoder": self.decoder}

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; the decoder counts as last."""
        return self.backbone.layers()
