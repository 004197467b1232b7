"""Random boxes of images: their law, and reading many of them in one pass."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ssl_med.ops.constants import constant
from ssl_med.ops.random import Draws
from ssl_med.ops.sampling import read_affine

ATTEMPTS = 10


class BoxLaw(NamedTuple):
    """How large boxes are, relative to the image.

    Attributes:
        scale: range of the share of the area; in 3D of the in-plane area.
        ratio: range of the ratio of the later to the earlier in-plane side, each relative to the image's.
        through: range of the share of the slices; used in 3D only.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float]
    through: tuple[float, float]


class Boxes(NamedTuple):
    """Boxes in shares of the axes, each seen mirrored or turned.

    Attributes:
        start: (r, n) first corner, 0 to 1.
        lengths: (r, n) sides, 0 to 1; the box lies inside the image.
        turn: (r, n, n) signed permutation: column j says along which input axis output axis j runs, and which way.
    """

    start: Float[Tensor, "r n"]
    lengths: Float[Tensor, "r n"]
    turn: Float[Tensor, "r n m"]

    def matrix(self) -> Float[Tensor, "r n m"]:
        """Output to input coordinates, -1 and 1 being the outer faces of the first and last voxel."""
        centre = 2 * self.start + self.lengths - 1
        return torch.cat([self.lengths[..., None] * self.turn, centre[..., None]], -1)

    def spacing(self, extent: Float[Tensor, "r n"], size: Sequence[int]) -> Float[Tensor, "r n"]:
        """Mm per voxel of the boxes resampled to ``size``, where the image is ``extent`` mm long."""
        voxels = constant(size, extent.device, extent.dtype)
        return ((self.lengths * extent)[..., None] * self.turn.abs()).sum(1) / voxels


def through_plane(spacing: Float[Tensor, "b 3"]) -> Int[Tensor, " b"]:
    """The axis across the slices: the one that is left when the two of the most equal spacing are taken.

    Spacings that agree to one per cent count as equal; among equals the first axis is taken (the slices of a RAS volume
    in memory order).

    Example:
        ``[[3.0, 0.7, 0.7], [1.0, 1.0, 1.0], [0.5, 4.0, 0.5]]`` gives ``[0, 0, 1]``.
    """
    log = spacing.log()
    pairs = [(1, 2), (0, 2), (0, 1)]
    apart = torch.stack([(log[:, a] - log[:, b]).abs() for a, b in pairs], 1)
    return torch.where(apart < 0.01, 0.0, apart).argmin(1)


def axis_order(through: Int[Tensor, " b"]) -> Int[Tensor, "b 3"]:
    """The through-plane axis first, then the in-plane axes in their order."""
    table = constant([[0, 1, 2], [1, 0, 2], [2, 0, 1]], through.device)
    return table[through]


def draw_boxes(draws: Draws, law: BoxLaw, order: Int[Tensor, "r n"]) -> tuple[Tensor, Tensor]:
    """Corner and sides of one box per row, (r, n) shares of the axes.

    In the plane it is torchvision's law for square images: area uniform in ``scale``, the logarithm of the ratio
    uniform, the first of ten boxes that fits; if none does, one with the proportions of the image. The share of slices
    is uniform, and so is the place.

    Args:
        draws: one row per box.
        law: sizes.
        order: axes of each row, the two of the plane last (see :func:`axis_order`).
    """
    share = draws.uniform(ATTEMPTS, low=law.scale[0], high=law.scale[1])
    stretch = 0.5 * draws.uniform(ATTEMPTS, low=math.log(law.ratio[0]), high=math.log(law.ratio[1]))
    fits = 0.5 * share.log() + stretch.abs() <= 0
    first = fits.int().argmax(1, keepdim=True)
    stretch = torch.where(fits.any(1, keepdim=True), stretch.gather(1, first), 0.0)
    side = share.gather(1, first).sqrt()
    lengths = torch.cat([side * (-stretch).exp(), side * stretch.exp()], 1).clamp(max=1.0)
    if order.shape[1] == 3:
        slices = draws.child(0).uniform(1, low=law.through[0], high=law.through[1])
        lengths = torch.cat([slices, lengths], 1)
    lengths = torch.zeros_like(lengths).scatter(1, order, lengths)
    return draws.uniform(order.shape[1]) * (1 - lengths), lengths


def draw_turns(draws: Draws, flip: Sequence[float], turn: float, size: Sequence[int]) -> Float[Tensor, "r n m"]:
    """Signed permutations: mirrored along each axis, and turned in planes whose two axes have equally many voxels.

    Args:
        draws: one row per box.
        flip: probability for each axis.
        turn: probability of a turn by 90, 180 or 270 degrees, for each such plane.
        size: voxels of what comes out.
    """
    count = len(size)
    chances = constant(flip, draws.keys.device)
    mirrored = draws.uniform(count) < chances
    matrix = torch.diag_embed(1.0 - 2.0 * mirrored)
    for number, (a, b) in enumerate(itertools.combinations(range(count), 2)):
        if turn <= 0 or size[a] != size[b]:
            continue
        plane = draws.child(1 + number)
        quarters = (1 + plane.integers(3)) * plane.bernoulli(turn)
        cosine, sine = (constant(v, quarters.device)[quarters] for v in ([1.0, 0, -1, 0], [0.0, 1, 0, -1]))
        turned = torch.eye(count, device=quarters.device).repeat(len(quarters), 1, 1)
        turned[:, a, a] = turned[:, b, b] = cosine
        turned[:, a, b], turned[:, b, a] = -sine, sine
        matrix = (matrix[..., None] * turned[:, None]).sum(2)  # whole numbers, exact at any precision
    return matrix


def read_boxes(
    x: Shaped[Tensor, "b c *space"], boxes: Boxes, size: Sequence[int], mode: str
) -> Shaped[Tensor, "r c *size"]:
    """Read several boxes of every image in one pass over it, linearly interpolated or nearest.

    There is no smoothing before a reduction.

    Args:
        x: images, masks (integers) or regions (booleans).
        boxes: r = b * v boxes, those of one image side by side.
        size: voxels of each box that comes out.
        mode: ``bilinear`` or ``nearest``.

    Returns:
        (v * b, c, \\*size): all images in their first box, then all in their second ...
    """
    found = read_affine(x, boxes.matrix(), size, mode)
    return found.unflatten(0, (len(x), -1)).transpose(0, 1).flatten(0, 1)
