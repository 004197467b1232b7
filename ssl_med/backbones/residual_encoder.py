"""nnU-Net's residual encoder in its own arithmetic and names, so that its checkpoints have a home here."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from ssl_med.backbones.staged import ConvNorm, StagedEncoder, Steps
from ssl_med.types import Features

_POOL = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


class PooledShortcutBlock(nn.Module):
    """Two convolutions; the shortcut pools by the mean, then a 1-wide convolution (ResNet-D, arXiv 1812.01187).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels that come in.
        out_channels: channels that go out.
        kernel: of both convolutions.
        stride: of the first.
        bias: of both.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, kernel: Steps, stride: Steps, bias: bool
    ) -> None:
        super().__init__()
        still = (1,) * spatial_dims
        self.conv1 = ConvNorm(spatial_dims, in_channels, out_channels, kernel, stride, bias)
        self.conv2 = ConvNorm(spatial_dims, out_channels, out_channels, kernel, still, bias, activate=False)
        shortcut: list[nn.Module] = [] if stride == still else [_POOL[spatial_dims](stride, stride)]
        if in_channels != out_channels:
            shortcut.append(ConvNorm(spatial_dims, in_channels, out_channels, still, still, bias=False, activate=False))
        self.skip = nn.Sequential(*shortcut)
        self.activation = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, \\*space) -> (b, out_channels, \\*space / stride)."""
        return self.activation(self.conv2(self.conv1(x)) + self.skip(x))


class ResidualEncoder(StagedEncoder):
    """Encoder of nnU-Net's ResEnc presets (Isensee et al., arXiv 2404.09556), which nnssl pretrains.

    Unlike :class:`~ssl_med.backbones.UNetEncoder` it has a stem, biases and pooled, normalised shortcuts, as
    ``dynamic-network-architectures`` has them; parameter names are those of its ``ResidualEncoder``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        widths: channels of each stage, fine to coarse (ResEnc-L in 3D: 32, 64, 128, 256, 320, 320).
        blocks: residual blocks of each stage (ResEnc-L: 1, 3, 4, 6, 6, 6), or one number for all.
        pooling: stride of each stage along each axis; 1, then 2 everywhere if None.
        kernels: kernel of each stage along each axis; 3 everywhere if None.
        bias: give convolutions a bias, as nnU-Net's plans do.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        widths: Sequence[int] = (32, 64, 128, 256, 320, 320),
        blocks: int | Sequence[int] = (1, 3, 4, 6, 6, 6),
        pooling: Sequence[Sequence[int]] | None = None,
        kernels: Sequence[Sequence[int]] | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__(spatial_dims, in_channels, widths, blocks, pooling, kernels, bias)
        self.blocks, stages = self.depths, len(self.widths)
        stem = ConvNorm(spatial_dims, in_channels, self.widths[0], tuple(self.kernels[0]), (1,) * spatial_dims, bias)
        self.stem = nn.ModuleDict({"convs": nn.Sequential(stem)})
        self.stages = nn.ModuleList(nn.ModuleDict({"blocks": self._stage(i)}) for i in range(stages))

    def _stage(self, number: int) -> nn.Sequential:
        width, kernel = self.widths[number], tuple(self.kernels[number])
        previous, step = self.widths[max(number - 1, 0)], tuple(self.pooling[number])
        first = PooledShortcutBlock(self.spatial_dims, previous, width, kernel, step, self.bias)
        still = (1,) * self.spatial_dims
        rest = [
            PooledShortcutBlock(self.spatial_dims, width, width, kernel, still, self.bias)
            for _ in range(self.blocks[number] - 1)
        ]
        return nn.Sequential(first, *rest)

    def forward(self, image: Float[Tensor, "b c *space"], spacing: Float[Tensor, "b d"] | None = None) -> Features:
        """One map per stage; pooled is the mean of the coarsest."""
        x, maps = self.stem["convs"](image), []
        for stage in self.stages:
            x = stage["blocks"](x)  # pyright: ignore[reportIndexIssue]
            maps.append(x)
        return Features(x.flatten(2).mean(-1), maps)

    def layers(self) -> list[list[nn.Parameter]]:
        """The stem, then one group per stage."""
        return [list(part.parameters()) for part in (self.stem, *self.stages)]
