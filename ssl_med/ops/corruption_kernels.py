"""Compiled CPU loops (numba) of the corruptions; ``shuffle``, ``curves`` and ``painting`` say what they compute.

Import this module only where it is used: numba takes a moment to load. Every number is a function of the image's key
and a counter, so the result depends neither on threads nor on the order of the work, and equals that of the torch
functions. Images are float32 (b, c, ...), contiguous, and are changed in place where ``chosen``.
"""

from typing import no_type_check

import numpy as np

from ssl_med.compiled import compiled
from ssl_med.ops import streams

_GOLDEN, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LCG_FACTOR, _LCG_TERM = np.uint64(streams.LCG_FACTOR), np.uint64(streams.LCG_TERM)
_27, _30, _31, _32 = (np.uint64(bits) for bits in (27, 30, 31, 32))
_ONE, _WORD = np.uint64(1), np.uint64(0xFFFFFFFF)
_WEYL, _HASH_1, _HASH_2, _HASH_3, _HASH_4 = (np.uint32(value) for value in streams.HASH_FACTORS)
_8, _12, _15, _16 = (np.uint32(bits) for bits in (8, 12, 15, 16))
_UNIT = np.float32(2.0**-24)
_BLOCK = 512


@compiled(nogil=True, inline="always")
@no_type_check
def _number(key, counter):
    """Number ``counter`` of the stream of ``key``, see :func:`ssl_med.ops.streams.number`."""
    x = np.uint64(key) + (np.uint64(counter) + _ONE) * _GOLDEN
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    return x ^ (x >> _31)


@compiled(nogil=True, inline="always")
@no_type_check
def _below(number, high):
    """0 .. high - 1 from the upper 32 bits."""
    return np.int64(((number >> _32) * np.uint64(high)) >> _32)


@compiled(nogil=True)
@no_type_check
def _permute(state, corner, side, height, width, buffer):
    """Voxel numbers of a box in random order: Fisher-Yates from the inside out, by a congruential generator."""
    (z, y, x), (a, h, w), n = corner, side, np.uint64(0)
    for i in range(z, z + a):
        for j in range(y, y + h):
            row = (i * height + j) * width
            for k in range(x, x + w):
                state = state * _LCG_FACTOR + _LCG_TERM
                q = ((state >> _32) * (n + _ONE)) >> _32
                buffer[n] = buffer[q]
                buffer[q] = row + k
                n += _ONE


@compiled(nogil=True)
@no_type_check
def _write(source, target, corner, side, height, width, buffer):
    """The voxels of a box of one channel, read in the order of the buffer."""
    (z, y, x), (a, h, w), n = corner, side, np.uint64(0)
    for i in range(z, z + a):
        for j in range(y, y + h):
            row = np.uint64((i * height + j) * width + x)
            for k in range(np.uint64(w)):
                target[row + k] = source[np.uint64(buffer[n])]
                n += _ONE


@compiled(nogil=True)
@no_type_check
def shuffle(image, keys, limits, windows, chosen):
    """Local shuffling; a later window overwrites an earlier one, and all read the untouched image."""
    count, channels, depth, height, width = image.shape
    flat, largest = image.reshape(count, channels, -1), 1
    for b in range(count):
        largest = max(largest, limits[b, 0] * limits[b, 1] * limits[b, 2])
    buffer, untouched = np.empty(largest, np.int32), np.empty_like(flat[0])
    for b in range(count):
        if not chosen[b]:
            continue
        untouched[:] = flat[b]
        for window in range(windows[b]):
            key = _number(keys[b], window)
            a = 1 + _below(_number(key, 0), limits[b, 0])
            h = 1 + _below(_number(key, 1), limits[b, 1])
            w = 1 + _below(_number(key, 2), limits[b, 2])
            z = _below(_number(key, 3), depth - a + 1)
            y = _below(_number(key, 4), height - h + 1)
            x = _below(_number(key, 5), width - w + 1)
            _permute(_number(key, 6), (z, y, x), (a, h, w), height, width, buffer)
            for c in range(channels):
                _write(untouched[c], flat[b, c], (z, y, x), (a, h, w), height, width, buffer)


@compiled(nogil=True, inline="always")
@no_type_check
def _bezier(t, second, third):
    """A coordinate of the curve from 0 to 1."""
    return second * (3 * t * (1 - t) * (1 - t)) + third * (3 * t * t * (1 - t)) + t * t * t


