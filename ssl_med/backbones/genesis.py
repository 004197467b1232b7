"""The encoder of Models Genesis' 3D U-Net, so that its weights have a home here; written from its description."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_med.backbones.base import Backbone
from ssl_med.types import Features

STAGES = ("down_tr64", "down_tr128", "down_tr256", "down_tr512")


class GenesisConv(nn.Module):
    """A 3-wide convolution, a norm by the moments of each image, ReLU.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.bn1 = nn.InstanceNorm3d(out_channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, \\*space) -> (b, out_channels, \\*space)."""
        return torch.relu(self.bn1(self.conv1(x)))


class GenesisEncoder(Backbone):
    """Encoder of the V-Net-like U-Net of Models Genesis (Zhou et al., arXiv 2004.07882): four stages, maxima between.

    The original's batch norm takes the moments of the batch, in evaluation too, so that features depend on the
    neighbours; here each image has its own. Both agree for a batch of one image. Parameter names are the original's.

    Args:
        in_channels: channels of the image.
        width: channels of the first convolution; stages have 2, 4, 8 and 16 times as many.
    """

    def __init__(self, in_channels: int = 1, width: int = 32) -> None:
        super().__init__()
        self.in_channels, self.width, self.spatial_dims = in_channels, width, 3
        self.channels = [width * 2**i for i in (1, 2, 3, 4)]
        self.embed_dim, self.strides = self.channels[-1], [(2**i,) * 3 for i in range(4)]
        previous = in_channels
        for name, channels in zip(STAGES, self.channels, strict=True):
            half = channels // 2
            convolutions = nn.Sequential(GenesisConv(previous, half), GenesisConv(half, channels))
            self.add_module(name, nn.ModuleDict({"ops": convolutions}))
            previous = channels

    def forward(self, image: Float[Tensor, "b c *space"], spacing: Float[Tensor, "b d"] | None = None) -> Features:
        """One map per stage; pooled is the mean of the coarsest."""
        x, maps = image, []
        for number, name in enumerate(STAGES):
            x = self.get_submodule(f"{name}.ops")(nn.functional.max_pool3d(x, 2) if number else x)
            maps.append(x)
        return Features(x.flatten(2).mean(-1), maps)

    def layers(self) -> list[list[nn.Parameter]]:
        """One group per stage."""
        return [list(self.get_submodule(name).parameters()) for name in STAGES]
