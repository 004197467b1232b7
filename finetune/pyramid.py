"""A feature pyramid on the maps of any backbone, and the head that looks at all its levels alike."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ssl_med.backbones import Backbone
from ssl_med.decoders import Upsample, pyramid_strides
from ssl_med.errors import UserError
from ssl_med.types import Features

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}


class FeaturePyramid(nn.Module):
    """Levels of one width at doubling strides (FPN, arXiv 1612.03144).

    A level takes the map of its own stride. Where there is none it is made from the coarsest map, by transposed or
    strided convolutions; so a ViT, whose maps all have one stride, gets the simple pyramid of ViTDet (arXiv 2203.16527)
    from its last map. Each level then adds the next coarser one. (ViTDet adds nothing and is as good; a CNN needs it.)

    Args:
        backbone: whose maps come in.
        width: channels of every level.
        finest: voxels per cell of the finest level, along its coarsest axis.
        levels: how many there are.

    Raises:
        UserError: settings that make no pyramid.
    """

    def __init__(self, backbone: Backbone, width: int, finest: int, levels: int) -> None:
        super().__init__()
        if width < 8 or finest < 1 or levels < 1:
            raise UserError(f"pyramid: width {width}, finest {finest}, levels {levels}: expected at least 8, 1 and 1")
        axes, own = backbone.spatial_dims, [tuple(stride) for stride in backbone.strides]
        self.strides = level_strides(own, finest, levels)
        self.source = [_last_index(own, stride) for stride in self.strides]
        self.enter = nn.ModuleList(
            _entrance(axes, backbone.channels[index], width, own[index], stride)
            for index, stride in zip(self.source, self.strides, strict=True)
        )
        self.leave = nn.ModuleList(_convolution(axes, width) for _ in self.strides)

    def forward(self, features: Features) -> list[Tensor]:
        """Levels (b, width, \\*grid), fine to coarse."""
        levels = [enter(features.maps[i]) for enter, i in zip(self.enter, self.source, strict=True)]
        for number in range(len(levels) - 2, -1, -1):
            levels[number] = levels[number] + interpolate(levels[number + 1], levels[number].shape[2:])
        return [leave(level) for leave, level in zip(self.leave, levels, strict=True)]


class DenseHead(nn.Module):
    """Two towers that say of every cell what is there and where its box is (RetinaNet, arXiv 1708.02002).

    With group norm between (as FCOS, arXiv 1904.01355), since batches of volumes are small. Before training every class
    has a probability of 0.01 everywhere, so that the many empty cells do not drown the rest.

    Args:
        axes: of space.
        width: channels.
        depth: convolutions of each tower.
        classes: number of classes, without background.
    """

    step: Tensor

    def __init__(self, axes: int, width: int, depth: int, classes: int) -> None:
        super().__init__()
        self.what_tower, self.where_tower = (
            nn.Sequential(*[_convolution(axes, width) for _ in range(depth)]) for _ in range(2)
        )
        self.what = _CONV[axes](width, classes, 3, padding=1)
        self.where = _CONV[axes](width, 2 * axes, 3, padding=1)
        for layer in (self.what, self.where):
            nn.init.normal_(layer.weight, std=0.01)
        nn.init.constant_(self.what.bias, -math.log(99.0))  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(self.where.bias)  # pyright: ignore[reportArgumentType]
        # Faster R-CNN's weights 10 and 5: in 3D one step of Adam sums over so many inputs that boxes would explode
        self.register_buffer("step", torch.tensor([0.1] * axes + [0.2] * axes), persistent=False)

    def forward(self, level: Float[Tensor, "b width *grid"]) -> tuple[Float[Tensor, "b m k"], Float[Tensor, "b m c"]]:
        """Logits of the classes and moves of the anchor, cell by cell, in full precision."""
        what, where = self.what(self.what_tower(level)), self.where(self.where_tower(level))
        return what.flatten(2).transpose(1, 2).float(), where.flatten(2).transpose(1, 2).float() * self.step


def level_strides(own: Sequence[tuple[int, ...]], finest: int, levels: int) -> list[tuple[int, ...]]:
    """Strides of a pyramid: from the first one of at least ``finest`` on, doubled where the backbone has no more.

    Example:
        a ViT of patch (4, 16, 16), finest 8 and three levels: (2, 8, 8), (4, 16, 16), (8, 32, 32).
    """
    found = [stride for stride in pyramid_strides(own) if max(stride) >= finest]
    doubled = own[-1]
    while len(found) < levels:
        doubled = tuple(2 * length for length in doubled)
        if max(doubled) >= finest:
            found.append(doubled)
    return found[:levels]


def _last_index(own: Sequence[tuple[int, ...]], stride: tuple[int, ...]) -> int:
    """The deepest map of that stride, else the last."""
    return max((index for index, mine in enumerate(own) if mine == stride), default=len(own) - 1)


def _entrance(axes: int, channels: int, width: int, start: tuple[int, ...], end: tuple[int, ...]) -> nn.Module:
    if start == end:
        return _CONV[axes](channels, width, 1)
    if max(start) > max(end):
        return Upsample(axes, channels, width, start, end)
    steps: list[nn.Module] = []
    while start != end:
        steps.append(_CONV[axes](channels, width, 3, stride=2, padding=1))
        start, channels = tuple(2 * length for length in start), width
    return nn.Sequential(*steps)


def _convolution(axes: int, width: int) -> nn.Module:
    groups = max(count for count in range(1, width // 8 + 1) if width % count == 0)
    return nn.Sequential(_CONV[axes](width, width, 3, padding=1), nn.GroupNorm(groups, width), nn.ReLU())
