"""SimMIM: hide blocks of the image, predict their raw voxels by one layer (Xie et al., CVPR 2022, arXiv 2111.09886)."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ssl_med.backbones.vit import ViT
from ssl_med.ops import ranks
from ssl_med.ops.masking import hidden_blocks, visible_count
from ssl_med.ops.patches import grid_of, patchify, unpatchify
from ssl_med.tasks.masked_modelling import Errors, MaskedModelling, constant_share, patch_moments
from ssl_med.transforms import RandomResizedCrop, SingleView, Views
from ssl_med.transforms.base import draws_of
from ssl_med.types import Batch, Losses


class SimMIM(MaskedModelling):
    """The encoder sees all patches, the hidden ones as a mask token; the loss is L1 on hidden voxels.

    Args:
        backbone: a ViT.
        views: changes of the image before it is hidden; a random resized crop by default (paper: 67 to 100 %).
        mask_ratio: share of the blocks that is hidden.
        mask_block: voxels along each axis of what is hidden at once, a multiple of the patch (paper: 32 pixels).
    """

    def __init__(
        self, backbone: ViT, views: Views | None = None, mask_ratio: float = 0.6, mask_block: int | list[int] = 32
    ) -> None:
        super().__init__()
        visible_count(1, mask_ratio)  # refuses a ratio outside [0, 1)
        self.backbone, self.mask_ratio, self.mask_block = backbone, mask_ratio, mask_block
        self.views = views if views is not None else SingleView([RandomResizedCrop(scale=(0.67, 1.0))])
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, backbone.embed_dim))
        self.predict = nn.Linear(backbone.embed_dim, backbone.patch_embed.proj.in_features)

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Mean absolute error over hidden voxels of all processes that are not padding."""
        view = self.views(batch)[0]
        hidden = self.hide(view)
        return {"loss": self.error(view, self._weight(hidden, view), self.reconstruct(view, hidden))}

    def error(self, view: Batch, weight: Tensor, prediction: Tensor) -> Float[Tensor, ""]:
        """Mean absolute error over voxels of weight 1, those of all processes."""
        error = (prediction - view["image"].float()).abs() * weight
        return ranks.total(error.sum()) / ranks.total(weight.sum()).clamp(min=1)

    def errors(self, batch: Batch) -> Errors:
        """Beside 0 as the prediction."""
        view = self.views(batch)[0]
        hidden = self.hide(view)
        weight, prediction = self._weight(hidden, view), self.reconstruct(view, hidden)
        cut = patchify(weight, self.backbone.patch)
        _, variance = patch_moments(patchify(view["image"].float(), self.backbone.patch), cut)
        constant = constant_share(variance[..., 0], cut.amax(-1) > 0)
        blank = self.error(view, weight, torch.zeros_like(prediction))
        return Errors(self.error(view, weight, prediction), blank, constant)

    def hide(self, view: Batch) -> Bool[Tensor, "b n"]:
        """True for hidden patches; whole blocks are hidden.

        Raises:
            UserError: the block does not fit the patch or the image.
        """
        given, axes = self.mask_block, self.backbone.spatial_dims
        block = (given,) * axes if isinstance(given, int) else tuple(given)
        draws, space = draws_of(view).child(0), tuple(view["image"].shape[2:])
        return hidden_blocks(draws, space, block, self.mask_ratio, self.backbone.patch).flatten(1)

    def reconstruct(self, view: Batch, hidden: Bool[Tensor, "b n"]) -> Float[Tensor, "b c *space"]:
        """Predicted voxels of the whole image."""
        tokens = self.backbone.tokenize(view["image"], view.get("spacing"))
        change = self.mask_token.to(tokens.value.dtype) - self.backbone.patch_embed(view["image"])
        encoded = self.backbone.encode(tokens._replace(value=tokens.value + hidden[..., None] * change))
        return unpatchify(self.predict(encoded[:, self.backbone.prefix :]).float(), self.backbone.patch, tokens.grid)

    def _weight(self, hidden: Bool[Tensor, "b n"], view: Batch) -> Float[Tensor, "b c *space"]:
        """1 for hidden voxels that are no padding."""
        weight = self._voxels(hidden, view).expand_as(view["image"])
        return weight * view["valid"] if "valid" in view else weight

    def _voxels(self, hidden: Bool[Tensor, "b n"], view: Batch) -> Float[Tensor, "b 1 *space"]:
        patch = self.backbone.patch
        grid = grid_of(tuple(view["image"].shape[2:]), patch)
        return unpatchify(hidden[..., None].float().expand(-1, -1, math.prod(patch)), patch, grid)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Input, what is hidden, the prediction in the hidden places, and its absolute error."""
        view = self.views(batch)[0]
        hidden = self.hide(view)
        image, where = view["image"].float(), self._voxels(hidden, view)
        rebuilt = torch.where(where > 0, self.reconstruct(view, hidden), image)
        masked = torch.where(where > 0, image.amin(), image)
        return {"input": image, "masked": masked, "reconstruction": rebuilt, "error": (rebuilt - image).abs()}

    def exports(self) -> dict[str, nn.Module]:
        """The encoder."""
        return {"backbone": self.backbone}

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; the predictor counts as last."""
        return self.backbone.layers()
