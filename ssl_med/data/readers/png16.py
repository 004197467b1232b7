"""PNG pictures of several 16-bit channels, which Pillow would round to 8 bits.

PNG filters work byte by byte, and each byte looks only at the same byte of its neighbours. So the high bytes alone are
a valid 8-bit PNG, and the low bytes another: Pillow decodes both, exactly (PNG specification, third edition, 9.2).
"""

import struct
import zlib
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image as Pillow

from ssl_med.data.record import Unreadable

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")  # width, height, bits, colour type, compression, filter, interlace
_CHANNELS = {2: 3, 4: 2, 6: 4}  # colour, grey with transparency, colour with transparency


def is_deep_colour(picture: Pillow.Image) -> bool:
    """Whether an opened picture has several channels of 16 bits."""
    return picture.format == "PNG" and any(
        str(tile[3]) in ("RGB;16B", "RGBA;16B", "LA;16B") for tile in getattr(picture, "tile", ())
    )


def decode(stream: BinaryIO) -> np.ndarray:
    """Pixels (y, x, c) uint16 of a PNG whose checksums have been verified; transparency is dropped.

    Raises:
        Unreadable: interlaced, or too few pixels for its size.
    """
    stream.seek(len(_SIGNATURE))
    header, packed = _chunks(stream)
    width, height, bits, colour, _, _, interlace = _HEADER.unpack(header)
    if interlace:
        raise Unreadable("interlaced PNG of 16-bit colour, expected one that is not interlaced")
    channels = _CHANNELS[colour]
    lines = _inflated(packed, height * (1 + width * channels * bits // 8)).reshape(height, -1)
    halves = lines[:, 1:].reshape(height, width * channels, 2)
    high, low = (_decoded(lines[:, :1], halves[..., half], width, colour) for half in (0, 1))
    array = (high.astype(np.uint16) << 8) | low
    return array[..., : 1 if channels == 2 else 3]


def _chunks(stream: BinaryIO) -> tuple[bytes, list[bytes]]:
    header, packed, kind = b"", [], b""
    while kind != b"IEND":
        size, kind = struct.unpack(">I4s", stream.read(8))
        body = stream.read(size)
        stream.read(4)
        if kind == b"IHDR":
            header = body
        if kind == b"IDAT":
            packed.append(body)
    return header, packed


def _inflated(packed: list[bytes], size: int) -> np.ndarray:
    unpack, parts = zlib.decompressobj(), []
    missing = size
    for part in packed:
        while part and missing > 0:
            parts.append(unpack.decompress(part, missing))
            missing -= len(parts[-1])
            part = unpack.unconsumed_tail
    if missing:
        raise Unreadable(f"data cut short: {size - missing} of {size} bytes")
    return np.frombuffer(b"".join(parts), np.uint8)


def _decoded(filters: np.ndarray, half: np.ndarray, width: int, colour: int) -> np.ndarray:
    """One byte of each value, (y, x, c), from the same byte of each filtered value."""
    body = zlib.compress(np.concatenate([filters, half], axis=1).tobytes(), level=0)
    header = _HEADER.pack(width, len(half), 8, colour, 0, 0, 0)
    picture = _SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    )
    with Pillow.open(BytesIO(picture), formats=("PNG",)) as opened:
        return np.array(opened)
