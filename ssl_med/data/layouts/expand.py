"""From a file to its images: rows of an array file, series of DICOM files, tiles of a slide."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from ssl_med.data.layouts.base import File
from ssl_med.data.layouts.masks import mask_of
from ssl_med.data.readers import array, dicom
from ssl_med.data.record import Record, Tiling, Unreadable

GROUPED_TOGETHER = 20_000
"""DICOM files up to which series are put together over the whole tree; beyond, within each folder at its top."""


def image_records(record: Record) -> Iterator[Record]:
    """The images of one file that is no DICOM slice; a slide is cut later, see :func:`tile_records`."""
    if record.files[0].suffix.lower() != ".npz":
        yield record
        return
    try:
        for row in array.rows(record.files[0]):
            name = f"{record.name}#{row.split}/{row.item}" if row.split else f"{record.name}#{row.item}"
            yield replace(
                record,
                name=name,
                item=row.item,
                mask=record.files[0] if row.masked else record.mask,
                label=row.label if row.label >= 0 else record.label,
                patient=row.patient or record.patient,
                split=row.split,  # with the item it is the place of the row in its file
            )
    except Unreadable:
        yield replace(record, item=None)  # reading it tells the reason


def tile_records(record: Record, tiling: Tiling | None = None) -> Iterator[Record]:
    """The tiles of a slide, which are of one patient: that of its folder, or else the slide itself."""
    from ssl_med.data.readers.slides import DEFAULT_TILING, tiles_of

    try:
        count = tiles_of(record.files[0], tiling or DEFAULT_TILING)
    except Unreadable:
        yield record  # reading it tells the reason
        return
    patient = record.patient or record.name
    for number in range(count):
        yield replace(record, name=f"{record.name}#{number}", item=number, patient=patient, tiling=tiling)


def array_classes(path: Path) -> tuple[str, ...]:
    """Class names that an array file holds; none if it is damaged, which is told when its record is read."""
    try:
        return array.class_names(path)
    except Unreadable:
        return ()


def series_records(
    files: Iterable[File], folder: Path, first: Callable[[File], Record], together: bool
) -> Iterator[Record]:
    """One record per DICOM series, from headers alone.

    Args:
        files: DICOM files in the order of the tree.
        folder: the data folder.
        first: what the path of a series' first file says.
        together: group over all files; otherwise within each folder at the top, so that few are held at a time.
    """
    groups = [(None, files)] if together else groupby(files, lambda file: _top(file.path, folder))
    for _, group in groups:
        for series in dicom.find_series(file.path for file in group):
            record = first(File(series.files[0], "dicom"))
            yield replace(
                record,
                name=record.name if series.item is None else f"{record.name}#{series.item}",
                files=series.files,
                item=series.item,
                mask=mask_of(series.files[0], folder) if len(series.files) == 1 else None,
                patient=series.patient or record.patient,
                study=series.study,
                modality=series.modality,
                site=series.site or record.site,
                groups=series.groups,
                aside=series.aside,
                notes=series.notes,
            )


def _top(path: Path, folder: Path) -> str:
    """The folder at the top that a file lies in; empty for the files beside those folders, which are one group."""
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else ""
