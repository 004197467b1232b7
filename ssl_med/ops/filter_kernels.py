"""Compiled CPU loops (numba) of the filters in :mod:`ssl_med.ops.filters`.

Import this module only where it is used: numba takes a moment to load.
"""

from typing import no_type_check

import numpy as np

from ssl_med.compiled import compiled


@compiled(nogil=True, fastmath={"contract", "nsz"}, error_model="numpy")
@no_type_check
def _along_line(source, weights, reach, padded, out):
    """Weighted sum of a line and its shifted copies, the border voxel repeated outwards."""
    count = len(source)
    padded[:reach] = source[0]
    padded[reach : reach + count] = source
    padded[reach + count : 2 * reach + count] = source[count - 1]
    out[:] = 0
    middle = len(weights) // 2
    for tap in range(2 * reach + 1):
        weight = weights[middle - reach + tap]
        for k in range(count):
            out[k] += weight * padded[tap + k]


@compiled(nogil=True, fastmath={"contract", "nsz"}, error_model="numpy")
@no_type_check
def _across_lines(source, weights, reach, out):
    """The same for whole lines: line ``j`` gets the weighted sum of the lines around it."""
    count, middle = len(source), len(weights) // 2
    for j in range(count):
        line = out[j]
        line[:] = 0
        for tap in range(2 * reach + 1):
            other = source[min(max(j + tap - reach, 0), count - 1)]
            weight = weights[middle - reach + tap]
            for k in range(len(line)):
                line[k] += weight * other[k]


@compiled(nogil=True)
@no_type_check
def correlate(images, kernels, along, out):
    """Correlate every image with its own kernel along one axis; taps of weight 0 at the ends are passed over.

    Args:
        images: (b, outer, length, inner) float32; the axis of the filter is ``length``.
        kernels: (b, taps) float32, taps odd.
        along: ``inner`` is 1, and ``length`` lies side by side in memory.
        out: like ``images``, written.
    """
    middle = kernels.shape[1] // 2
    padded = np.empty(images.shape[2] + 2 * middle, np.float32)
    for row in range(len(images)):
        reach = middle
        while reach > 0 and kernels[row, middle - reach] == 0 and kernels[row, middle + reach] == 0:
            reach -= 1
        for i in range(images.shape[1]):
            if along:
                _along_line(images[row, i, :, 0], kernels[row], reach, padded, out[row, i, :, 0])
            else:
                _across_lines(images[row, i], kernels[row], reach, out[row, i])
