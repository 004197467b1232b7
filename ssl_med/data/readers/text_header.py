"""What NRRD and MetaImage share: a header in lines of text, read within bounds, and a second file for the voxels."""

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

import numpy as np

from ssl_med.data.record import Unreadable

_LINE = 1 << 14
_LINES = 4096
"""A header within these bounds takes at most 64 MiB; real ones take a few kilobytes."""


class Lines:
    """The lines of a header, no longer and no more than any real header has.

    Args:
        raw: stands at the first line.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw
        self._left = _LINES

    def next(self) -> str:
        """The next line without its end.

        Raises:
            Unreadable: the file ends, or no header looks like this.
        """
        self._left -= 1
        line = self.raw.readline(_LINE)
        if not line.endswith(b"\n"):
            raise Unreadable("header cut short" if len(line) < _LINE else "a line of the header has no end")
        if self._left < 0:
            raise Unreadable(f"header of more than {_LINES} lines")
        return line.rstrip(b"\r\n").decode("latin-1")


def beside(header: Path, name: str) -> Path:
    """The file of the voxels that a header names.

    Raises:
        Unreadable: it lies outside the header's folder, or is missing.
    """
    parts = PureWindowsPath(name).parts  # understands both slashes
    if not parts or PureWindowsPath(name).anchor or PurePosixPath(name).is_absolute() or ".." in parts:
        raise Unreadable("the header names a file outside its own folder")
    file = header.parent.joinpath(*parts)
    if "\0" in name or not file.is_file():
        raise Unreadable("the file of the voxels that the header names is missing")
    return file


def numbers(text: str, field: str, count: int | None = None) -> np.ndarray:
    """Finite numbers of a header field, float64 (count,).

    Raises:
        Unreadable: no numbers, not finite, or another count.
    """
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError:
        raise Unreadable(f"header field {field} holds no numbers") from None
    if not np.isfinite(values).all():
        raise Unreadable(f"header field {field} is not finite")
    if count is not None and len(values) != count:
        raise Unreadable(f"header field {field} has {len(values)} numbers, expected {count}")
    return values


def whole_numbers(text: str, field: str, count: int | None = None) -> tuple[int, ...]:
    """Whole numbers of a header field.

    Raises:
        Unreadable: no whole numbers, absurdly long ones, or another count.
    """
    words = text.split()
    if not words or any(len(word) > 20 or not word.lstrip("+-").isdecimal() for word in words):
        raise Unreadable(f"header field {field} holds no whole numbers")
    if count is not None and len(words) != count:
        raise Unreadable(f"header field {field} has {len(words)} numbers, expected {count}")
    try:
        return tuple(int(word) for word in words)
    except ValueError:
        raise Unreadable(f"header field {field} holds no whole numbers") from None
