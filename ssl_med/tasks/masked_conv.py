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
from ssl_med.ops.patches import patchify
from ssl_med.tasks.masked_modelling import Errors, MaskedModelling, constant_share, patch_moments
from ssl_med.transforms import SingleView, Views
from ssl_med.transforms.base import draws_of
from ssl_med.types import Batch, Losses


class MaskedConv(MaskedModelling):
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
        return {"loss": self.error(view, hidden, self.reconstruct(view, hidden))}

    def error(self, view: Batch, hidden: Tensor, prediction: Tensor) -> Float[Tensor, ""]:
        """Mean squared error over hidden voxels that are no padding, those of all processes."""
        weight = hidden if "valid" not in view else hidden & view["valid"]
        error = (prediction - view["image"].float()).square() * weight
        return ranks.total(error.sum()) / ranks.total(weight.sum() * error.shape[1]).clamp(min=1)

    def errors(self, batch: Batch) -> Errors:
        """Beside 0 as the prediction; a patch is a block here."""
        view = self.views(batch)[0]
        hidden, image = self.hide(view), view["image"].float()
        weight = (hidden if "valid" not in view else hidden & view["valid"]).float().expand_as(image)
        block = self._block(image.ndim - 2)
        cut = patchify(weight, block)
        _, variance = patch_moments(patchify(image, block), cut)
        prediction = self.reconstruct(view, hidden)
        blank = self.error(view, hidden, torch.zeros_like(prediction))
        constant = constant_share(variance[..., 0], cut.amax(-1) > 0)
        return Errors(self.error(view, hidden, prediction), blank, constant)

    def hide(self, view: Batch) -> Bool[Tensor, "b 1 *space"]:
        """True where the image is blanked.

        Raises:
            UserError: the block does not divide the image.
        """
        space = tuple(view["image"].shape[2:])
        draws, block = draws_of(view).child(0), self._block(len(space))
        return hidden_blocks(draws, space, block, self.mask_ratio, (1,) * len(space))

    def _block(self, axes: int) -> tuple[int, ...]:
        given = self.mask_block
        return (given,) * axes if isinstance(given, int) else tuple(given)

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
