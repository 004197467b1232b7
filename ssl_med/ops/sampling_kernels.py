"""Compiled CPU loops (numba) that read images at the places of an affine map; :mod:`ssl_med.ops.sampling` says when.

The run of each line that lies inside the image is solved beforehand, so that its loop has no test for the border.
Import this module only where it is used: numba takes a moment to load.
"""

import math
from typing import no_type_check

import numpy as np

from ssl_med.compiled import compiled

EDGE = 1e-6
"""Voxels by which rounding may carry a coordinate over the border."""


@compiled(nogil=True)
@no_type_check
def inside(start, matrix, shape, count, margin):
    """First and one past the last of ``count`` steps along the last axis that stay in [0, n - 1] on all three axes.

    The interval is wider by ``margin`` voxels on both sides: :data:`EDGE` for exactly the image.
    """
    low, high = 0.0, count - 1.0
    for axis in range(3):
        step, top = matrix[axis, 2], shape[axis] - 1.0 + margin
        if abs(step) < 1e-12:
            if start[axis] < -margin or start[axis] > top:
                return 0, 0
            continue
        enter, leave = (-margin - start[axis]) / step, (top - start[axis]) / step
        low, high = max(low, min(enter, leave)), min(high, max(enter, leave))
    first, last = math.ceil(low), math.floor(high)
    if last < first:
        return 0, 0
    return int(first), int(last) + 1


@compiled(nogil=True)
@no_type_check
def pair(size):
    """The last voxel of an axis that has one behind it, and the step to that one; (0, 0) for a single voxel."""
    return np.uint32(max(size - 2, 0)), np.uint32(min(size - 1, 1))


@compiled(nogil=True, fastmath={"contract", "reassoc", "arcp", "nsz"}, error_model="numpy")
@no_type_check
def _line_3d(volume, start, matrix, first, last, line):
    """Trilinear interpolation between the steps first and last, all inside."""
    last_z, next_z = pair(volume.shape[0])
    last_y, next_y = pair(volume.shape[1])
    last_x, next_x = pair(volume.shape[2])
    start_z, start_y, start_x = start[0], start[1], start[2]
    step_z, step_y, step_x = matrix[0, 2], matrix[1, 2], matrix[2, 2]
    for k in range(first, last):
        z, y, x = start_z + step_z * k, start_y + step_y * k, start_x + step_x * k
        i, j, m = min(np.uint32(z), last_z), min(np.uint32(y), last_y), min(np.uint32(x), last_x)
        fz, fy, fx = np.float32(z - i), np.float32(y - j), np.float32(x - m)
        q, r, s = i + next_z, j + next_y, m + next_x
        a00, a01, a10, a11 = volume[i, j, m], volume[i, j, s], volume[i, r, m], volume[i, r, s]
        b00, b01, b10, b11 = volume[q, j, m], volume[q, j, s], volume[q, r, m], volume[q, r, s]
        a0, a1 = a00 + (a01 - a00) * fx, a10 + (a11 - a10) * fx
        b0, b1 = b00 + (b01 - b00) * fx, b10 + (b11 - b10) * fx
        a, b = a0 + (a1 - a0) * fy, b0 + (b1 - b0) * fy
        line[k] = a + (b - a) * fz


@compiled(nogil=True, fastmath={"contract", "reassoc", "arcp", "nsz"}, error_model="numpy")
@no_type_check
def _line_2d(image, start, matrix, first, last, line):
    """Bilinear interpolation between the steps first and last, all inside."""
    last_y, next_y = pair(image.shape[0])
    last_x, next_x = pair(image.shape[1])
    start_y, start_x, step_y, step_x = start[1], start[2], matrix[1, 2], matrix[2, 2]
    for k in range(first, last):
        y, x = start_y + step_y * k, start_x + step_x * k
        j, m = min(np.uint32(y), last_y), min(np.uint32(x), last_x)
        fy, fx = np.float32(y - j), np.float32(x - m)
        r, s = j + next_y, m + next_x
        a = image[j, m] + (image[j, s] - image[j, m]) * fx
        b = image[r, m] + (image[r, s] - image[r, m]) * fx
        line[k] = a + (b - a) * fy


