"""Patches and their positions, one number at a time."""

from itertools import product

import numpy as np


def patchify(image: np.ndarray, patch: tuple[int, ...]) -> np.ndarray:
    """(b, c, *space) -> (b, n, voxels * c): patches, then their voxels, in raster order, channels last."""
    grid = [size // p for size, p in zip(image.shape[2:], patch, strict=True)]
    batch = []
    for sample in image:
        tokens = []
        for cell in product(*[range(g) for g in grid]):
            numbers = []
            for inside in product(*[range(p) for p in patch]):
                voxel = tuple(c * p + i for c, p, i in zip(cell, patch, inside, strict=True))
                numbers += [channel[voxel] for channel in sample]
            tokens.append(numbers)
        batch.append(tokens)
    return np.array(batch)


def sincos(grid: tuple[int, ...], width: int, temperature: float = 10000.0) -> np.ndarray:
    """(n, width): for each axis first the sines, then the cosines, of position * temperature ** (-i / m)."""
    waves, rows = width // (2 * len(grid)), []
    for cell in product(*[range(g) for g in grid]):
        row = []
        for position in cell:
            row += [np.sin(position / temperature ** (i / waves)) for i in range(waves)]
            row += [np.cos(position / temperature ** (i / waves)) for i in range(waves)]
        rows.append(row + [0.0] * (width - len(row)))
    return np.array(rows)
