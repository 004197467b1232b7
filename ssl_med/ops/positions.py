"""Positions of patches: fixed sine-cosine vectors, and rotary angles, for any number of axes."""

import torch
from jaxtyping import Float
from torch import Tensor


def sincos(centres: Float[Tensor, "*b n axes"], width: int, temperature: float = 10000.0) -> Float[Tensor, "*b n d"]:
    """Fixed sine-cosine vectors, one band of the width per axis (MAE, arXiv 2111.06377; ViT appendix D.4).

    Each axis gets ``2 * (width // (2 * axes))`` numbers, sines then cosines with frequencies ``temperature ** (-i/m)``;
    what is left of the width is zero. Axes come in memory order (the MAE code puts the last axis first).

    Args:
        centres: patch coordinates, in patches, or in any other unit, such as mm over a reference length.
        width: length of the vectors, at least twice the number of axes.
        temperature: the longest wave is about 2 pi times this.

    Raises:
        ValueError: the width has no room for one sine and cosine per axis.
    """
    axes = centres.shape[-1]
    half = width // (2 * axes)
    if half == 0:
        raise ValueError(f"positions of {axes} axes need a width of at least {2 * axes}, got {width}")
    rate = temperature ** (-torch.arange(half, device=centres.device, dtype=torch.float64) / half)
    angle = centres.to(torch.float64)[..., None] * rate  # (*b, n, axes, half)
    bands = torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)
    return torch.nn.functional.pad(bands, (0, width - bands.shape[-1])).float()


def rotary_angles(
    centres: Float[Tensor, "*b n axes"], head_width: int, temperature: float = 100.0
) -> Float[Tensor, "*b n h"]:
    """Angles of axial rotary positions (RoPE, arXiv 2104.09864; axial form as in DINOv3, arXiv 2508.10104).

    Each axis turns ``head_width // (2 * axes)`` pairs of channels; the remaining pairs do not turn.
    """
    axes, pairs = centres.shape[-1], head_width // 2
    per_axis = pairs // axes
    if per_axis == 0:
        raise ValueError(
            f"rotary positions of {axes} axes need heads of at least {2 * axes} channels, got {head_width}"
        )
    rate = temperature ** (-torch.arange(per_axis, device=centres.device, dtype=torch.float32) / per_axis)
    angles = (centres[..., None] * rate).flatten(-2)
    return torch.nn.functional.pad(angles, (0, pairs - angles.shape[-1]))


def rotate(x: Float[Tensor, "b heads n e"], angles: Float[Tensor, "#b n h"]) -> Float[Tensor, "b heads n e"]:
    """Turn the channel pairs (i, i + e/2) of queries or keys by their angles; relative offsets survive in products."""
    cos, sin = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