@compiled(nogil=True)
@no_type_check
def tables(points, falling, t, out):
    """Values and steps of curves at the evenly spaced entries of ``out`` (b, entries, 2)."""
    last = out.shape[1] - 1
    for b in range(out.shape[0]):
        (x2, y2), (x3, y3) = points[b, 0], points[b, 1]
        right = 1
        for entry in range(last + 1):
            place = entry / last
            while right < t.size - 1 and _bezier(t[right], x2, x3) < place:
                right += 1
            x0, x1 = _bezier(t[right - 1], x2, x3), _bezier(t[right], x2, x3)
            share = min(max((place - x0) / max(x1 - x0, 1e-12), 0.0), 1.0)
            begin, end = (t.size - right, t.size - 1 - right) if falling[b] else (right - 1, right)
            y0, y1 = _bezier(t[begin], y2, y3), _bezier(t[end], y2, y3)
            out[b, entry, 0] = y0 + (y1 - y0) * share
        out[b, :-1, 1] = out[b, 1:, 0] - out[b, :-1, 0]
        out[b, -1, 1] = 0


@compiled(nogil=True)
@no_type_check
def _follow(channel, table, low, span):
    """One channel through its table, in blocks: of the three loops only the look-up does one voxel at a time."""
    top, scale = np.float32(table.shape[0] - 1), np.float32(1) / span
    cells, shares = np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.float32)
    values, steps = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    for first in range(0, channel.size, _BLOCK):
        block = channel[first : first + _BLOCK]
        for v in range(block.size):
            place = (block[v] - low) * scale
            place = place if place > np.float32(0) else np.float32(0)
            place = (place if place < np.float32(1) else np.float32(1)) * top
            cells[v] = np.int32(place)
            shares[v] = place - np.float32(cells[v])
        for v in range(block.size):
            cell = np.uint32(cells[v])
            values[v], steps[v] = table[cell, 0], table[cell, 1]
        for v in range(block.size):
            block[v] = low + span * (values[v] + shares[v] * steps[v])


@compiled(nogil=True)
@no_type_check
def curve(image, tables, low, span, chosen):
    """Images (b, c, v) through their tables of values and steps; ``low`` and ``span`` (b, c) map them to [0, 1]."""
    for b in range(image.shape[0]):
        if chosen[b]:
            for c in range(image.shape[1]):
                _follow(image[b, c], tables[b], low[b, c], span[b, c])


@compiled(nogil=True, inline="always")
@no_type_check
def _noise(first, second, voxel):
    """Noise of a voxel from the halves of the key, see :func:`ssl_med.ops.streams.noise`."""
    h = np.uint32(np.uint32(np.uint32(voxel) * _WEYL) + first)
    h = np.uint32(np.uint32(h ^ (h >> _16)) * _HASH_1)
    h = np.uint32(np.uint32(h ^ (h >> _15)) * _HASH_2)
    h = np.uint32(h ^ (h >> _16) ^ second)
    h = np.uint32(np.uint32(h ^ (h >> _15)) * _HASH_3)
    h = np.uint32(np.uint32(h ^ (h >> _12)) * _HASH_4)
    return np.float32(np.int32(np.uint32(h ^ (h >> _15)) >> _8)) * _UNIT


@compiled(nogil=True)
@no_type_check
def _paint_channel(volume, key, replaced, low, span):
    """Noise over the voxels of one channel where ``replaced``."""
    first, second = np.uint32(np.uint64(key) & _WORD), np.uint32(np.uint64(key) >> _32)
    for v in range(volume.size):
        noise = low + span * _noise(first, second, np.uint32(v))
        volume[v] = noise if replaced[v] else volume[v]


@compiled(nogil=True)
@no_type_check
def paint(image, keys, corners, sides, inward, low, span, chosen):
    """Noise inside (``inward``) or outside the boxes (b, k, 3) of each image; a box of side 0 is none."""
    count, channels = image.shape[:2]
    replaced = np.empty(image.shape[2:], np.bool_)
    for b in range(count):
        if not chosen[b]:
            continue
        replaced[:] = not inward[b]
        for k in range(corners.shape[1]):
            (z, y, x), (a, h, w) = corners[b, k], sides[b, k]
            for i in range(z, z + a):
                for j in range(y, y + h):
                    replaced[i, j, x : x + w] = inward[b]
        for c in range(channels):
            _paint_channel(image[b, c].reshape(-1), keys[b], replaced.reshape(-1), low[b, c], span[b, c])
