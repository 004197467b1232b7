"""The promise every backbone keeps, so that any task, decoder and head can stand on it."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from ssl_med.types import Features


class Backbone(nn.Module, ABC):
    """An image encoder: (b, in_channels, \\*space) -> Features.

    Attributes:
        spatial_dims: axes of space it takes.
        in_channels: channels it takes.
        embed_dim: width of ``Features.pooled``.
        channels: channels of each map, fine to coarse.
        strides: voxels per cell of each map along each axis, fine to coarse.
    """

    spatial_dims: int
    in_channels: int
    embed_dim: int
    channels: list[int]
    strides: list[tuple[int, ...]]

    @abstractmethod
    def forward(self, image: Float[Tensor, "b c *space"], spacing: Float[Tensor, "b d"] | None = None) -> Features:
        """Features of a batch; ``spacing`` (mm) matters only to backbones whose positions are in mm."""

    def layers(self) -> list[list[nn.Parameter]]:
        """Parameters in groups from the input side to the output side, for layer-wise learning rates."""
        return [list(self.parameters())]

    def multiple(self) -> tuple[int, ...]:
        """Image sizes must be a multiple of this along each axis."""
        return tuple(max(stride[axis] for stride in self.strides) for axis in range(self.spatial_dims))
