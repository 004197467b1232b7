"""Feature maps of any backbone to full resolution: one decoder for ViT maps (UNETR) and CNN pyramids (U-Net)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_med.backbones.base import Backbone
from ssl_med.backbones.unet import ResidualBlock
from ssl_med.types import Features

_UP = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def pyramid_strides(strides: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Strides of the decoder's levels from fine to coarse: all those of the maps, axes halved together in between.

    Example:
        a ViT of patch (4, 16, 16) gives (1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16).

    Args:
        strides: of the maps, fine to coarse.

    Raises:
        ValueError: a stride is not a power of two.
    """
    for stride in strides:
        if any(s & (s - 1) for s in stride):
            raise ValueError(f"the decoder doubles resolution step by step: strides {stride} must be powers of two")
    levels = [strides[-1]]
    for finer in [*reversed(strides[:-1]), (1,) * len(strides[-1])]:
        while levels[0] != finer:
            levels.insert(0, tuple(max(s // 2, end) for s, end in zip(levels[0], finer, strict=True)))
    return levels


class Upsample(nn.Module):
    """Repeated transposed convolutions from one stride to a finer one (the skip branch of UNETR, arXiv 2103.10504)."""

    def __init__(
        self, spatial_dims: int, channels: int, out_channels: int, start: tuple[int, ...], end: tuple[int, ...]
    ) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        while start != end:
            step = tuple(2 if s > e else 1 for s, e in zip(start, end, strict=True))
            steps.append(_UP[spatial_dims](channels, out_channels, step, step))
            start, channels = tuple(s // k for s, k in zip(start, step, strict=True)), out_channels
        self.steps = nn.Sequential(*steps)
        self.project = (
            nn.Identity() if steps else ResidualBlock(spatial_dims, channels, out_channels, (1,) * spatial_dims)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, \\*grid) -> (b, out_channels, \\*finer grid)."""
        return self.project(self.steps(x))


class PyramidDecoder(nn.Module):
    """U-shaped decoder that follows the maps of a backbone.

    Levels halve from the coarsest stride to 1. A level that a CNN has a map for takes that map; the maps of a ViT, all
    of one stride, are upsampled to the levels in order of depth, the earliest to the finest, as UNETR does. The finest
    level also sees the image.

    Args:
        spatial_dims: axes of space.
        in_channels: channels of the image.
        channels: channels of the backbone's maps, fine to coarse.
        strides: their strides.
        widths: channels of the decoder's levels, fine to coarse; shorter lists repeat their last entry.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        widths: Sequence[int] = (16, 32, 64, 128, 256),
    ) -> None:
        super().__init__()
        self.spatial_dims, self.in_channels = spatial_dims, in_channels
        self.channels, self.strides = list(channels), [tuple(s) for s in strides]
        self.widths = list(widths)
        levels = pyramid_strides(self.strides)
        width = [self.widths[min(i, len(self.widths) - 1)] for i in range(len(levels))]
        self.source = assign_maps(self.strides, levels)
        still = (1,) * spatial_dims
        self.stem = ResidualBlock(spatial_dims, in_channels, width[0], still)
        self.skips, self.ups, self.blocks = nn.ModuleDict(), nn.ModuleList(), nn.ModuleList()
        for level, index in self.source.items():
            target = levels[level]
            self.skips[str(level)] = Upsample(
                spatial_dims, self.channels[index], width[level], self.strides[index], target
            )
        for level in range(len(levels) - 2, -1, -1):
            self.ups.append(Upsample(spatial_dims, width[level + 1], width[level], levels[level + 1], levels[level]))
            joined = width[level] * (1 + (level in self.source) + (level == 0))
            self.blocks.append(ResidualBlock(spatial_dims, joined, width[level], still))
        self.levels, self.out_channels = levels, width[0]
        self.layout = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
        self.to(memory_format=self.layout)  # convolutions with few channels are 1.4 times faster so on a CPU

    @classmethod
    def for_backbone(cls, backbone: Backbone, widths: Sequence[int]) -> "PyramidDecoder":
        """The decoder that fits a backbone's maps."""
        return cls(backbone.spatial_dims, backbone.in_channels, backbone.channels, backbone.strides, widths)

    def forward(self, features: Features, image: Float[Tensor, "b c *space"]) -> Float[Tensor, "b k *space"]:
        """Maps and image to (b, widths[0], \\*space)."""
        top = len(self.levels) - 1
        features = Features(features.pooled, [m.contiguous(memory_format=self.layout) for m in features.maps])
        image = image.contiguous(memory_format=self.layout)
        x = self.skips[str(top)](features.maps[self.source[top]])
        for number, level in enumerate(range(top - 1, -1, -1)):
            parts = [self.ups[number](x)]
            if level in self.source:
                parts.append(self.skips[str(level)](features.maps[self.source[level]]))
            if level == 0:
                parts.append(self.stem(image))
            x = self.blocks[number](torch.cat(parts, 1))
        return x


def assign_maps(strides: Sequence[tuple[int, ...]], levels: Sequence[tuple[int, ...]]) -> dict[int, int]:
    """Which map each level takes: level -> map index; the coarsest level always takes the last map.

    Maps of one stride (a ViT's) go to the coarsest levels in order of depth: with maps 0..3 and levels 0..4, level 4
    takes map 3, level 3 map 2, level 2 map 1, level 1 map 0, level 0 only the image.
    """
    if len(set(strides)) == 1 and len(strides) > 1:
        count, top = len(strides), len(levels) - 1
        return {top - i: count - 1 - i for i in range(min(count, top + 1))}
    return {levels.index(stride): index for index, stride in enumerate(strides)}
