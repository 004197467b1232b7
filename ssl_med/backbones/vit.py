"""One vision transformer for 2D, 3D and 3D + time (ViT, arXiv 2010.11929), with access to subsets of its tokens.

Positions are computed for the grid at hand, so no image size stands in a config. Parameter names are timm's where both
have the part, see :mod:`ssl_med.weights`.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_med.backbones.base import Backbone
from ssl_med.backbones.block import Block, drop_path_rates, init_as_vit
from ssl_med.errors import UserError
from ssl_med.ops.patches import grid_of, patch_centres, patchify, take
from ssl_med.ops.positions import rotary_angles, sincos
from ssl_med.presets import PRESETS
from ssl_med.types import Features

Moments = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean of each channel, and standard deviation of each."""
Size = Literal["tiny", "small", "base", "large", "huge"]
Pooling = Literal["mean", "class"]


class Tokens(NamedTuple):
    """Patch tokens and where they stand.

    Attributes:
        value: (b, n, d).
        centre: (1 or b, n, axes) coordinates in the unit of the positions.
        grid: patches along each axis of the whole image.
    """

    value: Float[Tensor, "b n d"]
    centre: Float[Tensor, "b n axes"]
    grid: tuple[int, ...]

    def keep(self, index: Tensor) -> "Tokens":
        """The subset ``index`` (b, v), in that order."""
        centre = self.centre.expand(len(self.value), -1, -1)
        return Tokens(take(self.value, index), take(centre, index), self.grid)


