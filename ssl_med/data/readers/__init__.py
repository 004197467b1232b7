"""Reading one image: a record says which reader, every image passes the gate, and a broken file says why."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np

from ssl_med.data.readers.dicom_start import PREAMBLE, is_dicom
from ssl_med.data.readers.gate import DEFAULT_LIMITS, Limits, admit
from ssl_med.data.readers.pyramid import is_pyramid
from ssl_med.data.record import BURNED_IN, Image, Record, SetAside, Unreadable
from ssl_med.errors import UserError

__all__ = ["COMPANIONS", "READERS", "SUFFIXES", "Limits", "read", "read_map", "read_mask", "reader_of"]

READERS = ("nifti", "analyze", "nrrd", "metaimage", "dicom", "raster", "frames", "video", "slides", "array", "stack")
SUFFIXES = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".hdr": "analyze",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "metaimage",
    ".mhd": "metaimage",
    ".dcm": "dicom",
    ".dicom": "dicom",
    ".ima": "dicom",
    ".png": "raster",
    ".jpg": "raster",
    ".jpeg": "raster",
    ".tif": "raster",
    ".tiff": "raster",
    ".mp4": "video",
    ".m4v": "video",
    ".mov": "video",
    ".avi": "video",
    ".svs": "slides",
    ".ndpi": "slides",
    ".npy": "array",
    ".npz": "array",
}
"""Which reader opens a file, by the end of its name in lower case."""

COMPANIONS = (".img", ".img.gz", ".raw", ".zraw", ".raw.gz")
"""Ends of files that hold the voxels of a header beside them, and are no images on their own."""

_OVERLAID = {"US", "BDUS", "IVUS", "IVOCT", "ES", "SC", "ULTRASOUND", "ECHO", "ENDOSCOPY"}
"""Modalities, in the words of DICOM or of a table, whose devices write the patient's name into the picture."""

_FILMS = ("frames", "video")

_AS_LABELS = {"raster": {"palette": False}, "array": {"what": "masks"}}
"""How a reader is asked for voxel labels instead of an image."""


def reader_of(path: Path) -> str | None:
    """Name of the reader for a file; None if no reader opens it.

    A file without a suffix that may not be opened has no reader.

    Scanners also write DICOM files without a suffix or with a number for one, and slides as TIFF: those are known by
    their first bytes.
    """
    name = path.name.lower()
    for suffix in ("".join(path.suffixes[-2:]).lower(), path.suffix.lower()):
        if suffix in (".tif", ".tiff") and path.is_file() and is_pyramid(path):
            return "slides"
        if suffix in SUFFIXES:
            return SUFFIXES[suffix]
    if name != "dicomdir" and (not path.suffix or path.suffix[1:].isdigit()) and path.is_file():
        try:
            with path.open("rb") as file:
                return "dicom" if is_dicom(file.read(PREAMBLE)) else None
        except PermissionError:
            return None
    return None


