"""Images as sequences of patches, for any number of axes and patches of any shape."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def grid_of(space: tuple[int, ...], patch: tuple[int, ...]) -> tuple[int, ...]:
    """Patches along each axis.

    Raises:
        ValueError: the image is not divisible by the patch; the message names the axis.
    """
    if len(space) != len(patch):
        raise ValueError(f"image with axes {tuple(space)} cannot be cut into patches {tuple(patch)}: ranks differ")
    for axis, (size, p) in enumerate(zip(space, patch, strict=True)):
        if size % p:
            raise ValueError(f"image {tuple(space)} is not divisible by patch {tuple(patch)} along axis {axis}")
    return tuple(size // p for size, p in zip(space, patch, strict=True))


def _pattern(axes: int) -> tuple[str, str]:
    grid, inner = [f"g{i}" for i in range(axes)], [f"p{i}" for i in range(axes)]
    image = "b c " + " ".join(f"({g} {p})" for g, p in zip(grid, inner, strict=True))
    return image, f"b ({' '.join(grid)}) ({' '.join(inner)} c)"


def patchify(image: Float[Tensor, "b c *space"], patch: tuple[int, ...]) -> Float[Tensor, "b n p"]:
    """Cut into patches: tokens in raster order, voxels of a patch in raster order with channels last (MAE's order).

    Example:
        a (1, 1, 4, 6) image with patch (2, 3) gives (1, 4, 6).
    """
    grid_of(tuple(image.shape[2:]), patch)
    image_side, token_side = _pattern(len(patch))
    return rearrange(image, f"{image_side} -> {token_side}", **{f"p{i}": p for i, p in enumerate(patch)})


def unpatchify(
    tokens: Float[Tensor, "b n p"], patch: tuple[int, ...], grid: tuple[int, ...]
) -> Float[Tensor, "b c *space"]:
    """The inverse of :func:`patchify`.

    Raises:
        ValueError: the number of tokens is not that of the grid.
    """
    if tokens.shape[1] != math.prod(grid):
        raise ValueError(f"{tokens.shape[1]} tokens do not fill the grid {tuple(grid)}")
    image_side, token_side = _pattern(len(patch))
    sizes = {f"p{i}": p for i, p in enumerate(patch)} | {f"g{i}": g for i, g in enumerate(grid)}
    return rearrange(tokens, f"{token_side} -> {image_side}", **sizes)


def take(tokens: Float[Tensor, "b n d"], index: Tensor) -> Float[Tensor, "b v d"]:
    """Rows ``index`` (b, v) of each sample."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def patch_centres(grid: tuple[int, ...], device: torch.device | None = None) -> Float[Tensor, "n axes"]:
    """Index of each patch along each axis, tokens in raster order."""
    axes = [torch.arange(g, device=device, dtype=torch.float32) for g in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(grid))
