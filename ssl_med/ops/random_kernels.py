"""Compiled CPU loops (numba) of :class:`ssl_med.ops.random.Draws` for many numbers an image; the bits are the same.

Import this module only where it is used: numba takes a moment to load.
"""

from typing import no_type_check

import numpy as np

from ssl_med.compiled import compiled

_GOLDEN, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_8, _27, _30, _31, _40 = (np.uint64(bits) for bits in (8, 27, 30, 31, 40))
_LOW_24, _UNIT = np.uint64(0xFFFFFF), np.float32(2.0**-24)


@compiled(nogil=True, inline="always")
@no_type_check
def _mixed(x):
    """Splitmix64's finaliser."""
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    return x ^ (x >> _31)


@compiled(nogil=True, inline="always")
@no_type_check
def _number(base, counter):
    """Number ``counter``, from 1, of the stream of ``base``: splitmix64."""
    return _mixed(np.uint64(base) + np.uint64(counter) * _GOLDEN)


@compiled(nogil=True)
@no_type_check
def mix(numbers, out):
    """Scramble 64-bit integers, both (n,) int64; ``out`` is written."""
    for k in range(len(numbers)):
        out[k] = np.int64(_mixed(np.uint64(numbers[k])))


@compiled(nogil=True)
@no_type_check
def uniform(bases, out):
    """Numbers in [0, 1) from the upper 24 bits; ``bases`` (b,) int64, ``out`` (b, n) float32, written."""
    for row in range(len(bases)):
        base, line = np.uint64(bases[row]), out[row]
        for k in range(len(line)):
            line[k] = np.float32(np.int64(_number(base, k + 1) >> _40)) * _UNIT


@compiled(nogil=True)
@no_type_check
def polar(bases, radius, angle):
    """What Box-Muller needs of the same bits: radius in (0, 1] and angle in [0, 1) turns, both (b, n) float32."""
    for row in range(len(bases)):
        base, far, turn = np.uint64(bases[row]), radius[row], angle[row]
        for k in range(len(far)):
            x = _number(base, k + 1)
            far[k] = (np.float32(np.int64(x >> _40)) + np.float32(1)) * _UNIT
            turn[k] = np.float32(np.int64((x >> _8) & _LOW_24)) * _UNIT
