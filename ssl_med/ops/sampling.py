"""Reading images at the places of an affine map: one pass over compiled loops on a CPU, ``grid_sample`` elsewhere."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from ssl_med.ops.streams import compiled_for


def sampling_grid(matrix: Float[Tensor, "b n m"], size: Sequence[int]) -> Float[Tensor, "b *size n"]:
    """Input coordinates of every output voxel, for ``grid_sample``.

    Unlike ``affine_grid`` it needs no matrix product, whose reduced precision on GPUs would move voxels.

    Args:
        matrix: (b, n, n + 1), output -> input; rows and columns in memory order, in coordinates where -1 and 1 are the
            outer faces of the first and last voxel.
        size: output voxels per axis.
    """
    count = len(size)
    places = [
        ((2 * torch.arange(length, device=matrix.device, dtype=matrix.dtype) + 1) / length - 1).reshape(
            [length if other == axis else 1 for other in range(count)]
        )
        for axis, length in enumerate(size)
    ]
    rows = []
    for row in matrix.reshape(len(matrix), count, count + 1, *[1] * count).unbind(1):
        total = row[:, count]
        for axis, place in enumerate(places):
            total = total + row[:, axis] * place
        rows.append(total)
    return torch.stack(rows[::-1], -1)  # grid_sample counts axes from the last


def read_affine(
    x: Shaped[Tensor, "b c *space"],
    matrix: Float[Tensor, "r n m"],
    size: Sequence[int],
    mode: str,
    fill: Float[Tensor, "b c"] | None = None,
) -> Shaped[Tensor, "r c *size"]:
    """Read every image at the places of :func:`sampling_grid`, once or several times.

    Integers below 2**24 survive ``nearest`` unchanged. There is no smoothing before a reduction.

    Args:
        x: images, masks (integers) or regions (booleans).
        matrix: (r, n, n + 1), see :func:`sampling_grid`; r is a multiple v of b, and rows of one image stand together.
        size: output voxels per axis.
        mode: ``bilinear`` (trilinear for volumes) or ``nearest``.
        fill: what lies outside of each image and channel; by default the border voxels go on.

    Returns:
        (r, c, \\*size), row by row as in ``matrix``.
    """
    image, matrix = x.float(), matrix.float()
    if compiled_for(image) and not image.requires_grad:
        return _compiled(image, matrix, size, mode == "nearest", fill).to(x.dtype)
    grid = sampling_grid(matrix, size)
    grid = grid.reshape(len(x), -1, *size[1:], len(size))  # the rows of an image as one tall picture: no copy of x
    if fill is None:
        found = functional.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=False)
    else:
        level = fill.float().reshape(*fill.shape, *[1] * len(size))
        found = functional.grid_sample(image - level, grid, mode=mode, align_corners=False) + level
    found = found.reshape(*found.shape[:2], -1, *size).transpose(1, 2)
    return found.flatten(0, 1).to(x.dtype)


def _compiled(image: Tensor, matrix: Tensor, size: Sequence[int], nearest: bool, fill: Tensor | None) -> Tensor:
    from ssl_med.ops.sampling_kernels import read

    count = len(size)
    full = (1,) * (3 - count)
    images = image.detach().contiguous().reshape(*image.shape[:2], *full, *image.shape[2:]).numpy()
    matrices, offsets = _in_voxels(matrix, image.shape[2:], size)
    owners = np.repeat(np.arange(len(images)), len(matrices) // max(len(images), 1))
    fills = np.zeros(images.shape[:2], np.float32) if fill is None else fill.float().contiguous().numpy()
    out = torch.empty(len(matrices), image.shape[1], *full, *size)
    read(images, owners, matrices, offsets, nearest, fill is None, fills, out.numpy())
    return out.reshape(*out.shape[:2], *size)


def _in_voxels(matrix: Tensor, space: Sequence[int], size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Matrices (r, 3, 3) and offsets (r, 3) between voxel numbers, float64; pictures get a first axis that stays."""
    count, between = len(size), matrix.double().numpy()
    old, new = np.asarray(space, np.float64), np.asarray(size, np.float64)
    turn, shift = between[:, :, :count], between[:, :, count]
    matrices, offsets = np.tile(np.eye(3), (len(matrix), 1, 1)), np.zeros((len(matrix), 3))
    matrices[:, 3 - count :, 3 - count :] = turn * old[:, None] / new
    offsets[:, 3 - count :] = ((turn * (1 / new - 1)).sum(2) + shift + 1) * old / 2 - 0.5
    return matrices, offsets
