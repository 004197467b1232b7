"""From scanner units to what a network sees: one window and one scale per image, chosen by modality."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Policy = Literal["auto", "ct", "foreground", "unit"]


@dataclass(frozen=True)
class Statistics:
    """What must be known of an image to scale it, from all its voxels.

    Attributes:
        low: 0.5th percentile of all voxels.
        high: 99.5th percentile of the foreground, the voxels above the mean of the image.
        mean, sd: of the foreground after clipping to [low, high].
        minimum, maximum: of all voxels.
    """

    low: float
    high: float
    mean: float
    sd: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class Scale:
    """``(clip(voxel, low, high) - shift) * factor``."""

    low: float
    high: float
    shift: float
    factor: float

    def __call__(self, voxels: np.ndarray) -> np.ndarray:
        """Scaled float32 voxels, any shape."""
        scaled = np.clip(voxels.astype(np.float32), np.float32(self.low), np.float32(self.high))
        scaled -= np.float32(self.shift)
        scaled *= np.float32(self.factor)
        return scaled


def statistics(array: np.ndarray) -> Statistics:
    """Measure an image (c, \\*space); above a million voxels the percentiles come from an even sample of them."""
    voxels = array.reshape(-1)
    sample = voxels[:: max(1, len(voxels) // 1_000_000)].astype(np.float64)
    foreground = sample[sample > sample.mean()]
    if not len(foreground):
        foreground = sample
    low, high = float(np.percentile(sample, 0.5)), float(np.percentile(foreground, 99.5))
    inside = np.clip(foreground, low, high)
    return Statistics(low, high, float(inside.mean()), float(inside.std()), float(voxels.min()), float(voxels.max()))


def scale_of(policy: Policy, modality: str, dtype: str, found: Statistics) -> Scale:
    """The scale of one image.

    Args:
        policy: ``ct``: HU are absolute, [-1000, 1000] to [0, 1] (Models Genesis, Swin UNETR). ``foreground``: clip to
            [low, high], then zero mean and unit variance over the foreground (MR and everything without absolute
            units). ``unit``: 8-bit images by 1/255, others from [low, high] to [0, 1]. ``auto``: CT gets ``ct``, 8-bit
            images ``unit``, the rest ``foreground``.
        modality: of the image.
        dtype: of the stored voxels.
        found: its statistics.
    """
    if policy == "auto":
        policy = "ct" if modality == "CT" else "unit" if dtype == "uint8" else "foreground"
    if policy == "ct":
        return Scale(-1000.0, 1000.0, -1000.0, 1 / 2000)
    if policy == "unit":
        low, high = (0.0, 255.0) if dtype == "uint8" else (found.low, found.high)
        return Scale(low, high, low, 1 / max(high - low, 1e-6))
    return Scale(found.low, found.high, found.mean, 1 / max(found.sd, 1e-6))
