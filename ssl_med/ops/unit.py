"""From the values of an image to [0, 1] and back: what bends or replaces grey values must know their range."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ssl_med.errors import UserError

UnitRange = Literal["auto", "percentiles"] | tuple[float, float]
"""``auto``: an image (one channel) that lies in [0, 1] already is taken as it is, any other from its 0.5th to its
99.5th percentile; ``percentiles``: always so; ``(low, high)``: these values for every image."""

PERCENTILES = (0.5, 99.5)
SAMPLE = 4096
"""Voxels per channel that the percentiles are read from: 20 lie outside at either end."""


def check_unit(name: str, unit: UnitRange) -> None:
    """Refuse what is not a :data:`UnitRange`.

    Raises:
        UserError: names the setting and what it may be.
    """
    fixed = not isinstance(unit, str) and len(unit) == 2 and unit[0] < unit[1]
    if not fixed and unit not in ("auto", "percentiles"):
        raise UserError(f"{name} must be auto, percentiles or (low, high) with low < high, got {unit}")


def value_range(
    image: Float[Tensor, "b c *space"], unit: UnitRange, valid: Bool[Tensor, "b 1 *space"] | None = None
) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"]]:
    """What is mapped to 0, and the span that is mapped to 1, for each channel of each image; the span is positive.

    Args:
        image: in any unit.
        unit: how the range is found.
        valid: voxels that count; all by default.
    """
    if not isinstance(unit, str):
        low, high = (torch.full(image.shape[:2], value, device=image.device) for value in unit)
        return low, high - low
    values = image.flatten(2).float()
    low, high = _percentiles(values, valid)
    if unit == "auto":
        inside = (values.amin(2) >= 0) & (values.amax(2) <= 1)
        low, high = torch.where(inside, 0.0, low), torch.where(inside, 1.0, high)
    return low, torch.where(high - low > 1e-6, high - low, 1.0)


def to_unit(
    image: Float[Tensor, "b c *space"], low: Float[Tensor, "b c"], span: Float[Tensor, "b c"]
) -> Float[Tensor, "b c *space"]:
    """Values in [0, 1]; what lies outside the range is clamped."""
    low, span = (part.reshape(*part.shape, *[1] * (image.ndim - 2)) for part in (low, span))
    return ((image.float() - low) / span).clamp(0.0, 1.0)


def from_unit(
    image: Float[Tensor, "b c *space"], low: Float[Tensor, "b c"], span: Float[Tensor, "b c"]
) -> Float[Tensor, "b c *space"]:
    """Values of the image again: the inverse of :func:`to_unit` inside the range."""
    low, span = (part.reshape(*part.shape, *[1] * (image.ndim - 2)) for part in (low, span))
    return low + span * image


def _percentiles(values: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both percentiles over an even sample of the voxels that count, (b, c) each; 0 where none does."""
    size = values.shape[2]
    step = round(size * 0.6180339887)  # the golden ratio: a sample without the rhythm of the axes
    while math.gcd(step, size) > 1:
        step += 1
    chosen = torch.arange(min(SAMPLE, size), device=values.device) * step % size
    sample = values[:, :, chosen]
    counted = torch.ones_like(sample, dtype=torch.bool)
    if valid is not None:
        counted = valid.flatten(2)[:, :, chosen].expand_as(sample)
    ordered = torch.where(counted, sample, math.inf).sort(2).values
    last = (counted.sum(2, keepdim=True) - 1).clamp(min=0)
    low, high = (ordered.gather(2, (last * (share / 100)).round().long())[..., 0] for share in PERCENTILES)
    found = counted.any(2)
    return torch.where(found, low, 0.0), torch.where(found, high, 0.0)
