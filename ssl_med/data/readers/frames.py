"""A folder of numbered pictures as one film: time, then rows and columns."""

import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np

from ssl_med.data.readers import raster
from ssl_med.data.readers.gate import DEFAULT_LIMITS, Limits, check_shape
from ssl_med.data.record import Image, Record, Unreadable

_NUMBERED = re.compile(r"(?P<words>.*?)(?P<number>\d{1,12})")
_PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}
_FEWEST = 3


def read(record: Record, limits: Limits = DEFAULT_LIMITS, palette: bool = True) -> Image:
    """Read pictures as (c, t, y, x) in the natural order of their numbers, with a spacing of 1.0 along time too.

    Raises:
        Unreadable: a picture is broken, of another size or kind than the first, or all are too many.
    """
    files = in_order(record.files)
    first = raster.read(Record(record.name, "raster", files[:1]), limits, palette)
    if first.array.ndim != 3:
        raise Unreadable("a frame of several pages")
    channels, *space = first.array.shape
    shape = (channels, len(files), *space)
    check_shape(shape, first.array.itemsize, limits)
    film = np.empty(shape, first.array.dtype)
    for time, file in enumerate(files):
        frame = raster.read(Record(record.name, "raster", (file,)), limits, palette).array
        if frame.shape != first.array.shape or frame.dtype != film.dtype:
            raise Unreadable(f"frame {time} has shape {frame.shape} and {frame.dtype}, the first {first.array.shape}")
        film[:, time] = frame
    return Image(film, (1.0, 1.0, 1.0), warnings=first.warnings)


def in_order(files: Iterable[Path]) -> tuple[Path, ...]:
    """Sort files so that numbers count: ``frame2`` comes before ``frame10``."""
    return tuple(sorted(files, key=lambda file: [_natural(part) for part in re.split(r"(\d+)", file.name)]))


def looks_like_frames(paths: Iterable[Path]) -> bool:
    """Whether pictures look like the frames of one film, by their names alone.

    They do where at least three lie in one folder, are of one kind, and are named by the same words and numbers that
    follow each other without a gap. Single pictures can be numbered so too: ask only where the folder speaks for it.
    """
    files = in_order(paths)
    if len(files) < _FEWEST or files[0].suffix.lower() not in _PICTURES:
        return False
    if len({(file.parent, file.suffix.lower()) for file in files}) > 1:
        return False
    parts = [_NUMBERED.fullmatch(file.stem) for file in files]
    if not all(parts) or len({part["words"] for part in parts if part}) > 1:
        return False
    times = [int(part["number"]) for part in parts if part]
    return all(after - before == 1 for before, after in pairwise(times))


def _natural(part: str) -> tuple[bool, int, str]:
    return (not part.isdecimal(), int(part) if part.isdecimal() else 0, part)