@compiled(nogil=True)
@no_type_check
def _voxel(volume, z, y, x, fill):
    """One voxel, ``fill`` outside the volume."""
    if 0 <= z < volume.shape[0] and 0 <= y < volume.shape[1] and 0 <= x < volume.shape[2]:
        return volume[z, y, x]
    return fill


@compiled(nogil=True)
@no_type_check
def _edge_line(volume, start, matrix, first, last, border, fill, line):
    """Interpolate where neighbours may lie outside: of the clamped place, or with ``fill`` around the image."""
    deep, high, wide = volume.shape
    for k in range(first, last):
        z, y, x = start[0] + matrix[0, 2] * k, start[1] + matrix[1, 2] * k, start[2] + matrix[2, 2] * k
        if border:
            z, y, x = min(max(z, 0.0), deep - 1.0), min(max(y, 0.0), high - 1.0), min(max(x, 0.0), wide - 1.0)
        i, j, m = math.floor(z), math.floor(y), math.floor(x)
        fz, fy, fx = z - i, y - j, x - m
        value = 0.0
        for q, share in ((i, 1 - fz), (i + 1, fz)):
            for r, part in ((j, (1 - fy) * share), (j + 1, fy * share)):
                if part:
                    near, far = _voxel(volume, q, r, m, fill), _voxel(volume, q, r, m + 1, fill)
                    value += part * (near + (far - near) * fx)
        line[k] = np.float32(value)


@compiled(nogil=True)
@no_type_check
def _nearest_line(volume, start, matrix, border, fill, line):
    """The nearest voxels of one line; halves go to the even voxel."""
    deep, high, wide = volume.shape
    for k in range(len(line)):
        z = np.rint(start[0] + matrix[0, 2] * k)
        y = np.rint(start[1] + matrix[1, 2] * k)
        x = np.rint(start[2] + matrix[2, 2] * k)
        if border:
            z, y, x = min(max(z, 0.0), deep - 1.0), min(max(y, 0.0), high - 1.0), min(max(x, 0.0), wide - 1.0)
        line[k] = _voxel(volume, int(z), int(y), int(x), fill)


@compiled(nogil=True)
@no_type_check
def _linear_line(volume, start, matrix, flat, border, fill, line):
    """One line: outside, at the edge, inside, at the edge, outside."""
    first, last = inside(start, matrix, volume.shape, len(line), EDGE)
    enter, leave = (0, len(line)) if border else inside(start, matrix, volume.shape, len(line), 1.0)
    if last <= first:
        first = last = enter
    line[:enter] = fill
    line[leave:] = fill
    _edge_line(volume, start, matrix, enter, first, border, fill, line)
    _edge_line(volume, start, matrix, last, leave, border, fill, line)
    if flat:
        _line_2d(volume[0], start, matrix, first, last, line)
    else:
        _line_3d(volume, start, matrix, first, last, line)


@compiled(nogil=True)
@no_type_check
def read(images, owners, matrices, offsets, nearest, border, fills, out):
    """Voxel ``o`` of ``out[row]`` gets the image of the row at ``matrices[row] @ o + offsets[row]``.

    Args:
        images: (b, c, z, y, x) float32; pictures have one z.
        owners: (r,) which image each row reads.
        matrices, offsets: (r, 3, 3), (r, 3) float64, in voxels.
        nearest: the nearest voxel, not the linear interpolation.
        border: the image goes on outside with its border voxels, not with ``fills``.
        fills: (b, c) float32, what lies outside.
        out: (r, c, z, y, x) float32, written.
    """
    start = np.empty(3)
    flat = images.shape[2] == 1 and out.shape[2] == 1
    for row in range(len(out)):
        owner, matrix, offset = owners[row], matrices[row], offsets[row]
        for channel in range(out.shape[1]):
            volume, fill = images[owner, channel], fills[owner, channel]
            for i in range(out.shape[2]):
                for j in range(out.shape[3]):
                    for axis in range(3):
                        start[axis] = matrix[axis, 0] * i + matrix[axis, 1] * j + offset[axis]
                    if nearest:
                        _nearest_line(volume, start, matrix, border, fill, out[row, channel, i, j])
                    else:
                        _linear_line(volume, start, matrix, flat, border, fill, out[row, channel, i, j])
