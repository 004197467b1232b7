"""Files that are read beside the one that is named: the voxels of a header that stands alone."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from ssl_med.data.record import Unreadable

_READERS = {".hdr": "analyze", ".nrrd": "nrrd", ".nhdr": "nrrd", ".mha": "metaimage", ".mhd": "metaimage"}
"""Readers of formats that may keep their voxels in a second file; any header of these formats may name one."""


def companion(path: Path) -> Path | None:
    """The file in which the header of a file says that its voxels are; None where there is no such file.

    A header that is broken, or names a file that is missing, has none: why it cannot be used is told when it is read.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        return None
    try:
        return import_module(f"ssl_med.data.readers.{reader}").voxel_file(path)
    except (Unreadable, OSError):
        return None


def with_companions(paths: Iterable[Path]) -> list[Path]:
    """Files, each followed by the one that holds its voxels where that is another one."""
    found: list[Path] = []
    for path in paths:
        beside = companion(path)
        found += [path] if beside is None else [path, beside]
    return found
