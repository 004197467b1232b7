"""Voxels worth cropping around, found once in prepare: labelled ones, and tissue where nothing is labelled."""

import numpy as np

_SAMPLE = 1_000_000


def spread(found: np.ndarray, most: int) -> np.ndarray:
    """Up to ``most`` entries, evenly spread over their order."""
    return found[np.linspace(0, len(found) - 1, min(most, len(found))).astype(np.int64)]


def mask_values(mask: np.ndarray) -> list[int]:
    """The labels that occur; integers of 16 bit are counted instead of sorted."""
    flat = mask.reshape(-1)
    if flat.dtype.itemsize > 2:
        return [int(value) for value in np.unique(flat)]
    seen, low = np.zeros(1 << 16, bool), -(1 << 15) if flat.dtype.kind == "i" else 0
    for first in range(0, len(flat), 1 << 22):
        seen[flat[first : first + (1 << 22)].astype(np.int64) - low] = True
    return [int(value) for value in np.flatnonzero(seen) + low]


def labelled_points(mask: np.ndarray, most: int = 256) -> np.ndarray:
    """Flat indices of up to ``most`` evenly spread voxels of each class above 0, class by class.

    Args:
        mask: (1, \\*space), integers.
        most: per class.
    """
    flat = mask.reshape(-1)
    inside = np.flatnonzero(flat > 0)
    labels = flat[inside]
    order = np.argsort(labels, kind="stable")
    groups = np.split(inside[order], np.flatnonzero(np.diff(labels[order])) + 1)
    return np.concatenate([spread(group, most) for group in groups]) if len(inside) else inside


def tissue_points(array: np.ndarray, low: float, high: float, most: int = 256) -> np.ndarray:
    """Flat indices over space of up to ``most`` evenly spread voxels above Otsu's threshold of the clipped image.

    Args:
        array: (c, \\*space); channels are averaged.
        low, high: where to clip, so that a few bright voxels do not move the threshold.
        most: how many.
    """
    step = max(1, array[0].size // _SAMPLE) | 1  # odd: an even step would stay in the same columns
    sample = array.reshape(len(array), -1)[:, ::step].mean(0, dtype=np.float64).clip(low, high)
    return spread(np.flatnonzero(sample > otsu(sample)), most) * step


def otsu(values: np.ndarray, bins: int = 256) -> float:
    """The threshold that parts two classes with the largest variance between them (Otsu, IEEE Trans. SMC 9, 1979)."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    between = np.zeros(bins)
    some = (below > 0) & (above > 0)
    gap = sums[some] / below[some] - (sums[-1] - sums[some]) / above[some]
    between[some] = below[some] * above[some] * gap**2
    return float(edges[np.argmax(between) + 1])