def read(record: Record, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Read the image of a record.

    Args:
        record: what the index found.
        limits: how large an image may be.

    Returns:
        An image that is finite, not constant and of sound geometry.

    Raises:
        SetAside: sound, but not of a kind that is wanted.
        Unreadable: the file is missing, broken, too large or no usable image; the reason holds no path.
    """
    if record.aside:
        raise SetAside(f"set aside: {record.aside}")
    image = admit(_spaced(_open(record, limits), record))
    modality = image.modality or record.modality
    risk = (BURNED_IN,) if modality.upper() in _OVERLAID else ()
    notes = tuple(dict.fromkeys((*image.warnings, *risk, *record.notes)))
    return replace(image, modality=modality, warnings=notes)


def _spaced(image: Image, record: Record) -> Image:
    """An image whose file tells no spacing, with that of a table."""
    if not record.spacing or image.affine is not None or any(step != 1.0 for step in image.spacing):
        return image
    return replace(image, spacing=spacing_from(record, image.spacing))


def spacing_from(record: Record, unknown: tuple[float, ...]) -> tuple[float, ...]:
    """The spacing that a table gives, in memory order.

    Args:
        record: with a spacing.
        unknown: spacing of the image as it was read.

    Raises:
        Unreadable: another number of axes.
    """
    given, axes = tuple(reversed(record.spacing)), len(unknown)
    if len(given) == 1:
        given *= axes - (record.reader in _FILMS)
    if len(given) == axes - 1:
        given = (1.0, *given)  # time, or pages at an unknown distance
    if len(given) != axes:
        raise Unreadable(f"spacing of {len(given)} numbers in the table, the image has {axes} axes")
    return given


def read_mask(record: Record, image: Image | None = None, limits: Limits = DEFAULT_LIMITS) -> np.ndarray | None:
    """Read the voxel labels of a record, on the grid of its image.

    Args:
        record: what the index found.
        image: the record's image where it has been read already; it is read for its grid otherwise.
        limits: how large a mask may be.

    Returns:
        (1, \\*space) int16, or int32 where a label needs it; -1 where the record says that a label is to be ignored;
        None if the record has no mask.

    Raises:
        Unreadable: the mask is broken, holds fractions, or lies on another grid than the image.
    """
    if record.mask is None:
        return None
    mask = _beside("mask", record.mask, record, limits)
    _check_grid("mask", mask, image or read(record, limits))
    labels = _labels(mask.array)
    return np.where(np.isin(labels, record.ignored), labels.dtype.type(-1), labels) if record.ignored else labels


def read_map(record: Record, image: Image, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """Read the saliency map that a person gave with a record, on the grid of its image.

    Args:
        record: what the index found.
        image: the record's image.
        limits: how large a map may be.

    Returns:
        (c, \\*space) as the file says it.

    Raises:
        Unreadable: there is none, it is broken, or lies on another grid than the image.
    """
    if record.saliency is None:
        several = record.item is not None
        raise Unreadable("saliency: one of several images of a file has no map" if several else "saliency: no map")
    found = _beside("saliency", record.saliency, record, limits)
    _check_grid("saliency", found, image)
    return found.array


def _beside(name: str, path: Path, record: Record, limits: Limits) -> Image:
    """A file on the grid of an image, its numbers as they are."""
    reader = reader_of(path)
    if reader is None:
        raise Unreadable(f"{name}: no reader for this kind of file")
    files = Record(record.name, reader, (path,), split=record.split)
    if path.suffix.lower() == ".npz":
        files = replace(files, item=record.item)
    try:
        return admit(_open(files, limits, labels=name == "mask"), constant=True)
    except Unreadable as error:
        raise Unreadable(f"{name}: {error}") from None


def _open(record: Record, limits: Limits, labels: bool = False) -> Image:
    if record.reader not in READERS:
        raise UserError(f"record.reader is {record.reader!r}, expected one of {', '.join(READERS)}")
    for file in record.files:
        if not file.is_file():
            raise Unreadable("file is missing")
        if file.stat().st_size == 0:
            raise Unreadable("empty file")
    module = import_module(f"ssl_med.data.readers.{record.reader}")
    try:
        return module.read(record, limits, **(_AS_LABELS.get(record.reader, {}) if labels else {}))
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror}") from None  # the chain would show the path


def _check_grid(name: str, mask: Image, image: Image) -> None:
    if mask.array.shape[1:] != image.array.shape[1:]:
        raise Unreadable(f"{name}: shape {mask.array.shape[1:]} where the image has {image.array.shape[1:]}")
    if mask.affine is None or image.affine is None:
        return
    *_, z, y, x = (1, *image.array.shape[1:])
    corners = np.array([[i, j, k, 1] for i in (0, x - 1) for j in (0, y - 1) for k in (0, z - 1)], float).T
    distance = np.linalg.norm(((mask.affine - image.affine) @ corners)[:3], axis=0).max()
    if distance > 0.1 * min(image.spacing):
        raise Unreadable(f"{name}: affine differs from the image's by up to {distance:.3g} mm")


def _labels(array: np.ndarray) -> np.ndarray:
    if len(array) > 1 and not (array == array[:1]).all():
        raise Unreadable(f"mask: {len(array)} different channels, expected 1")
    array = array[:1]
    if array.dtype.kind == "f" and not (array == np.rint(array)).all():
        raise Unreadable("mask: values are not whole numbers")
    if abs(int(array.min())) >= 2**31 or abs(int(array.max())) >= 2**31:
        raise Unreadable("mask: labels beyond 32 bits")
    small = array.min() >= -(2**15) and array.max() < 2**15
    return array.astype(np.int16 if small else np.int32)
