"""Volume Fusion: boxes of one image blended into another, and the loss that names the blend (arXiv 2306.16925)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from ssl_med.ops import ranks
from ssl_med.ops.constants import constant
from ssl_med.ops.random import Draws

SMOOTHING = 1e-5


def draw_fusion_boxes(
    draws: Draws, space: tuple[int, ...], levels: int, count: tuple[int, int], side: tuple[float, float]
) -> tuple[Int[Tensor, "b m n"], Int[Tensor, "b m n"], Int[Tensor, "b m"]]:
    """First voxels, sides and classes of the boxes of each image; a box of side 0 is none.

    The number of boxes is uniform in ``count``; along each axis the side is uniform in ``side`` (in voxels, at least
    one) and the place uniform; the class is uniform in 0 .. ``levels``.

    Args:
        draws: one row per image.
        space: voxels along each axis.
        levels: classes above 0.
        count: fewest and most boxes.
        side: shortest and longest side as a share of the axis.
    """
    most, axes = count[1], len(space)
    length = constant(space, draws.keys.device)
    low, high = ((length * share).floor().clamp(min=1).long() for share in side)
    sides = low + (draws.uniform(most, axes).double() * (high - low + 1)).long()
    corners = (draws.uniform(most, axes).double() * (length - sides + 1)).long()
    number = count[0] + draws.integers(most - count[0] + 1)
    there = torch.arange(most, device=length.device) < number[:, None]
    return corners, torch.where(there[..., None], sides, 0), draws.integers(levels + 1, most)


def paint_classes(
    space: tuple[int, ...], corners: Int[Tensor, "b m n"], sides: Int[Tensor, "b m n"], classes: Int[Tensor, "b m"]
) -> Int[Tensor, "b 1 *space"]:
    """The class of every voxel: that of the last box that covers it, 0 outside all boxes."""
    if corners.device.type == "cpu":
        return _painted_by_slices(space, corners, sides, classes)
    return _painted_by_masks(space, corners, sides, classes)


def _painted_by_slices(space: tuple[int, ...], corners: Tensor, sides: Tensor, classes: Tensor) -> Tensor:
    """Box by box: a box costs its own voxels only."""
    painted = torch.zeros(len(corners), *space, dtype=torch.int64)
    for row, boxes in enumerate(zip(corners.tolist(), sides.tolist(), classes.tolist(), strict=True)):
        for corner, side, value in zip(*boxes, strict=True):
            if all(side):
                painted[(row, *(slice(a, a + n) for a, n in zip(corner, side, strict=True)))] = value
    return painted[:, None]


def _painted_by_masks(space: tuple[int, ...], corners: Tensor, sides: Tensor, classes: Tensor) -> Tensor:
    """Box by box for all images at once: nothing has to come to the host."""
    painted = torch.zeros(len(corners), *space, dtype=torch.int64, device=corners.device)
    for corner, side, value in zip(corners.unbind(1), sides.unbind(1), classes.unbind(1), strict=True):
        inside = torch.ones((), dtype=torch.bool, device=corners.device)
        for axis, length in enumerate(space):
            place = torch.arange(length, device=corners.device)
            first, behind = corner[:, axis, None], (corner + side)[:, axis, None]
            shape = [length if other == axis else 1 for other in range(len(space))]
            inside = inside & ((place >= first) & (place < behind)).reshape(-1, *shape)
        painted = torch.where(inside, value.reshape(-1, *[1] * len(space)), painted)
    return painted[:, None]


def fuse(
    foreground: Float[Tensor, "b c *space"],
    background: Float[Tensor, "b c *space"],
    classes: Int[Tensor, "b 1 *space"],
    levels: int,
) -> Float[Tensor, "b c *space"]:
    """``a * foreground + (1 - a) * background`` with ``a = class / levels``."""
    return torch.lerp(background, foreground, (classes / levels).to(background.dtype))


def fusion_losses(
    logits: Float[Tensor, "b k *space"], classes: Int[Tensor, "b 1 *space"], counted: Tensor
) -> dict[str, Tensor]:
    """Soft Dice over all classes of each image, and cross-entropy over all voxels, of all processes.

    Dice is ``1 - (2 sum(p g) + s) / (sum(p) + sum(g) + s)`` with s = 1e-5, as MONAI's ``DiceCELoss(softmax=True,
    to_onehot_y=True)``; class 0 is a class like the others.

    Args:
        logits: of the classes.
        classes: of the voxels.
        counted: (b, 1, \\*space) booleans, voxels that count.

    Returns:
        ``dice``, ``cross_entropy``; ``accuracy``, the share of voxels whose class is found; ``chance``, the
        cross-entropy of the frequencies of the classes, which a network reaches that sees nothing.
    """
    logits, axes = logits.float(), tuple(range(2, logits.ndim))
    truth = one_hot(classes[:, 0], logits.shape[1]).movedim(-1, 1) * counted
    guess = logits.softmax(1) * counted
    overlap, size = (guess * truth).sum(axes), guess.sum(axes) + truth.sum(axes)
    dice = 1 - (2 * overlap + SMOOTHING) / (size + SMOOTHING)
    entropy = cross_entropy(logits, classes[:, 0], reduction="none") * counted[:, 0]
    voxels = ranks.total(counted.sum().float()).clamp(min=1)
    share = ranks.total(truth.sum((0, *axes)).float()) / voxels
    found = (logits.argmax(1) == classes[:, 0]) & counted[:, 0]
    return {
        "dice": ranks.mean(dice.mean()),
        "cross_entropy": ranks.total(entropy.sum()) / voxels,
        "accuracy": ranks.total(found.sum().float()) / voxels,
        "chance": -(share * share.clamp(min=math.ulp(1.0)).log()).sum(),
    }
