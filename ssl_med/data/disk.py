"""How much room a store will take, guessed from the files it is made of before any voxel is read."""

import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from math import prod
from pathlib import Path

from ssl_med.data.peek import peek
from ssl_med.data.readers.companions import with_companions
from ssl_med.data.record import Record, Tiling, Unreadable
from ssl_med.data.settings import DEFAULTS, Settings

_GROWTH = {".jpg": 8.0, ".jpeg": 8.0, ".png": 1.2, ".gz": 1.0, ".nii": 0.5, ".npy": 0.5, ".tif": 0.6, ".dcm": 0.6}
_GROWTH |= {".raw": 0.5, ".img": 0.5, ".mp4": 20.0, ".m4v": 20.0, ".mov": 20.0, ".avi": 10.0}
"""Bytes of a compressed store for each byte of a source; measured on CT, MR and photographs, so a guess for others."""

_BARE = (".nii", ".npy", ".raw", ".img", ".tif", ".tiff", ".dcm")
"""Ends of files that are mostly not packed: labels in them shrink to about a twentieth."""

_TILE = 0.75
"""Bytes of the store for each byte of a tile of a slide: colour pictures of tissue hardly shrink."""

_LOOKED_AT = 200
"""Headers that are read to learn how another spacing changes the number of voxels."""


def disk_estimate(records: Iterable[Record], folder: Path, settings: Settings = DEFAULTS) -> tuple[int, int]:
    """Bytes that the store will need, by the kind of the sources, and bytes free at the folder.

    Args:
        records: what the index found, to be gone through more than once.
        folder: of the store.
        settings: how images are stored.
    """
    where = Path(folder).absolute()
    while not where.exists():
        where = where.parent
    need = sum(_sizes(records)) * _more_voxels(records, settings)
    need *= 1.5 if settings.saliency else 1.0
    return int(need * (2.7 if settings.format == "npy" else 1.0)), shutil.disk_usage(where).free


def _sizes(records: Iterable[Record]) -> Iterator[float]:
    """Of each record in the store, its mask included, on the grid of its source."""
    before: tuple[Path, ...] = ()
    mask: Path | None = None
    for record in records:
        if record.aside:
            continue
        if record.reader == "slides":
            yield 3 * (record.tiling or Tiling()).size ** 2 * _TILE
        elif record.files != before:  # rows of an array file follow each other
            yield sum(size * _GROWTH.get(suffix, 1.0) for suffix, size in _on_disk(record.files))
        if record.mask and record.mask != mask:
            yield sum(size * (0.05 if suffix in _BARE else 1.0) for suffix, size in _on_disk([record.mask]))
        before, mask = record.files, record.mask


def _on_disk(paths: Iterable[Path]) -> Iterator[tuple[str, int]]:
    """End of the name and bytes of files and of those that hold their voxels."""
    for path in with_companions(dict.fromkeys(paths)):
        if path.is_file():
            yield path.suffix.lower(), path.stat().st_size


def _more_voxels(records: Iterable[Record], settings: Settings) -> float:
    """Voxels on the grid that was asked for, for each voxel of the sources, as some headers spread over all tell."""
    if not settings.spacing:
        return 1.0
    count = sum(1 for _ in records)
    old = new = 0.0
    for record in islice(records, 0, None, max(1, count // _LOOKED_AT)):
        try:
            header = peek(record)
        except Unreadable:
            continue  # its reason is told when it is read
        asked = header and settings.spacing_of(len(header.spacing))
        if header and asked:
            factors = [step / mm if mm else 1.0 for mm, step in zip(asked, header.spacing, strict=True)]
            old, new = old + prod(header.shape), new + prod(header.shape) * prod(factors)
    return new / old if old else 1.0
