"""A record says where one image lies and whom it belongs to; an image is what a reader makes of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

BURNED_IN = "burned-in text possible"
"""The warning of an image whose voxels may spell a name."""


@dataclass(frozen=True)
class Tiling:
    """How a slide is cut.

    Attributes:
        size: pixels along the side of a tile as it is read.
        mpp: micrometres per pixel of a tile; a slide that is coarser, or does not tell, is read as it is scanned.
        tissue: least share of tissue in a tile.
    """

    size: int = 512
    mpp: float = 0.5
    tissue: float = 0.25


@dataclass(frozen=True)
class Record:
    """One image of a data folder, not yet read.

    Attributes:
        name: path relative to the folder (with ``#row`` for a row of an array file), the whole path of a file outside
            it. No two images share one. It may identify a person: it is hashed before it is stored and stays out of
            stores, runs and exports.
        reader: name of the reader, one of :data:`ssl_med.data.readers.READERS`; ``stack`` takes one file per channel.
        files: the file, all files of a DICOM series, one file per channel, or the frames of a clip in order.
        item: row of an array file, or stack of a multi-frame file that holds several.
        mask: file with voxel labels on the same grid, if there is one.
        label: class of the whole image; -1 = unlabelled.
        patient, study, site, split: as the folder tells; empty where it does not. Without a patient the name is used.
        modality: ``CT``, ``MR``, ``US``, ``CR`` ...; empty where unknown.
        aside: why the image should not be used although it could be read, such as a derived series; usually empty.
        notes: what a person should know of how the image was put together.
        labels: several findings of the image: 1, 0 or -1 (unknown) for each.
        boxes: for each box the lowest corner, the highest corner and the class, see :mod:`ssl_med.data.boxes`.
        frame: what the corners of the boxes are given in: ``read``: voxels along space (z, y, x) of the image as it is
            read; ``file``: voxels x, y(, z) as the file counts them; ``mm``: x, y(, z) in mm of the RAS world (of a
            picture without a world: from its upper left corner).
        value: a number to be learned, such as an age or a volume; None where it is not known.
        groups: facts for tables of subgroups, as (name, group), such as (``sex``, ``F``); never an identifier.
        dataset: name of the data set, kept as it is; not a part of what an image is.
        units: of the voxels where the file does not tell: ``HU`` or ``SUV``.
        tiling: how a slide is cut, where it was asked for in another way than usual.
        boxed: somebody looked for boxes in this image, also where they found none.
        saliency: file with a saliency map on the same grid, where a person gave maps of their own.
        spacing: mm per voxel along x, y(, z) as a table says it, or one number for all; it counts where the file tells
            none. A note says it too, which makes it a part of what an image is.
        ignored: voxel labels of the mask file that say that nothing is known there; they are read as -1.
    """

    name: str
    reader: str
    files: tuple[Path, ...]
    item: int | None = None
    mask: Path | None = None
    label: int = -1
    patient: str = ""
    study: str = ""
    site: str = ""
    split: str = ""
    modality: str = ""
    aside: str = ""
    notes: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    boxes: tuple[float, ...] = ()
    frame: Literal["read", "file", "mm"] = field(default="read", repr=False)
    value: float | None = field(default=None, repr=False)
    groups: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    dataset: str = field(default="", repr=False)
    units: str = field(default="", repr=False)
    tiling: Tiling | None = field(default=None, repr=False)
    boxed: bool = field(default=False, repr=False)
    saliency: Path | None = field(default=None, repr=False)
    spacing: tuple[float, ...] = field(default=(), repr=False)
    ignored: tuple[int, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Image:
    """One image in memory.

    Attributes:
        array: (c, \\*space), space in memory order (z, y, x) or (y, x), voxels in RAS orientation for volumes, in the
            units of the scanner (HU for CT). Integers stay integers.
        spacing: mm per voxel along ``space``; 1.0 where unknown.
        affine: 4 x 4, voxel index (x, y, z) of the array -> RAS world mm; None for images without geometry.
        modality: as in :class:`Record`.
        warnings: what a person should know, e.g. ``burned-in text possible``.
        units: of the voxels where they are absolute: ``HU``, ``SUV``; empty for all others.
        stored: 4 x 4, voxel index (x, y, z) as the file counts them -> RAS world mm; None where the array's own affine
            says that too.
        window: that its header asks to be shown in, as :func:`ssl_med.data.windows.window_of` reads it; empty for none.
    """

    array: np.ndarray
    spacing: tuple[float, ...]
    affine: np.ndarray | None = None
    modality: str = ""
    warnings: tuple[str, ...] = ()
    units: str = ""
    stored: np.ndarray | None = None
    window: str = ""


class Unreadable(Exception):
    """An image that must not be used, with the reason in words and without a path."""


class SetAside(Unreadable):
    """Sound, but of a kind that is not wanted, such as a localiser or a time series: no reason to stop a `prepare`."""
