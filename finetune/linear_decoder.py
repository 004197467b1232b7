"""The lightest decoder: one linear layer per map, summed and stretched. It shows what frozen maps know."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ssl_med.backbones import Backbone
from ssl_med.types import Features

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_MODE = {2: "bilinear", 3: "trilinear"}


class LinearDecoder(nn.Module):
    """A norm and a linear layer on every map, summed on the grid of the finest.

    Linear in the normalised features (as DINOv2's linear segmentation, arXiv 2304.07193, with the maps of all depths).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image, which it does not look at.
        channels: of the maps, fine to coarse.
        strides: voxels per cell of the maps.
        width: channels that come out.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        width: int = 32,
    ) -> None:
        super().__init__()
        self.spatial_dims, self.in_channels, self.width = spatial_dims, in_channels, width
        self.channels, self.strides = list(channels), [tuple(s) for s in strides]
        self.norms = nn.ModuleList(nn.LayerNorm(count) for count in channels)
        self.layers = nn.ModuleList(_CONV[spatial_dims](count, width, 1) for count in channels)
        self.out_channels = width

    @classmethod
    def for_backbone(cls, backbone: Backbone, width: int = 32) -> "LinearDecoder":
        """The decoder that fits a backbone's maps."""
        return cls(backbone.spatial_dims, backbone.in_channels, backbone.channels, backbone.strides, width)

    def forward(self, features: Features, image: Tensor) -> Float[Tensor, "b k *grid"]:
        """Maps to (b, width, \\*grid of the finest map)."""
        parts, size = [], features.maps[0].shape[2:]
        for feature_map, norm, layer in zip(features.maps, self.norms, self.layers, strict=True):
            part = layer(norm(feature_map.movedim(1, -1)).movedim(-1, 1))
            parts.append(part if part.shape[2:] == size else stretched(part, tuple(size)))
        return torch.stack(parts).sum(0)


def stretched(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Linear interpolation of (b, c, \\*grid) to another grid."""
    return interpolate(x, size=size, mode=_MODE[x.ndim - 2], align_corners=False)
