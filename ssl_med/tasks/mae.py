"""Masked autoencoder (He et al., CVPR 2022, arXiv 2111.06377) in 2D, 3D and 3D + time.

Most patches are hidden; the encoder sees only the visible ones, and a small decoder predicts the voxels of the hidden
ones. Defaults (75 % hidden, decoder 512 x 8, targets standardised per patch) are the paper's.
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssl_med.backbones.block import Block, init_as_vit
from ssl_med.backbones.vit import ViT
from ssl_med.errors import UserError
from ssl_med.ops import ranks
from ssl_med.ops.block_masking import block_order
from ssl_med.ops.masking import random_order, tissue_order, tube_order, visible_count, weighted_order
from ssl_med.ops.patches import grid_of, patch_centres, patchify, take, unpatchify
from ssl_med.ops.positions import sincos
from ssl_med.tasks.masked_modelling import Errors, MaskedModelling, constant_share, patch_moments
from ssl_med.tasks.saliency import FineGrained, Foreground, SaliencyProvider, StoredSaliency, fall_back
from ssl_med.transforms import SingleView, Views
from ssl_med.transforms.base import draws_of
from ssl_med.types import Batch, Losses


class Hidden(NamedTuple):
    """Which patches are seen and which are hidden.

    Attributes:
        order: (b, n) patches, the visible first.
        inverse: (b, n) place of each patch in ``order``.
        visible: number of patches that are seen.
        grid: patches along each axis.
        degenerate: (b,) which saliency maps were constant and so gave way to uniform ones; None without saliency.
    """

    order: Int[Tensor, "b n"]
    inverse: Int[Tensor, "b n"]
    visible: int
    grid: tuple[int, ...]
    degenerate: Bool[Tensor, " b"] | None = None

    @property
    def seen(self) -> Tensor:
        """Visible patches (b, v)."""
        return self.order[:, : self.visible]

    @property
    def unseen(self) -> Tensor:
        """Hidden patches (b, n - v)."""
        return self.order[:, self.visible :]


class MAEDecoder(nn.Module):
    """Predicts the voxels of the hidden patches from the encoded visible ones.

    Args:
        encoder_dim: width of the encoder.
        patch_voxels: numbers per patch, voxels times channels.
        dim: width of the decoder.
        depth: blocks.
        heads: attention heads.
    """

    def __init__(self, encoder_dim: int, patch_voxels: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.encoder_dim, self.patch_voxels, self.dim, self.depth, self.heads = (
            encoder_dim,
            patch_voxels,
            dim,
            depth,
            heads,
        )
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.predict = nn.Linear(dim, patch_voxels)
        self.apply(init_as_vit)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, latent: Float[Tensor, "b m d"], hidden: Hidden) -> Float[Tensor, "b h p"]:
        """Mask tokens in the hidden places, all tokens back in raster order, decode, predict.

        Args:
            latent: prefix tokens, then the visible patches in the order of ``hidden.seen``.
            hidden: what is hidden.
        """
        x = self.embed(latent)
        prefix, seen = x[:, : -hidden.visible], x[:, -hidden.visible :]
        blank = self.mask_token.to(x.dtype).expand(len(x), hidden.unseen.shape[1], -1)
        patches = take(torch.cat([seen, blank], 1), hidden.inverse)
        patches = patches + sincos(patch_centres(hidden.grid, x.device)[None], self.dim).to(x.dtype)
        x = torch.cat([prefix, patches], 1)
        for block in self.blocks:
            x = block(x)
        return self.predict(take(self.norm(x[:, prefix.shape[1] :]), hidden.unseen))


class MAE(MaskedModelling):
    """Masked autoencoder.

    Args:
        backbone: a ViT, whose encoder runs on the visible patches only.
        views: changes of the image before it is hidden; the paper crops and flips, nothing else.
        mask_ratio: share of the patches that is hidden.
        decoder_dim: width of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder.
        norm_pix: predict each patch standardised by its own mean and variance, so that soft tissue counts beside air.
        mask: which patches are hidden: ``uniform`` any (the paper), ``block`` contiguous blocks (BEiT, arXiv
            2106.08254), ``tube`` the same at all places of the first axis (VideoMAE, arXiv 2203.12602), ``saliency`` in
            proportion to a saliency map (any where it is constant; ``degenerate_maps`` counts such images),
            ``foreground`` this share of those with tissue, the rest among air.
        saliency: where the map of ``saliency`` comes from; if None the store's, and fine-grained where it has none.
    """

    def __init__(
        self,
        backbone: ViT,
        views: Views | None = None,
        mask_ratio: float = 0.75,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pix: bool = True,
        mask: Literal["uniform", "block", "tube", "saliency", "foreground"] = "uniform",
        saliency: SaliencyProvider | None = None,
    ) -> None:
        super().__init__()
        visible_count(1, mask_ratio)  # refuses a ratio outside [0, 1)
        self.backbone = backbone
        self.views = views if views is not None else SingleView([])
        self.mask_ratio, self.norm_pix, self.mask = mask_ratio, norm_pix, mask
        self.saliency = saliency if saliency is not None or mask != "saliency" else StoredSaliency(FineGrained())
        self.decoder_dim, self.decoder_depth, self.decoder_heads = decoder_dim, decoder_depth, decoder_heads
        voxels = backbone.patch_embed.proj.in_features
        self.decoder = MAEDecoder(backbone.embed_dim, voxels, decoder_dim, decoder_depth, decoder_heads)

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Hide, encode what is seen, predict what is not, compare."""
        view = self.views(batch)[0]
        hidden = self.hide(view)
        prediction = self.reconstruct(view, hidden)
        loss, constant = self.error(view, hidden, prediction)
        losses = {"loss": loss, "constant_patches": constant}
        if hidden.degenerate is not None:
            losses["degenerate_maps"] = ranks.total(hidden.degenerate.float().sum())
        return losses

    def hide(self, view: Batch) -> Hidden:
        """Draw the hidden patches; patches that are padding through and through are hidden first."""
        patch = self.backbone.patch
        grid = grid_of(tuple(view["image"].shape[2:]), patch)
        padding = None
        if "valid" in view:
            padding = patchify(view["valid"].float(), patch).amax(-1) == 0
        count = math.prod(grid)
        weight, degenerate = self._weight(view)
        order, inverse = self._order(view, grid, padding, weight)
        visible = visible_count(count, self.mask_ratio)
        if self.mask == "tube":
            visible = grid[0] * visible_count(count // grid[0], self.mask_ratio)
        if visible == count:
            raise UserError(
                f"MAE hides nothing: {count} patches at mask_ratio {self.mask_ratio}; enlarge crop or ratio"
            )
        return Hidden(order, inverse, visible, grid, degenerate)

    def _weight(self, view: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Saliency of each patch and which maps say nothing, where saliency decides."""
        if self.mask != "saliency" or self.saliency is None:
            return None, None
        maps, degenerate = fall_back(self.saliency(view), view.get("valid"))
        return patchify(maps, self.backbone.patch).mean(-1), degenerate

    def _order(
        self, view: Batch, grid: tuple[int, ...], padding: Tensor | None, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Patches in an order whose end is hidden, and its inverse."""
        draws = draws_of(view).child(0)
        if self.mask == "tube":
            return tube_order(draws, grid, padding)
        if self.mask == "block":
            order = block_order(draws, grid).flip(1)
            if padding is not None:
                order = order.gather(1, padding.gather(1, order).int().argsort(dim=1, stable=True))
            return order, order.argsort(1)
        if weight is not None:
            return weighted_order(draws, weight, padding)
        if self.mask == "foreground":
            tissue = patchify(Foreground()(view), self.backbone.patch).amax(-1) > 0
            return tissue_order(draws, tissue, self.mask_ratio, padding)
        return random_order(draws, math.prod(grid), padding)

    def reconstruct(self, view: Batch, hidden: Hidden) -> Float[Tensor, "b h p"]:
        """Predicted voxels of the hidden patches."""
        tokens = self.backbone.tokenize(view["image"], view.get("spacing"))
        return self.decoder(self.backbone.encode(tokens.keep(hidden.seen)), hidden)

    def error(self, view: Batch, hidden: Hidden, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error over the hidden voxels that are not padding, and the share of constant hidden patches.

        Both are over the images of all processes.
        """
        target, weight = self._targets(view, hidden)
        mean, variance = patch_moments(target, weight)
        share = constant_share(variance[..., 0], weight.amax(-1) > 0)
        if self.norm_pix:
            target = (target - mean) / (variance + 1e-6).sqrt()
        squared = (prediction.float() - target) ** 2 * weight
        return ranks.total(squared.sum()) / ranks.total(weight.sum()).clamp(min=1), share

    def _targets(self, view: Batch, hidden: Hidden) -> tuple[Tensor, Tensor]:
        """Voxels of the hidden patches, and 1 where a voxel is real, 0 where it is padding."""
        patch, image = self.backbone.patch, view["image"].float()
        target = take(patchify(image, patch), hidden.unseen)
        if "valid" not in view:
            return target, torch.ones_like(target)
        weight = patchify(view["valid"].float().expand_as(image), patch)
        return target, take(weight, hidden.unseen)

    def errors(self, batch: Batch) -> Errors:
        """Beside each patch's mean as the prediction, or 0 where patches keep their own."""
        view = self.views(batch)[0]
        hidden = self.hide(view)
        prediction = self.reconstruct(view, hidden)
        blank = self.error(view, hidden, torch.zeros_like(prediction))[0]
        masked, constant = self.error(view, hidden, prediction)
        return Errors(masked, blank, constant)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Input, what the encoder saw, the reconstruction in the image's own intensities, and its absolute error."""
        view = self.views(batch)[0]
        hidden = self.hide(view)
        prediction = self.reconstruct(view, hidden).float()
        image, patch = view["image"].float(), self.backbone.patch
        target, weight = self._targets(view, hidden)
        if self.norm_pix:
            mean, variance = patch_moments(target, weight)
            prediction = prediction * (variance + 1e-6).sqrt() + mean
        patches = patchify(image, patch)
        place = hidden.unseen[..., None].expand_as(prediction)
        masked = unpatchify(patches.scatter(1, place, float(image.min())), patch, hidden.grid)
        rebuilt = unpatchify(patches.scatter(1, place, prediction), patch, hidden.grid)
        return {"input": image, "masked": masked, "reconstruction": rebuilt, "error": (rebuilt - image).abs()}

    def exports(self) -> dict[str, nn.Module]:
        """The encoder; the decoder of an MAE has no use afterwards."""
        return {"backbone": self.backbone}

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; the decoder counts as last."""
        return self.backbone.layers()
