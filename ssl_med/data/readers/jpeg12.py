"""JPEG pictures of 12 bits per channel, which Pillow cannot decode; imagecodecs can."""

import struct
from importlib.util import find_spec
from typing import BinaryIO

import numpy as np

from ssl_med.data.readers.gate import Limits, check_shape
from ssl_med.data.record import Unreadable

_NO_FRAMES = (0xC4, 0xC8, 0xCC)
"""Markers among those of frames (0xC0 to 0xCF) that begin something else: tables and a reserved one."""

_SCAN = 0xDA


def frame_of(stream: BinaryIO) -> tuple[int, int, int, int] | None:
    """Bits per channel, rows, columns and channels as the file announces them; None where it is no JPEG."""
    stream.seek(0)
    if stream.read(2) != b"\xff\xd8":
        return None
    while len(head := stream.read(4)) == 4 and head[0] == 0xFF and head[1] != _SCAN:
        length = struct.unpack(">H", head[2:])[0]
        body = stream.read(max(length - 2, 0))
        if 0xC0 <= head[1] <= 0xCF and head[1] not in _NO_FRAMES and len(body) >= 6:
            return struct.unpack(">BHHB", body[:6])
    return None


def decode(stream: BinaryIO, frame: tuple[int, int, int, int], limits: Limits) -> np.ndarray:
    """Pixels (y, x, c), whole numbers of 16 bits.

    Args:
        stream: the file.
        frame: from :func:`frame_of`.
        limits: how large a picture may be.

    Raises:
        Unreadable: too large, no decoder is installed, or no grey or RGB picture.
    """
    bits, rows, columns, channels = frame
    check_shape((channels, rows, columns), 2, limits)
    if find_spec("imagecodecs") is None:
        raise Unreadable(f"a JPEG of {bits} bits needs the package imagecodecs: pip install 'ssl_med[slides]'")
    import imagecodecs

    stream.seek(0)
    try:
        array = np.asarray(imagecodecs.jpeg_decode(stream.read()))
    except imagecodecs.DelayedImportError:
        raise Unreadable(f"a JPEG of {bits} bits, which this imagecodecs cannot decode") from None
    array = array.reshape(*array.shape[:2], -1)
    if array.shape != (rows, columns, channels) or channels not in (1, 3):
        raise Unreadable(f"a JPEG of {channels} channels and {bits} bits, expected grey or RGB")
    return array
