"""Turns by multiples of 90 degrees that are different for every image of a batch."""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


def turn_images(
    x: Shaped[Tensor, "b c *space"], turns: Int[Tensor, " b"], plane: tuple[int, int]
) -> Shaped[Tensor, "b c *space"]:
    """Every image turned as ``torch.rot90`` would, without interpolation.

    Args:
        x: images; where a turn is odd, both axes of the plane must have equally many voxels.
        turns: quarter turns of each image, 0 to 3.
        plane: two spatial axes, 0 = the first; a positive turn goes from the first to the second.
    """
    first, second = 2 + plane[0], 2 + plane[1]
    turns = turns.reshape(-1, *[1] * (x.ndim - 1))
    if x.shape[first] == x.shape[second]:
        x = torch.where(turns % 2 == 1, x.transpose(first, second), x)
    x = torch.where((turns == 1) | (turns == 2), x.flip(first), x)
    return torch.where((turns == 2) | (turns == 3), x.flip(second), x)


def turning_plane(space: tuple[int, ...]) -> tuple[int, int]:
    """The last two axes, or the last pair with equally many voxels if those have not, or the last two if none has.

    Example:
        (32, 96, 96) gives (1, 2); (8, 8, 12) gives (0, 1); (16, 24) gives (0, 1).
    """
    axes = len(space)
    pairs = [(a, b) for b in range(axes - 1, 0, -1) for a in range(b - 1, -1, -1)]
    return next((pair for pair in pairs if space[pair[0]] == space[pair[1]]), pairs[0])
