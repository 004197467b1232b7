"""Compiled CPU kernels (numba): a crop is cut, turned and put on its intensity scale in one pass, from stored integers.

The crop is never held as floats in between, and the run of each line that lies inside the image is solved beforehand,
so that the inner loop has no test for the border. Import this module only where it is used: numba takes time to load.
:mod:`ssl_med.data.filling` has the same in torch.
"""

from typing import no_type_check

import numpy as np

from ssl_med.compiled import compiled
from ssl_med.ops.sampling_kernels import EDGE, inside, pair


@compiled(nogil=True, fastmath={"contract", "reassoc", "arcp", "nsz"}, error_model="numpy")
@no_type_check
def _linear_line(volume, start, matrix, first, last, low, high, shift, factor, line):
    """Interpolate one line of the crop between the steps first and last."""
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
        a00, a01 = np.float32(volume[i, j, m]), np.float32(volume[i, j, s])
        a10, a11 = np.float32(volume[i, r, m]), np.float32(volume[i, r, s])
        b00, b01 = np.float32(volume[q, j, m]), np.float32(volume[q, j, s])
        b10, b11 = np.float32(volume[q, r, m]), np.float32(volume[q, r, s])
        a0, a1 = a00 + (a01 - a00) * fx, a10 + (a11 - a10) * fx
        b0, b1 = b00 + (b01 - b00) * fx, b10 + (b11 - b10) * fx
        a, b = a0 + (a1 - a0) * fy, b0 + (b1 - b0) * fy
        line[k] = (min(max(a + (b - a) * fz, low), high) - shift) * factor


@compiled(nogil=True)
@no_type_check
def turned_linear(source, matrix, offset, scales, out, valid):
    """Voxel ``o`` of the crop gets the linearly interpolated, scaled source at ``matrix @ o + offset``.

    Args:
        source: (c, z, y, x), any number type; images have one z.
        matrix: (3, 3) float64, crop voxels to source voxels.
        offset: (3,) float64, where the crop's first voxel lies in the source.
        scales: (k, 6) float32, one line per channel of the crop: channel of the source, low, high, shift, factor, and
            the value outside the source. A voxel becomes ``(clip(interpolated, low, high) - shift) * factor``.
        out: (k, z, y, x) float32, written.
        valid: (1, z, y, x) bool, written: True inside the source; of size 0 if nobody asks.
    """
    start = np.empty(3)
    for channel in range(len(scales)):
        volume = source[int(scales[channel, 0])]
        low, high, shift, factor = scales[channel, 1], scales[channel, 2], scales[channel, 3], scales[channel, 4]
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                for axis in range(3):
                    start[axis] = matrix[axis, 0] * i + matrix[axis, 1] * j + offset[axis]
                first, last = inside(start, matrix, volume.shape, out.shape[3], EDGE)
                line = out[channel, i, j]
                line[:first] = scales[channel, 5]
                line[last:] = scales[channel, 5]
                _linear_line(volume, start, matrix, first, last, low, high, shift, factor, line)
                if valid.size and channel == 0:
                    valid[0, i, j, :first] = False
                    valid[0, i, j, first:last] = True
                    valid[0, i, j, last:] = False


@compiled(nogil=True)
@no_type_check
def turned_nearest(source, matrix, offset, outside, out):
    """As :func:`turned_linear` for labels: the nearest voxel of ``source`` (c, z, y, x), ``outside`` elsewhere."""
    start = np.empty(3)
    for channel in range(len(out)):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                for axis in range(3):
                    start[axis] = matrix[axis, 0] * i + matrix[axis, 1] * j + offset[axis]
                first, last = inside(start, matrix, source.shape[1:], out.shape[3], EDGE)
                out[channel, i, j] = outside
                for k in range(first, last):
                    z = np.uint32(start[0] + matrix[0, 2] * k + 0.5)
                    y = np.uint32(start[1] + matrix[1, 2] * k + 0.5)
                    x = np.uint32(start[2] + matrix[2, 2] * k + 0.5)
                    out[channel, i, j, k] = source[channel, z, y, x]


@compiled(nogil=True, error_model="numpy")
@no_type_check
def scaled(source, scales, out):
    """``source`` (c, z, y, x) through ``scales`` (as above) into ``out`` (k, z, y, x) float32, without turning."""
    for channel in range(len(scales)):
        volume = source[int(scales[channel, 0])]
        low, high, shift, factor = scales[channel, 1], scales[channel, 2], scales[channel, 3], scales[channel, 4]
        for i in range(volume.shape[0]):
            for j in range(volume.shape[1]):
                line, result = volume[i, j], out[channel, i, j]
                for k in range(len(line)):
                    result[k] = (min(max(np.float32(line[k]), low), high) - shift) * factor
