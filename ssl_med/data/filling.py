"""Stored voxels into a sample's buffer: scaled, and turned where the region says so; compiled, or in torch."""

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssl_med.data.crops import Region
from ssl_med.data.intensity import Scale, Windows, logistic

_KINDS = ("uint8", "int16", "uint16", "int32", "float32")
"""Number types the kernels are compiled for; others are converted."""


def fill_image(out: np.ndarray, voxels: np.ndarray, region: Region, scale: Scale | Windows) -> np.ndarray | None:
    """Write what was read of an image into a sample.

    Args:
        out: (k, \\*size) float32, written everywhere; outside the image it gets the scale's background.
        voxels: (c, \\*read).
        region: where they lie in the sample.
        scale: of the intensities, k channels for c.

    Returns:
        (1, \\*size), True where the sample shows the image; None where it does so everywhere.
    """
    valid = None
    if region.matrix is not None:
        valid = np.empty((1, *region.size), bool)
        turn_linear(voxels, region, table(scale, len(voxels)), out, valid)
        _bend(out, scale)
        return valid
    if region.padded:
        out[...] = scale.background
        valid = np.zeros((1, *region.size), bool)
        valid[(slice(None), *map(slice, region.read))] = True
    part = out[(slice(None), *map(slice, region.read))]
    if compiled():
        _kernels().scaled(_volume(voxels), table(scale, len(voxels)), _lifted(part))
        _bend(part, scale)
    else:
        part[...] = scale(voxels)
    return valid


def _bend(out: np.ndarray, scale: Scale | Windows) -> None:
    """The last step of the channels whose scale is not straight, in place; the kernels know straight ones only."""
    for number, channel in enumerate(out):
        if scale.parts[number % len(scale.parts)].sigmoid:
            logistic(channel)


def fill_labels(voxels: np.ndarray, region: Region) -> np.ndarray:
    """What was read of a mask, (1, \\*read), as a sample (1, \\*size) int64; -1 outside the image."""
    out = np.full((1, *region.size), -1, np.int64)
    if region.matrix is None:
        out[(slice(None), *map(slice, region.read))] = voxels
    elif compiled():
        _kernels().turned_nearest(_volume(voxels), *_map(region), -1, _lifted(out))
    else:
        out[...] = nearest_in_torch(torch.from_numpy(_volume(voxels).astype(np.int64)), *_map(region), out).numpy()
    return out


def turn_linear(voxels: np.ndarray, region: Region, scales: np.ndarray, out: np.ndarray, valid: np.ndarray) -> None:
    """Fill ``out`` and ``valid`` of a turned region; see :func:`ssl_med.data.kernels.turned_linear`."""
    matrix, offset = _map(region)
    if compiled():
        _kernels().turned_linear(_volume(voxels), matrix, offset, scales, _lifted(out), _lifted(valid))
        return
    source = torch.from_numpy(_volume(voxels).astype(np.float32))
    image, inside = linear_in_torch(source, matrix, offset, scales, _lifted(out).shape[1:])
    _lifted(out)[...], _lifted(valid)[...] = image.numpy(), inside.numpy()


def linear_in_torch(
    source: Tensor, matrix: np.ndarray, offset: np.ndarray, scales: np.ndarray, size: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The numbers of :func:`ssl_med.data.kernels.turned_linear` by ``grid_sample``, on the device of ``source``.

    Args:
        source: (c, z, y, x) float.
        matrix, offset, scales: as there.
        size: (z, y, x) of the crop.

    Returns:
        (k, \\*size) float32, and (1, \\*size) bool: where it shows the source.
    """
    grid, inside = _grid(source, matrix, offset, size)
    found = functional.grid_sample(source[None].to(grid.dtype), grid, padding_mode="border", align_corners=True)[0]
    channel, low, high, shift, factor, outside = (
        torch.as_tensor(column, device=source.device, dtype=grid.dtype)[:, None, None, None] for column in scales.T
    )
    seen = (found[channel.long().flatten()].clamp(low, high) - shift) * factor
    return torch.where(inside, seen, outside).float(), inside


def nearest_in_torch(source: Tensor, matrix: np.ndarray, offset: np.ndarray, out: np.ndarray) -> Tensor:
    """The numbers of :func:`ssl_med.data.kernels.turned_nearest`, -1 outside; in the shape of ``out``."""
    grid, inside = _grid(source, matrix, offset, _lifted(out).shape[1:])
    last = torch.tensor(source.shape[1:], device=source.device)[[2, 1, 0]] - 1
    z, y, x = (
        ((grid[0] + 1) / 2 * last + 0.5).floor().long().clamp(min=torch.zeros_like(last), max=last).unbind(-1)[::-1]
    )
    return torch.where(inside, source[:, z, y, x], -1).reshape(out.shape)


def _grid(source: Tensor, matrix: np.ndarray, offset: np.ndarray, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Coordinates for ``grid_sample`` in double precision (1, \\*size, 3), and which lie in the source (1, \\*size)."""
    kind: Any = {"device": source.device, "dtype": torch.float64}
    steps = torch.meshgrid(*[torch.arange(length, **kind) for length in size], indexing="ij")
    rows = zip(torch.as_tensor(matrix, **kind), torch.as_tensor(offset, **kind), strict=True)
    places = torch.stack([sum((a * b for a, b in zip(row, steps, strict=True)), first) for row, first in rows], -1)
    last = torch.tensor(source.shape[1:], **kind) - 1
    inside = ((places >= -1e-6) & (places <= last + 1e-6)).all(-1)
    return (2 * places / last.clamp_min(1) - 1).flip(-1)[None], inside[None]


def table(scale: Scale | Windows, channels: int) -> np.ndarray:
    """A scale as the kernels take it, (k, 6) float32: channel, low, high, shift, factor, background."""
    parts = [(part.low, part.high, part.shift, part.factor, part.straight_background) for part in scale.parts]
    return np.array([(channel, *part) for channel in range(channels) for part in parts], np.float32)


@cache
def compiled() -> bool:
    """Numba is installed."""
    return find_spec("numba") is not None


def _kernels() -> Any:
    from ssl_med.data import kernels  # numba takes a moment to load: only where it is used

    return kernels


def _lifted(array: np.ndarray) -> np.ndarray:
    """(c, y, x) as (c, 1, y, x)."""
    return array[:, None] if array.ndim == 3 else array


def _volume(voxels: np.ndarray) -> np.ndarray:
    known = voxels if voxels.dtype.name in _KINDS else voxels.astype(np.float32)
    return np.ascontiguousarray(_lifted(known))


def _map(region: Region) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset in three axes."""
    axes = len(region.size)
    matrix, offset = np.eye(3), np.zeros(3)
    matrix[3 - axes :, 3 - axes :], offset[3 - axes :] = region.matrix, region.offset
    return matrix, offset
