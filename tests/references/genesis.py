"""The corruptions of Models Genesis as a plain loop: the published law in NumPy, written from its description.

A cube is (c, z, y, x) in [0, 1]; the original's rows, columns and slices are y, x and z here. Ten thousand
windows in a Python loop, a curve of 100,000 points: the yardstick of tests and of ``benchmarks/corruption.py``.
"""

import numpy as np

FLIP, SHUFFLE, CURVE, PAINT, INWARD, AGAIN = 0.4, 0.5, 0.9, 0.9, 0.2, 0.95
WINDOWS, POINTS, MARGIN = 10_000, 100_000, 3


def flip(cube: np.ndarray, generator: np.random.Generator, faithful: bool = False) -> np.ndarray:
    for _ in range(3):
        if generator.random() >= FLIP:
            break
        axis = generator.choice([0, cube.ndim - 2, cube.ndim - 1] if faithful else np.arange(1, cube.ndim))
        if axis:
            cube = np.flip(cube, axis)
    return cube


def local_shuffle(cube: np.ndarray, generator: np.random.Generator, windows: int = WINDOWS) -> np.ndarray:
    out, space = cube.copy(), np.array(cube.shape[1:])
    sides = generator.integers(1, np.maximum(space // 10, 1) + 1, (windows, len(space)))
    corners = generator.integers(0, space - sides + 1)
    for corner, end in zip(corners.tolist(), (corners + sides).tolist(), strict=True):
        box = (slice(None), *map(slice, corner, end))
        window = cube[box]
        flat = window.reshape(len(cube), -1)
        out[box] = flat[:, generator.permutation(flat.shape[1])].reshape(window.shape)
    return out


def bezier(points: np.ndarray, falling: bool, count: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Places and values of the curve through (0, 0), two points, (1, 1); to fall, only the places are sorted."""
    controls = np.array([[0.0, 0.0], *points, [1.0, 1.0]])
    t = np.linspace(1.0, 0.0, count)
    weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    x, y = controls.T @ weights
    return np.sort(x), y if falling else np.sort(y)


def intensity_curve(cube: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    x, y = bezier(generator.random((2, 2)), generator.random() < 0.5)
    return np.interp(cube, x, y)


def box(space: tuple[int, ...], inward: bool, generator: np.random.Generator) -> tuple[slice, ...]:
    slices = [slice(None)]
    for size in space:
        if inward:
            side = generator.integers(size // 6, size // 3 + 1)
        else:
            side = size - generator.integers(3 * size // 7, 4 * size // 7 + 1)
        first = generator.integers(MARGIN, size - side - MARGIN + 1)
        slices.append(slice(first, first + side))
    return tuple(slices)


def in_painting(cube: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    out = cube.copy()
    for _ in range(5):
        if generator.random() >= AGAIN:
            break
        where = box(cube.shape[1:], True, generator)
        out[where] = generator.random(out[where].shape[1:])
    return out


def out_painting(cube: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    out = np.broadcast_to(generator.random(cube.shape[1:]), cube.shape).copy()
    for number in range(5):
        if number and generator.random() >= AGAIN:
            break
        where = box(cube.shape[1:], False, generator)
        out[where] = cube[where]
    return out


def pair(cube: np.ndarray, generator: np.random.Generator, faithful: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Corrupted cube and target."""
    target = flip(cube, generator, faithful)
    corrupted = target
    if generator.random() < SHUFFLE:
        corrupted = local_shuffle(corrupted, generator)
    if generator.random() < CURVE:
        corrupted = intensity_curve(corrupted, generator)
    if generator.random() < PAINT:
        paint = in_painting if generator.random() < INWARD else out_painting
        corrupted = paint(corrupted, generator)
    return np.ascontiguousarray(corrupted), np.ascontiguousarray(target)
