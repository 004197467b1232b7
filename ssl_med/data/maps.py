"""Saliency maps that ``prepare`` makes once: of the whole image, as bytes, stored and cut beside it like a mask."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from ssl_med.data.intensity import Scale

Measure = Literal["fine_grained", "spectral_residual", "gradient", "entropy", "foreground"]
MEASURES = ("fine_grained", "spectral_residual", "gradient", "entropy", "foreground")
"""What a map may say; with the default settings of the providers of these names in :mod:`ssl_med.tasks.saliency`."""

FLAT = "saliency map is constant"
"""The warning of an image in which nothing stands out."""

STORED = Scale(0.0, 255.0, 0.0, 1 / 255)
"""From stored bytes to 0..1; what lies outside the image is 0."""

_MOST = 1 << 24
"""Voxels up to which a map is measured as the image is; a larger image (256^3) is reduced first: memory is bounded."""


def saliency_map(array: np.ndarray, measure: Measure, low: float, high: float) -> np.ndarray:
    """The map of an image, (1, \\*space) uint8: 0 to 255 for 0 to 1.

    Args:
        array: (c, \\*space).
        measure: one of :data:`MEASURES`.
        low, high: values between which the image is clipped before, so that a bright speck of metal does not hide the
            rest; usually its percentiles, as for training.
    """
    import torch
    from torch.nn import functional

    image = torch.from_numpy(np.clip(array.astype(np.float32), low, high))[None]
    space = tuple(image.shape[2:])
    factor = next(n for n in range(1, 1 << 10) if image[0, 0].numel() <= _MOST * n ** len(space))
    linear = "bilinear" if len(space) == 2 else "trilinear"
    with torch.no_grad():
        if factor > 1:
            image = functional.interpolate(image, [-(-length // factor) for length in space], mode="area")
        found = _measures()[measure](image).clamp(0, 1)
        if factor > 1:
            found = functional.interpolate(found, space, mode=linear, align_corners=False)
        return (found[0] * 255).round().to(torch.uint8).numpy()


def is_flat(found: np.ndarray) -> bool:
    """The map says nothing."""
    return bool(found.min() == found.max())


def _measures() -> dict[str, Callable]:
    from ssl_med.ops import saliency

    return {
        "fine_grained": lambda image: saliency.fine_grained(saliency.as_bytes(image)),
        "spectral_residual": lambda image: saliency.spectral_residual(saliency.grey(image)),
        "gradient": lambda image: saliency.gradient_magnitude(saliency.grey(image), 1.0),
        "entropy": lambda image: saliency.local_entropy(saliency.as_bytes(image), 9, 16),
        "foreground": lambda image: saliency.foreground(saliency.as_bytes(image)),
    }
