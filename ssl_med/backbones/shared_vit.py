"""One vision transformer for images and volumes (the idea of UniMiSS, ECCV 2022): all weights shared but the first.

Images and volumes become tokens by a patch embedding of their own; positions are computed for the axes at hand; the
transformer is the same. So scarce volumes profit from many images, and the other way round.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from ssl_med.backbones.base import Backbone
from ssl_med.backbones.block import init_as_vit
from ssl_med.backbones.vit import PatchEmbed, Pooling, Size, ViT, checked_moments
from ssl_med.errors import UserError

_SHARED = (
    *("in_channels", "size", "embed_dim", "depth", "heads", "mlp_ratio", "positions", "position_unit"),
    *("reference_mm", "class_token", "registers", "drop_path", "layer_scale", "taps", "pooling"),
    *("image_mean", "image_std"),
)
"""Settings of the ordinary ViTs that are ours too."""


class SharedViT(ViT):
    """A ViT that takes images (b, c, y, x) as well as volumes (b, c, z, y, x), one kind in a batch.

    As a backbone it counts as one of volumes: ``spatial_dims``, ``patch`` and ``strides`` are those of volumes, and the
    names of its weights are those of a 3D ViT, with ``patch_embed_2d`` beside them. :meth:`rank` gives the ordinary 2D
    or 3D ViT, which is what to export.

    Args:
        patch_2d: pixels per patch along each axis of an image, or one number for both.
        patch_3d: voxels per patch along each axis of a volume, or one number for all.
        in_channels: channels of images and of volumes.
        size: see :class:`~ssl_med.backbones.ViT`, likewise all below.
        embed_dim: width of the tokens.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLPs over the width.
        positions: ``sincos``, ``rotary`` or ``none``; learned ones would be bound to one grid.
        position_unit: ``patch`` or ``mm``; in mm a slice of a volume and an image share one measure.
        reference_mm: in mm, the length that counts as one patch.
        class_token: have a class token.
        registers: number of extra tokens that stay inside.
        drop_path: stochastic depth of the last block.
        layer_scale: initial layer scale; None for none.
        taps: number of feature maps.
        pooling: ``mean`` of the patches or ``class`` token.
        image_mean, image_std: of each channel, for images and volumes alike.
    """

    def __init__(
        self,
        patch_2d: int | Sequence[int] = 16,
        patch_3d: int | Sequence[int] = 16,
        in_channels: int = 1,
        size: Size = "small",
        embed_dim: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        mlp_ratio: float = 4.0,
        positions: Literal["sincos", "rotary", "none"] = "sincos",
        position_unit: Literal["patch", "mm"] = "patch",
        reference_mm: float = 16.0,
        class_token: bool = True,
        registers: int = 0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        taps: int = 4,
        pooling: Pooling = "mean",
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            spatial_dims=3,
            patch=patch_3d,
            in_channels=in_channels,
            size=size,
            embed_dim=embed_dim,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            positions=positions,
            position_unit=position_unit,
            reference_mm=reference_mm,
            class_token=class_token,
            registers=registers,
            drop_path=drop_path,
            layer_scale=layer_scale,
            taps=taps,
            pooling=pooling,
            image_mean=image_mean,
            image_std=image_std,
        )
        self.patch_3d = self.patch
        self.patch_2d = (patch_2d,) * 2 if isinstance(patch_2d, int) else tuple(patch_2d)
        if len(self.patch_2d) != 2:
            raise UserError(f"SharedViT: patch_2d needs one size for each of 2 axes, got {self.patch_2d}")
        self.patch_embed_2d = PatchEmbed(
            self.patch_2d, in_channels, self.embed_dim, checked_moments(image_mean, image_std, in_channels)
        )
        self.patch_embed_2d.apply(init_as_vit)

    def embedding(self, axes: int) -> PatchEmbed:
        """The patch embedding of images (2) or of volumes (3).

        Raises:
            UserError: another number of axes.
        """
        if axes not in (2, 3):
            raise UserError(f"SharedViT takes images with 2 axes or volumes with 3, got {axes} axes")
        return self.patch_embed_2d if axes == 2 else self.patch_embed

    def rank(self, axes: int) -> ViT:
        """The ordinary ViT for one kind of image; it holds the same weights, not copies.

        Args:
            axes: 2 or 3.
        """
        embed = self.embedding(axes)
        with torch.device("meta"):  # only its form is needed: no memory, no random numbers
            view = ViT(axes, embed.patch, **{name: getattr(self, name) for name in _SHARED})
        view.patch_embed, view.blocks, view.norm = embed, self.blocks, self.norm
        view.cls_token, view.reg_token = self.cls_token, self.reg_token
        return view.train(self.training)


def of_rank(backbone: Backbone, axes: int) -> Backbone:
    """What a backbone is for images with so many axes: of a :class:`SharedViT` one of its two ViTs, else itself."""
    return backbone.rank(axes) if isinstance(backbone, SharedViT) else backbone
