"""What the encoders of nnU-Net share: stages of given widths, strides and kernels, and the layer they are made of."""

from collections.abc import Sequence

from torch import Tensor, nn

from ssl_med.backbones.base import Backbone
from ssl_med.backbones.unet import CONV, NORM

Steps = tuple[int, ...]


class ConvNorm(nn.Module):
    """Convolution and instance norm, with a leaky ReLU if asked.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels that come in.
        out_channels: channels that go out.
        kernel: voxels along each axis, odd.
        stride: voxels per cell of the output along each axis.
        bias: of the convolution.
        activate: end with the activation.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel: Steps,
        stride: Steps,
        bias: bool = True,
        activate: bool = True,
    ) -> None:
        super().__init__()
        padding = tuple((size - 1) // 2 for size in kernel)
        self.conv = CONV[spatial_dims](in_channels, out_channels, kernel, stride, padding, bias=bias)
        self.norm = NORM[spatial_dims](out_channels, affine=True)
        self.activation = nn.LeakyReLU(0.01) if activate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, \\*space) -> (b, out_channels, \\*space / stride)."""
        return self.activation(self.norm(self.conv(x)))


class StagedEncoder(Backbone):
    """An encoder in stages, each with its own width, stride and kernel along each axis.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        widths: channels of each stage, fine to coarse.
        depths: blocks or convolutions of each stage, or one number for all.
        pooling: stride of each stage along each axis; 1, then 2 everywhere if None.
        kernels: kernel of each stage along each axis; 3 everywhere if None.
        bias: give convolutions a bias.

    Raises:
        ValueError: lists of different lengths.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        widths: Sequence[int],
        depths: int | Sequence[int],
        pooling: Sequence[Sequence[int]] | None,
        kernels: Sequence[Sequence[int]] | None,
        bias: bool,
    ) -> None:
        super().__init__()
        self.spatial_dims, self.in_channels, self.bias = spatial_dims, in_channels, bias
        self.widths, stages = list(widths), len(widths)
        self.depths = [depths] * stages if isinstance(depths, int) else list(depths)
        self.pooling = [list(p) for p in pooling or [[min(i + 1, 2)] * spatial_dims for i in range(stages)]]
        self.kernels = [list(k) for k in kernels or [[3] * spatial_dims] * stages]
        for name in ("depths", "pooling", "kernels"):
            if len(getattr(self, name)) != stages:
                said = "blocks or convolutions" if name == "depths" else name
                raise ValueError(f"{said}: given for {len(getattr(self, name))} stages, widths for {stages}")
        self.embed_dim, self.channels = self.widths[-1], list(self.widths)
        self.strides = self._strides()

    def _strides(self) -> list[tuple[int, ...]]:
        strides = [tuple(self.pooling[0])]
        for step in self.pooling[1:]:
            strides.append(tuple(a * b for a, b in zip(strides[-1], step, strict=True)))
        return strides
