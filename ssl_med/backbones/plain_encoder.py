"""nnU-Net's plain encoder, that of its default plans, in its own arithmetic and names."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from ssl_med.backbones.staged import ConvNorm, StagedEncoder
from ssl_med.types import Features


class PlainEncoder(StagedEncoder):
    """Encoder of nnU-Net's default network (Isensee et al., arXiv 1809.10486; Nature Methods 2021), ``PlainConvUNet``.

    Each stage is a row of convolutions with instance norm and leaky ReLU; the first of them strides. Parameter names
    are those of ``PlainConvEncoder`` in ``dynamic-network-architectures``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        widths: channels of each stage, fine to coarse (nnU-Net's plans: doubled from 32, at most 320 in 3D, 512 in 2D).
        convolutions: of each stage, or one number for all.
        pooling: stride of each stage along each axis; 1, then 2 everywhere if None.
        kernels: kernel of each stage along each axis; 3 everywhere if None.
        bias: give convolutions a bias, as nnU-Net's plans do.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        widths: Sequence[int] = (32, 64, 128, 256, 320, 320),
        convolutions: int | Sequence[int] = 2,
        pooling: Sequence[Sequence[int]] | None = None,
        kernels: Sequence[Sequence[int]] | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__(spatial_dims, in_channels, widths, convolutions, pooling, kernels, bias)
        self.convolutions = self.depths
        stages = [nn.ModuleDict({"convs": self._stage(i)}) for i in range(len(self.widths))]
        self.stages = nn.ModuleList(nn.ModuleList([stage]) for stage in stages)  # nnU-Net may pool before: two levels

    def _stage(self, number: int) -> nn.Sequential:
        width, kernel = self.widths[number], tuple(self.kernels[number])
        previous = self.widths[number - 1] if number else self.in_channels
        first = ConvNorm(self.spatial_dims, previous, width, kernel, tuple(self.pooling[number]), self.bias)
        still = (1,) * self.spatial_dims
        more = range(self.convolutions[number] - 1)
        return nn.Sequential(
            first, *[ConvNorm(self.spatial_dims, width, width, kernel, still, self.bias) for _ in more]
        )

    def forward(self, image: Float[Tensor, "b c *space"], spacing: Float[Tensor, "b d"] | None = None) -> Features:
        """One map per stage; pooled is the mean of the coarsest."""
        x, maps = image, []
        for stage in self.stages:
            x = stage[0]["convs"](x)  # pyright: ignore[reportIndexIssue]
            maps.append(x)
        return Features(x.flatten(2).mean(-1), maps)

    def layers(self) -> list[list[nn.Parameter]]:
        """One group per stage."""
        return [list(stage.parameters()) for stage in self.stages]
