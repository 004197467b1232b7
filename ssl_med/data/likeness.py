"""Images that look alike: a perceptual hash of 64 bits, and all pairs of hashes that differ in few of them."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

_SIDE = 32
"""Pixels along the side of a thumbnail."""

_SLAB = 8
"""One part in so many of an axis is averaged about its middle, so that a resampled copy shows the same plane."""

_BITS = {2: (64,), 3: (22, 21, 21)}
_POPCOUNT = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(1)

Pair = tuple[int, int, int]
"""Place of one image, place of the other, number of bits in which their hashes differ."""


def perceptual_hash(array: np.ndarray) -> int:
    """64 bits that stay nearly the same under noise, resizing, recompression, gain and offset.

    Each plane (a picture, or the middle of a volume along each axis) is averaged to 32 x 32 pixels; the signs of its
    lowest cosine frequencies against their median are the bits (after Zauner, Implementation and benchmarking of
    perceptual image hash functions, 2010). It does not recognise flips, rotations or crops.

    Args:
        array: a picture or a volume as it is stored, (c, \\*space), any plain type.

    Returns:
        A signed 64-bit integer; 0 for a constant image, which is like no other.
    """
    bits = np.concatenate([_plane_bits(plane, count) for plane, count in _planes(array)])
    return int(np.packbits(bits).view(">i8")[0])


def _planes(array: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    space = array.shape[1:]
    for axis, count in enumerate(_BITS[len(space)]):
        if len(space) == 2:
            yield array.mean(0, dtype=np.float64), count
            continue
        thick = max(1, space[axis] // _SLAB)
        first = (space[axis] - thick) // 2
        slab = np.take(array, range(first, first + thick), axis + 1)
        yield slab.mean((0, axis + 1), dtype=np.float64), count


def _plane_bits(plane: np.ndarray, count: int) -> np.ndarray:
    rows, columns = (_averaging(size) for size in plane.shape)
    thumbnail = rows @ plane @ columns.T
    if np.ptp(thumbnail) <= 1e-9 * np.abs(thumbnail).max():  # constant but for rounding
        return np.zeros(count, bool)
    cosines, (u, v) = _cosines(), _lowest(count)
    found = (cosines @ thumbnail @ cosines.T)[u, v]
    return found > np.median(found)


@lru_cache(maxsize=64)
def _averaging(size: int) -> np.ndarray:
    """(32, size): row i is the mean over the i-th of 32 equal parts of an axis, voxels on an edge by their share."""
    edges = np.linspace(0, size, _SIDE + 1)
    start, end = edges[:-1, None], edges[1:, None]
    voxel = np.arange(size)[None]
    return np.clip(np.minimum(end, voxel + 1) - np.maximum(start, voxel), 0, None) / (size / _SIDE)


@lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    """(frequency, place) of the DCT-II, up to one factor for all, which no comparison with a median sees."""
    places, frequencies = np.arange(_SIDE)[None], np.arange(_SIDE)[:, None]
    scale = np.where(frequencies == 0, np.sqrt(0.5), 1.0)
    return scale * np.cos(np.pi * (places + 0.5) * frequencies / _SIDE)


@lru_cache(maxsize=4)
def _lowest(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` lowest frequencies of a plane, without the constant one."""
    u, v = (axis.ravel() for axis in np.indices((16, 16)))
    order = np.lexsort((u, u * u + v * v))[1 : count + 1]
    return u[order], v[order]


def near_duplicates(
    hashes: Sequence[int] | np.ndarray,
    distance: int = 4,
    others: Sequence[int] | np.ndarray | None = None,
    most: int | None = None,
) -> list[Pair]:
    """All pairs of images whose hashes differ in few bits.

    The bits are cut into ``distance + 1`` bands: hashes that differ in no more bits agree in one band at least, so only
    images that share a band are compared. Copies with one and the same hash are listed with the first of them, not with
    each other. Hashes of 0 (no hash, or a constant image) are like nothing.

    Args:
        hashes: of all images.
        distance: most bits that may differ, 0 to 15.
        others: hashes of a second set, to list pairs across the sets instead of within the first.
        most: stop at so many pairs; None lists all.

    Returns:
        (place in ``hashes``, place in ``others`` or in ``hashes``, bits), sorted.
    """
    if not 0 <= distance <= 15:
        raise ValueError(f"distance is {distance}, expected 0 to 15: beyond it every image is like every other")
    left, left_places = _grouped(hashes)
    right, right_places = (left, left_places) if others is None else _grouped(others)
    pairs: list[Pair] = []
    for i, j, bits in _close(left, right, distance):
        if most is not None and len(pairs) >= most:
            break
        if others is not None:
            pairs += [(int(a), int(right_places[j][0]), bits) for a in left_places[i]]
            pairs += [(int(left_places[i][0]), int(b), bits) for b in right_places[j][1:]]
        elif i < j:
            first, second = sorted((int(left_places[i][0]), int(left_places[j][0])))
            pairs.append((first, second, bits))
        elif i == j:
            pairs += [(int(left_places[i][0]), int(copy), 0) for copy in left_places[i][1:]]
    return sorted(pairs)[:most]


def _grouped(hashes: Sequence[int] | np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Different hashes as unsigned numbers, and the places of each."""
    numbers = np.asarray(hashes, np.int64).view(np.uint64)
    order = np.argsort(numbers, kind="stable")
    different, starts = np.unique(numbers[order], return_index=True)
    places = np.split(order, starts[1:])
    return different[different != 0], [place for number, place in zip(different, places, strict=True) if number != 0]


def _close(left: np.ndarray, right: np.ndarray, distance: int) -> Iterator[Pair]:
    """Pairs of different hashes within the distance, each found once: in the first band in which the two agree."""
    edges = np.linspace(0, 64, distance + 2).astype(int)
    masks = [np.uint64((1 << int(end)) - (1 << int(start))) for start, end in pairwise(edges)]
    for band, mask in enumerate(masks):
        order = np.argsort(right & mask, kind="stable")
        keys = (right & mask)[order]
        starts, ends = (np.searchsorted(keys, left & mask, side) for side in ("left", "right"))
        for i in np.flatnonzero(ends > starts):
            members = order[starts[i] : ends[i]]
            differing = left[i] ^ right[members]
            bits = _POPCOUNT[differing.view(np.uint16).reshape(-1, 4)].sum(1)
            fresh = bits <= distance
            for earlier in masks[:band]:
                fresh &= (differing & earlier) != 0
            yield from ((int(i), int(members[n]), int(bits[n])) for n in np.flatnonzero(fresh))
