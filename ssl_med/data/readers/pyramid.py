"""Knowing a whole slide from an ordinary TIFF by its first bytes, without a library."""

import struct
from pathlib import Path
from typing import BinaryIO

_WIDTH, _TILE_WIDTH, _SUB_IMAGES = 256, 322, 330
_MAX_ENTRIES = 512


def is_pyramid(path: Path) -> bool:
    """Whether a TIFF is cut into tiles and holds smaller copies of its first page, as slide scanners write them."""
    try:
        with path.open("rb") as file:
            return _is_pyramid(file)
    except (struct.error, OverflowError, PermissionError):  # the last is told when the file is read
        return False


def _is_pyramid(file: BinaryIO) -> bool:
    start = file.read(4)
    if start not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return False
    order, big = "<" if start[:2] == b"II" else ">", b"+" in start
    if big:
        file.seek(8)
    (first,) = struct.unpack(order + ("Q" if big else "I"), file.read(8 if big else 4))
    tags, following = _tags(file, first, order, big)
    if _TILE_WIDTH not in tags:
        return False
    if _SUB_IMAGES in tags:
        return True
    if not following:
        return False
    smaller, _ = _tags(file, following, order, big)
    return 0 < smaller.get(_WIDTH, 0) < tags.get(_WIDTH, 0)


def _tags(file: BinaryIO, place: int, order: str, big: bool) -> tuple[dict[int, int], int]:
    """Value of each tag of a page as far as it is one whole number, and where the next page lies."""
    file.seek(place)
    (count,) = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
    tags = {}
    for _ in range(min(count, _MAX_ENTRIES)):
        entry = file.read(20 if big else 12)
        tag, kind = struct.unpack(order + "HH", entry[:4])
        value = entry[12:] if big else entry[8:]
        tags[tag] = struct.unpack(order + ("H" if kind == 3 else "I"), value[: 2 if kind == 3 else 4])[0]
    (following,) = struct.unpack(order + ("Q" if big else "I"), file.read(8 if big else 4))
    return tags, following
