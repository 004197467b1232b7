"""NumPy files: one image in a ``.npy`` or alone in a ``.npz``, or many rows in one with the keys of MedMNIST."""

import re
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from math import prod
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from ssl_med.data.readers.gate import DEFAULT_LIMITS, Limits, Stream, check_shape, read_exactly
from ssl_med.data.record import Image, Record, Unreadable

_IMAGES = re.compile(r"(?:(?P<split>.+)_)?images")
_PATIENT_KEYS = ("patient", "patients", "subject", "subjects")
_GROUP_KEYS = ("field", "group")
"""Not a patient, but a group of rows that must stay together, such as the crops of one microscope field."""

_MAX_HEADER = 1 << 16

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, KeyError, IndexError, NotImplementedError)
_BROKEN += (OverflowError, RuntimeError, SyntaxError, tokenize.TokenError, struct.error)
"""What zipfile and NumPy raise on damaged files."""


@dataclass(frozen=True)
class Row:
    """One image of an ``.npz`` file: where it stands and what the file says of it.

    Attributes:
        item: row within its split.
        split: the words before ``_images`` in its key; empty for the key ``images``.
        label: class; -1 = unlabelled.
        patient: patient or group; empty where the file does not tell.
        masked: the file holds voxel labels of this image, under the key ``masks`` or ``..._masks``.
    """

    item: int
    split: str
    label: int
    patient: str
    masked: bool = False


def read(record: Record, limits: Limits = DEFAULT_LIMITS, what: str = "images") -> Image:
    """Read an array file as an image without geometry: spacing 1.0 and no affine.

    A last axis of length 1 or 3 is the colour, so that (h, w), (h, w, 3), (d, h, w) and (d, h, w, 1) are understood. A
    volume whose first axis is 3 or 4 long, or whose last is 4, carries a warning: that axis may be meant as colour. An
    ``.npz`` without the keys of rows is one image if it holds one array of numbers with two axes or more.

    Args:
        record: the file, and which row of it.
        limits: how large an image may be, and in bytes how large all rows of a split.
        what: the key in an ``.npz``, behind the split: ``images`` or ``masks``.

    Raises:
        Unreadable: damaged, too large, pickled objects, or a layout that is not known.
    """
    path = record.files[0]
    with _contained():
        if path.suffix.lower() == ".npy":
            with path.open("rb") as stream:
                array = _load(stream, limits)
        else:
            array = _row(path, record, limits, what)
    guessed = _guess(array.shape)
    array = _channels_first(array)
    return Image(array, (1.0,) * (array.ndim - 1), warnings=guessed)


def shape_of(path: Path, limits: Limits = DEFAULT_LIMITS) -> tuple[int, ...]:
    """Shape along space of a ``.npy`` file, from its header alone.

    Raises:
        Unreadable: damaged, too large, pickled objects, or a layout that is not known.
    """
    with _contained(), path.open("rb") as stream:
        shape, _, dtype = _header(stream)
    check_shape(shape, dtype.itemsize, limits)
    return _channels_first(np.broadcast_to(np.uint8(0), shape)).shape[1:]


def rows(path: Path) -> Iterator[Row]:
    """All images of an ``.npz`` file in a fixed order, without reading the images.

    Raises:
        Unreadable: damaged, no ``images`` key, or labels that do not fit the rows.
    """
    with _contained(), zipfile.ZipFile(path) as archive:
        splits = _splits(archive)
        found = [list(_rows_of(archive, path, split)) for split in splits]
    for part in found:
        yield from part


def class_names(path: Path) -> tuple[str, ...]:
    """Names under the key ``classes``; empty if there are none.

    Raises:
        Unreadable: damaged.
    """
    with _contained(), zipfile.ZipFile(path) as archive:
        names = _optional(archive, "classes")
    return () if names is None else tuple(str(name) for name in names.ravel())


@contextmanager
def _contained() -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise Unreadable(f"cannot be opened: {error.strerror}") from None
    except _BROKEN as error:
        raise Unreadable(f"damaged array file ({type(error).__name__})") from None


