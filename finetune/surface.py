"""Distances between the surfaces of a predicted and a reference structure, in mm."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt


def surface_scores(
    guess: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """95th percentile of the Hausdorff distance in mm, and the surface Dice at a tolerance.

    A surface voxel is one of the structure with a neighbour outside (across a face; the border of the image counts as
    outside). HD95 is the larger of the two directed 95th percentiles, as MONAI's; the surface Dice (NSD, Nikolov et
    al., arXiv 1809.04430) is the share of both surfaces' voxels that lie within the tolerance of the other, as MONAI's
    without subvoxels. **Empty structures**: reference empty: both NaN, to be left out; only the prediction empty: NSD 0
    and the diagonal of the image for HD95, the worst there can be.

    Args:
        guess, truth: booleans of one shape.
        spacing: mm per voxel along each axis.
        tolerance: in mm.
    """
    if not truth.any():
        return float("nan"), float("nan")
    if not guess.any():
        return float(np.linalg.norm(np.array(truth.shape) * np.array(spacing))), 0.0
    guess, truth = _cropped(guess, truth)
    ours, theirs = _surface(guess), _surface(truth)
    there = np.asarray(distance_transform_edt(~theirs, sampling=spacing))[ours]
    back = np.asarray(distance_transform_edt(~ours, sampling=spacing))[theirs]
    distance = max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))
    near = int((there <= tolerance).sum() + (back <= tolerance).sum())
    return distance, near / (len(there) + len(back))


def _cropped(guess: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both inside the box around the two: far cheaper for small structures, and no distance changes."""
    places = np.nonzero(guess | truth)
    box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in places)
    return guess[box], truth[box]


def _surface(structure: np.ndarray) -> np.ndarray:
    return structure & ~binary_erosion(structure, border_value=0)