def checked_moments(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> Moments | None:
    """Mean and spread of each channel; None where they are left open.

    Raises:
        UserError: only one of them is given, or not one positive spread for each channel.
    """
    if mean is None and std is None:
        return None
    given = tuple(mean or ()), tuple(std or ())
    if [len(values) for values in given] != [channels] * 2 or min(given[1]) <= 0:
        raise UserError(
            f"ViT: image_mean {mean} and image_std {std} need one number for each of {channels} channels, and spreads "
            "above 0"
        )
    return given


class PatchEmbed(nn.Module):
    """Patches to tokens as one matrix product: many times faster than a strided Conv3d, and the same function.

    Attributes:
        mean, std: of each channel (c,), None without moments.

    Args:
        patch: voxels per patch along each axis.
        in_channels: channels of the image.
        dim: width of the tokens.
        moments: mean and spread of each channel that become 0 and 1; None for values as they are.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, patch: tuple[int, ...], in_channels: int, dim: int, moments: Moments | None = None) -> None:
        super().__init__()
        self.patch = patch
        # part of the state: weights from elsewhere bring the moments that they were trained with
        self.register_buffer("mean", None if moments is None else torch.tensor(moments[0]))
        self.register_buffer("std", None if moments is None else torch.tensor(moments[1]))
        self.proj = nn.Linear(in_channels * math.prod(patch), dim)

    def forward(self, image: Float[Tensor, "b c *space"]) -> Float[Tensor, "b n d"]:
        """(b, c, \\*space) -> (b, n, d), tokens in raster order."""
        if self.mean is not None and self.std is not None:
            ones = [1] * (image.ndim - 2)
            image = (image - self.mean.to(image.dtype).view(-1, *ones)) / self.std.to(image.dtype).view(-1, *ones)
        return self.proj(patchify(image, self.patch))


def of_raw_values(filters: Tensor, bias: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Filters (d, c, \\*patch) and bias (d,) of the same function for images that are not standardised before."""
    ones = [1] * (filters.ndim - 2)
    filters = filters / std.view(-1, *ones)
    return filters, bias - (filters * mean.view(-1, *ones)).flatten(1).sum(1)


class ViT(Backbone):
    """Vision transformer for any number of spatial axes.

    Args:
        spatial_dims: 2, 3, or 4 for volumes over time (time first).
        patch: voxels per patch along each axis, or one number for all.
        in_channels: channels of the image.
        size: widths and depth of a preset; ``embed_dim``, ``depth`` and ``heads`` override it one by one.
        embed_dim: width of the tokens.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLPs over the width.
        positions: ``sincos`` fixed; ``learned`` for the given ``grid``, interpolated elsewhere; ``rotary``; ``none``.
        position_unit: count positions in patches, or in mm (then batches must carry their spacing).
        reference_mm: in mm, the length that counts as one patch.
        grid: patches along each axis that learned positions are made for.
        class_token: have a class token.
        registers: number of extra tokens that stay inside (arXiv 2309.16588).
        drop_path: stochastic depth of the last block.
        layer_scale: initial layer scale; None for none.
        taps: number of feature maps, taken at equal distances in depth; the last is the final one.
        norm_eps: what the norms add to the variance; weights from elsewhere may want theirs (MONAI 1e-5, HF 1e-12).
        pooling: what ``Features.pooled`` is, and so what probes, heads and embeddings see: the ``mean`` of the patches,
            or the ``class`` token, for weights whose class token was trained (DINO, MoCo v3, SSiT).
        image_mean, image_std: of each channel; values reach the first layer as ``(value - mean) / std``. Left open they
            stay as they are, but a training measures its images and fills them in: values that are all positive, such
            as [0, 1], give tokens that hardly differ between images.

    Raises:
        UserError: the class token is to be the feature and there is none, or mean and spread do not fit the channels.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        patch: int | Sequence[int] = 16,
        in_channels: int = 1,
        size: Size = "small",
        embed_dim: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        mlp_ratio: float = 4.0,
        positions: Literal["sincos", "learned", "rotary", "none"] = "sincos",
        position_unit: Literal["patch", "mm"] = "patch",
        reference_mm: float = 16.0,
        grid: Sequence[int] | None = None,
        class_token: bool = True,
        registers: int = 0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        taps: int = 4,
        norm_eps: float = 1e-6,
        pooling: Pooling = "mean",
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if pooling == "class" and not class_token:
            raise UserError("ViT: pooling: class needs class_token: true, this one has none; take pooling: mean")
        preset = PRESETS[f"vit_{size}"]
        self.spatial_dims, self.in_channels, self.size = spatial_dims, in_channels, size
        self.patch = (patch,) * spatial_dims if isinstance(patch, int) else tuple(patch)
        if len(self.patch) != spatial_dims:
            raise ValueError(f"patch {self.patch} needs one size for each of {spatial_dims} axes")
        self.embed_dim: int = embed_dim or preset["embed_dim"]
        self.depth, self.heads = depth or preset["depth"], heads or preset["heads"]
        self.mlp_ratio, self.positions, self.position_unit = mlp_ratio, positions, position_unit
        self.reference_mm, self.grid = reference_mm, tuple(grid) if grid else None
        self.class_token, self.registers = class_token, registers
        self.drop_path, self.layer_scale, self.taps = drop_path, layer_scale, min(taps, self.depth)
        self.norm_eps = norm_eps
        self.pooling: Pooling = pooling
        self.channels = [self.embed_dim] * self.taps
        self.strides = [self.patch] * self.taps

        moments = checked_moments(image_mean, image_std, in_channels)
        self.patch_embed = PatchEmbed(self.patch, in_channels, self.embed_dim, moments)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, registers, self.embed_dim)) if registers else None
        self.pos_embed = self._learned_positions()
        rates = drop_path_rates(drop_path, self.depth)
        self.blocks = nn.ModuleList(
            Block(self.embed_dim, self.heads, mlp_ratio, rate, layer_scale, norm_eps) for rate in rates
        )
        self.norm = nn.LayerNorm(self.embed_dim, eps=norm_eps)
        self.apply(init_as_vit)
        for token in (self.cls_token, self.reg_token, self.pos_embed):
            if token is not None:
                nn.init.normal_(token, std=0.02)

    def _learned_positions(self) -> nn.Parameter | None:
        if self.positions != "learned":
            return None
        if self.grid is None:
            raise ValueError("positions='learned' need grid=[...], the number of patches along each axis")
        return nn.Parameter(torch.zeros(1, math.prod(self.grid), self.embed_dim))

    @property
    def image_mean(self) -> list[float] | None:
        """Of each channel, as the weights want it; None where values are taken as they are."""
        return _digits(self.patch_embed.mean)

    @property
    def image_std(self) -> list[float] | None:
        """Of each channel, see :attr:`image_mean`."""
        return _digits(self.patch_embed.std)

    @property
    def prefix(self) -> int:
        """Tokens that stand before the patches: class token and registers."""
        return int(self.class_token) + self.registers

    def tokenize(self, image: Float[Tensor, "b c *space"], spacing: Tensor | None = None) -> Tokens:
        """All patches as tokens, absolute positions added.

        Args:
            image: (b, c, \\*space), divisible by the patch.
            spacing: (b, axes) mm per voxel; needed when positions are in mm.
        """
        embed = self.embedding(image.ndim - 2)
        grid = grid_of(tuple(image.shape[2:]), embed.patch)
        centre = self._centres(grid, embed.patch, image.device, spacing)
        value = embed(image)
        if self.positions == "sincos":
            value = value + sincos(centre, self.embed_dim).to(value.dtype)
        elif self.pos_embed is not None:
            value = value + resize_positions(self.pos_embed, self.grid or grid, grid)
        return Tokens(value, centre, grid)

    def embedding(self, axes: int) -> PatchEmbed:
        """What makes tokens of images with so many axes of space; a backbone of several ranks has one for each."""
        return self.patch_embed

    def _centres(
        self, grid: tuple[int, ...], patch: tuple[int, ...], device: torch.device, spacing: Tensor | None
    ) -> Tensor:
        centre = patch_centres(grid, device)[None]
        if self.position_unit == "patch":
            return centre
        if spacing is None:
            raise ValueError("position_unit='mm' needs the spacing of the batch")
        sides = torch.stack([spacing[:, axis] * voxels for axis, voxels in enumerate(patch)], -1)
        return centre * sides[:, None] / self.reference_mm

    def encode(self, tokens: Tokens) -> Float[Tensor, "b m d"]:
        """Run the blocks over any subset of the patches; returns prefix tokens and patches, normalised."""
        return self._run(tokens)[-1]

    def _run(self, tokens: Tokens) -> list[Tensor]:
        """Tokens after each tapped block; only the last is normalised."""
        x, angles = self._with_prefix(tokens)
        taps, tapped = [round((i + 1) * self.depth / self.taps) - 1 for i in range(self.taps)], []
        for number, block in enumerate(self.blocks):
            x = block(x, angles)
            if number in taps:
                tapped.append(x)
        return [*tapped[:-1], self.norm(x)]

    def _with_prefix(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        b = tokens.value.shape[0]  # not len(): torch.export would take it for a constant
        extra = [t.expand(b, -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        x = torch.cat([*[t.to(tokens.value.dtype) for t in extra], tokens.value], 1)
        if self.positions != "rotary":
            return x, None
        angles = rotary_angles(tokens.centre, self.embed_dim // self.heads)
        return x, nn.functional.pad(angles, (0, 0, self.prefix, 0))  # prefix tokens do not turn

    def pool(self, encoded: Float[Tensor, "b m d"]) -> Float[Tensor, "b d"]:
        """One vector per image: the class token, or the mean of the patches, which for MAE is the better one."""
        return encoded[:, 0] if self.pooling == "class" else encoded[:, self.prefix :].mean(1)

    def forward(self, image: Float[Tensor, "b c *space"], spacing: Float[Tensor, "b d"] | None = None) -> Features:
        """Features of whole images."""
        tokens = self.tokenize(image, spacing)
        tapped = self._run(tokens)
        shape = (image.shape[0], self.embed_dim, *tokens.grid)
        maps = [t[:, self.prefix :].transpose(1, 2).reshape(shape) for t in tapped]
        return Features(self.pool(tapped[-1]), maps, tapped[-1][:, 0] if self.class_token else None)

    def layers(self) -> list[list[nn.Parameter]]:
        """Embedding, then one group per block, then the final norm."""
        stem = [p for name, p in self.named_parameters() if not name.startswith(("blocks.", "norm."))]
        return [stem, *[list(block.parameters()) for block in self.blocks], list(self.norm.parameters())]


def resize_positions(
    table: Float[Tensor, "1 n d"], old: tuple[int, ...], new: tuple[int, ...]
) -> Float[Tensor, "1 m d"]:
    """Interpolate learned positions to another grid of the same rank (bicubic in 2D, linear elsewhere)."""
    if old == new:
        return table
    field = table.reshape(*old, -1).movedim(-1, 0)
    if len(old) == 2:
        return nn.functional.interpolate(field[None], size=new, mode="bicubic").flatten(2).transpose(1, 2)
    for axis, size in enumerate(new, 1):  # one axis after the other: torch has no call for four
        lines = field.movedim(axis, -1)
        field = nn.functional.interpolate(lines.flatten(1, -2), size=size, mode="linear")
        field = field.reshape(*lines.shape[:-1], size).movedim(-1, axis)
    return field.flatten(1).transpose(0, 1)[None]


def _digits(moments: Tensor | None) -> list[float] | None:
    return None if moments is None else [float(f"{value:.7g}") for value in moments.tolist()]