def _header(stream: Stream) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, Fortran order, type) of an array that has not been read."""
    version = npy.read_magic(stream)
    layout = "<H" if version == (1, 0) else "<I"
    length = stream.read(struct.calcsize(layout))
    if (size := struct.unpack(layout, length)[0]) > _MAX_HEADER:
        raise Unreadable(f"header claims {size} bytes, the limit is {_MAX_HEADER}")  # NumPy would unpack them first
    header = BytesIO(length + stream.read(size))
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers written by Python 2
        shape, fortran, dtype = read_header(header)
    if dtype.hasobject:
        raise Unreadable("pickled objects are never opened")
    if dtype.itemsize == 0:
        raise Unreadable(f"values of type {dtype} are not intensities")
    return shape, fortran, dtype


def _load(stream: Stream, limits: Limits) -> np.ndarray:
    shape, fortran, dtype = _header(stream)
    check_shape(shape, dtype.itemsize, limits)
    raw = read_exactly(stream, prod(shape) * dtype.itemsize)
    return raw.view(dtype).reshape(shape, order="F" if fortran else "C")


def _row(path: Path, record: Record, limits: Limits, what: str) -> np.ndarray:
    if record.item is None:
        if key := _only_array(path):
            with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as stream:
                return _load(stream, limits)
        first = next(rows(path), None)  # says what is wrong with the file
        raise Unreadable("no images in the file" if first is None else "an .npz file is read row by row")
    state = path.stat()
    images = _member(path, f"{record.split}_{what}" if record.split else what, state.st_mtime_ns, limits)
    if not 0 <= record.item < len(images):
        raise Unreadable(f"row {record.item} of {len(images)}")
    return images[record.item].copy()  # a view would let a caller write into the cache


def _only_array(path: Path) -> str:
    """Key of the only array of numbers with two axes or more in a file without rows; empty if there is no such one."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        if any(_IMAGES.fullmatch(name.removesuffix(".npy")) for name in names):
            return ""
        found = [name.removesuffix(".npy") for name in names if _holds_numbers(archive, name)]
    return found[0] if len(found) == 1 else ""


def _holds_numbers(archive: zipfile.ZipFile, name: str) -> bool:
    with archive.open(name) as stream:
        try:
            shape, _, dtype = _header(stream)
        except Unreadable:  # pickled objects beside the array stay shut
            return False
    return len(shape) > 1 and dtype.kind in "biuf"


@lru_cache(maxsize=3)
def _member(path: Path, key: str, changed: int, limits: Limits) -> np.ndarray:
    """One array of an ``.npz``, kept for the next row; ``changed`` makes an overwritten file a new one."""
    large = Limits(voxels=limits.size, size=limits.size)  # the limit on voxels is for one image, not for all rows
    with zipfile.ZipFile(path) as archive:
        if f"{key}.npy" not in archive.namelist():
            raise Unreadable(f"no key {key}")
        with archive.open(f"{key}.npy") as stream:
            return _load(stream, large)


def _guess(shape: tuple[int, ...]) -> tuple[str, ...]:
    if len(shape) == 3 and (shape[0] in (3, 4) or shape[-1] == 4):
        return (f"array of shape {shape} taken for a volume: colours are understood as a last axis of length 3",)
    return ()


def _channels_first(array: np.ndarray) -> np.ndarray:
    if array.ndim in (3, 4) and array.shape[-1] in (1, 3):
        return np.moveaxis(array, -1, 0)
    if array.ndim not in (2, 3):
        raise Unreadable(f"shape {array.shape} is neither an image nor a volume")
    return array[None]


def _splits(archive: zipfile.ZipFile) -> list[str]:
    keys = [name.removesuffix(".npy") for name in archive.namelist()]
    splits = [match["split"] or "" for key in keys if (match := _IMAGES.fullmatch(key))]
    if not splits:
        raise Unreadable("no key `images` or `..._images`, and not one array alone")
    return splits


def _optional(archive: zipfile.ZipFile, key: str) -> np.ndarray | None:
    if f"{key}.npy" not in archive.namelist():
        return None
    with archive.open(f"{key}.npy") as stream:
        return _load(stream, DEFAULT_LIMITS)


def _rows_of(archive: zipfile.ZipFile, path: Path, split: str) -> Iterator[Row]:
    prefix = f"{split}_" if split else ""
    with archive.open(f"{prefix}images.npy") as stream:
        shape, *_ = _header(stream)
    count = shape[0] if shape else 0
    labels = _labels(_optional(archive, f"{prefix}labels"), count)
    patients = _patients(archive, prefix, path.stem, count)
    masked = _masked(archive, prefix, count)
    for item in range(count):
        yield Row(item, split, labels[item], patients[item], masked)


def _masked(archive: zipfile.ZipFile, prefix: str, count: int) -> bool:
    if f"{prefix}masks.npy" not in archive.namelist():
        return False
    with archive.open(f"{prefix}masks.npy") as stream:
        shape, *_ = _header(stream)
    if shape[:1] != (count,):
        raise Unreadable(f"masks of shape {shape} for {count} images, expected one mask per image")
    return True


def _labels(labels: np.ndarray | None, count: int) -> list[int]:
    if labels is None:
        return [-1] * count
    if labels.shape not in ((count,), (count, 1)):
        raise Unreadable(f"labels of shape {labels.shape} for {count} images, expected one class per image")
    if labels.dtype.kind not in "iu":
        raise Unreadable(f"labels of type {labels.dtype}, expected whole numbers")
    return labels.ravel().tolist()


def _patients(archive: zipfile.ZipFile, prefix: str, stem: str, count: int) -> list[str]:
    for key in _PATIENT_KEYS + _GROUP_KEYS:
        values = _optional(archive, prefix + key)
        if values is None:
            continue
        if values.shape not in ((count,), (count, 1)):
            raise Unreadable(f"key {prefix}{key} has shape {values.shape} for {count} images")
        owner = f"{stem}/" if key in _GROUP_KEYS else ""  # groups are numbered within one file
        return [f"{owner}{value}" for value in values.ravel()]
    return [""] * count
