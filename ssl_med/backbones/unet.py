"""A residual U-Net encoder in 2D and 3D; its decoder is :class:`ssl_med.decoders.PyramidDecoder`."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_med.backbones.base import Backbone
from ssl_med.ops.norm import BatchNorm
from ssl_med.types import Features

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class ResidualBlock(nn.Module):
    """Two 3-wide convolutions with norm and a shortcut (He et al., arXiv 1512.03385; nnU-Net ResEnc style).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels that come in.
        out_channels: channels that go out.
        stride: voxels per cell of the output along each axis.
        norm: over the space of each image, or over the batch of all processes.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: tuple[int, ...],
        norm: Literal["instance", "batch"] = "instance",
    ) -> None:
        super().__init__()
        conv, normed = CONV[spatial_dims], NORM[spatial_dims] if norm == "instance" else BatchNorm
        self.conv1 = conv(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = normed(out_channels, affine=True)
        self.conv2 = conv(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = normed(out_channels, affine=True)
        same = in_channels == out_channels and set(stride) == {1}
        self.shortcut = nn.Identity() if same else conv(in_channels, out_channels, 1, bias=False)
        self._every = (..., *(slice(None, None, step) for step in stride))
        self.act = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, \\*space) -> (b, out_channels, \\*space / stride)."""
        y = self.act(self.norm1(self.conv1(x)))
        # A 1-wide convolution with a stride would be the same, but oneDNN writes past its memory in the backward pass
        # of one with few channels, where the processor has AVX2 alone (oneDNN issue 6035): a segmentation fault.
        return self.act(self.norm2(self.conv2(y)) + self.shortcut(x[self._every]))


class UNetEncoder(Backbone):
    """Residual U-Net encoder (nnU-Net ResEnc, arXiv 2404.09556, in small).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        widths: channels of each stage, fine to coarse; each stage but the first halves every axis.
        blocks: residual blocks per stage.
        pooling: one factor per stage and axis where an axis should not be halved each time, e.g. ``[[1,1,1],[1,2,2]]``.
        norm: ``instance`` for segmentation and small batches; ``batch`` for tasks on pooled features: instance
            norm gives the mean over space of each channel a fixed value, which pooling then sees.

    Raises:
        ValueError: pooling and widths have different lengths, or there is no such norm.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        widths: Sequence[int] = (32, 64, 128, 256),
        blocks: int = 2,
        pooling: Sequence[Sequence[int]] | None = None,
        norm: Literal["instance", "batch"] = "instance",
    ) -> None:
        super().__init__()
        if norm not in ("instance", "batch"):
            raise ValueError(f"UNetEncoder: norm must be instance or batch, got {norm!r}")
        self.spatial_dims, self.in_channels, self.blocks, self.norm = spatial_dims, in_channels, blocks, norm
        self.widths, self.pooling = list(widths), [list(p) for p in pooling] if pooling else None
        if self.pooling and len(self.pooling) != len(self.widths):
            raise ValueError(f"pooling has {len(self.pooling)} stages, widths have {len(self.widths)}")
        steps = (
            [tuple(p) for p in pooling]
            if pooling
            else [(1 if i == 0 else 2,) * spatial_dims for i in range(len(widths))]
        )
        self.embed_dim, self.channels = self.widths[-1], list(self.widths)
        self.strides, stride, stages, previous = [], (1,) * spatial_dims, [], in_channels
        for width, step in zip(self.widths, steps, strict=True):
            stride = tuple(a * b for a, b in zip(stride, step, strict=True))
            self.strides.append(stride)
            still = (1,) * spatial_dims
            rest = [ResidualBlock(spatial_dims, width, width, still, norm) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(ResidualBlock(spatial_dims, previous, width, step, norm), *rest))
            previous = width
        self.stages = nn.ModuleList(stages)
        last = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
        self.layout = last if norm == "batch" else torch.contiguous_format
        self.to(memory_format=self.layout)  # on a CPU 1.5 times faster with batch norm, 1.6 slower with instance norm

    def forward(self, image: Float[Tensor, "b c *space"], spacing: Float[Tensor, "b d"] | None = None) -> Features:
        """One map per stage; pooled is the mean of the coarsest."""
        maps, x = [], image.contiguous(memory_format=self.layout)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return Features(x.flatten(2).mean(-1), maps)

    def layers(self) -> list[list[nn.Parameter]]:
        """One group per stage."""
        return [list(stage.parameters()) for stage in self.stages]
