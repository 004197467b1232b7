"""MetaImage volumes (``.mha``, ``.mhd`` with ``.raw`` or ``.zraw``), read to the last byte into RAS order.

The format: https://itk.org/Wiki/ITK/MetaIO/Documentation. Headers are parsed here, within limits: SimpleITK gives wrong
voxels for a file that is cut short.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from os import SEEK_END
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ssl_med.data.readers.gate import DEFAULT_LIMITS, Limits, check_shape, read_exactly
from ssl_med.data.readers.geometry import LPS_TO_RAS, affine_from, placed
from ssl_med.data.readers.packed import Inflated
from ssl_med.data.readers.text_header import Lines, beside, numbers, whole_numbers
from ssl_med.data.record import Image, Record, SetAside, Unreadable

_TYPES = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4"}
_TYPES |= {"ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8"}
_MODALITIES = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR", "MET_MOD_US": "US", "MET_MOD_NM": "NM"}
_MAX_HEADER_SKIP = 1 << 30


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]  # (x, y) or (x, y, z)
    channels: int
    dtype: np.dtype
    affine: np.ndarray  # RAS
    packed: bool
    skip: int  # bytes before the voxels; -1 = the voxels are the last bytes of the file
    file: str
    modality: str


def read(record: Record, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Read a MetaImage.

    Uncompressed voxels carry no checksum: a flipped bit in them cannot be known.

    Raises:
        Unreadable: not MetaImage, cut short, damaged, too large, a time series, or without sound geometry.
    """
    path = record.files[0]
    with path.open("rb") as raw:
        header = _header(Lines(raw))
        space = (header.channels, *header.shape)
        check_shape(space, header.dtype.itemsize, limits)
        with _voxels(path, raw, header) as stream:
            data = read_exactly(stream, prod(space) * header.dtype.itemsize)
    stored = data.view(header.dtype).reshape(space, order="F")
    return placed(np.moveaxis(stored, 0, -1), header.affine, modality=header.modality)


def grid_of(path: Path, limits: Limits = DEFAULT_LIMITS) -> tuple[tuple[int, ...], np.ndarray, str]:
    """Shape (x, y) or (x, y, z), affine and modality of a file, from its header alone.

    Raises:
        Unreadable: a broken header, or one that claims too much.
    """
    with path.open("rb") as raw:
        header = _header(Lines(raw))
    check_shape((header.channels, *header.shape), header.dtype.itemsize, limits)
    return header.shape, header.affine, header.modality


def voxel_file(path: Path) -> Path | None:
    """The second file that holds the voxels; None where they follow the header.

    Raises:
        Unreadable: a broken header, or no such file.
    """
    with path.open("rb") as raw:
        name = _header(Lines(raw)).file
    return None if name == "LOCAL" else beside(path, name)


@contextmanager
def _voxels(path: Path, raw: BinaryIO, header: _Header) -> Iterator[BinaryIO | Inflated]:
    if header.file == "LOCAL":
        yield Inflated(raw) if header.packed else raw
        return
    with beside(path, header.file).open("rb") as detached:
        if header.skip < 0:
            size = header.channels * prod(header.shape) * header.dtype.itemsize
            detached.seek(max(0, detached.seek(0, SEEK_END) - size))
        else:
            detached.seek(header.skip)
        yield Inflated(detached) if header.packed else detached


def _fields(lines: Lines) -> dict[str, str]:
    """Everything up to ``ElementDataFile``, which by the format comes last."""
    fields: dict[str, str] = {}
    while "ElementDataFile" not in fields:
        key, equals, value = lines.next().partition("=")
        key = key.strip()
        if not equals and (key or not fields):
            raise Unreadable("not a MetaImage file")
        if key in fields:
            raise Unreadable("a header field is given twice")
        if key:
            fields[key] = value.strip()
        if len(fields) == 1 and "NDims" not in fields and "ObjectType" not in fields and "Comment" not in fields:
            raise Unreadable("not a MetaImage file")
    return fields


def _header(lines: Lines) -> _Header:
    fields = _fields(lines)
    axes = whole_numbers(fields.get("NDims", ""), "NDims", 1)[0]
    if not 2 <= axes <= 4:
        raise Unreadable(f"{axes} axes, expected 2 or 3")
    _refuse_unknown(fields)
    shape, affine = _grid(fields, axes)
    channels = whole_numbers(fields.get("ElementNumberOfChannels", "1"), "ElementNumberOfChannels", 1)[0]
    packed = _truth(fields, "CompressedData")
    skip = whole_numbers(fields.get("HeaderSize", "0"), "HeaderSize", 1)[0]
    if not -1 <= skip <= _MAX_HEADER_SKIP or (skip and (packed or fields["ElementDataFile"] == "LOCAL")):
        raise Unreadable(f"header field HeaderSize of {skip} is impossible here")
    modality = _MODALITIES.get(fields.get("Modality", ""), "")
    return _Header(shape, channels, _dtype(fields), affine, packed, skip, fields["ElementDataFile"], modality)


def _refuse_unknown(fields: dict[str, str]) -> None:
    if fields.get("ObjectType", "Image") != "Image":
        raise Unreadable("a MetaIO object that is no image")
    if not _truth(fields, "BinaryData", default="True"):
        raise Unreadable("voxels as text, expected binary")
    name = fields["ElementDataFile"]
    if name.startswith("LIST") or "%" in name:
        raise Unreadable("voxels spread over several files, expected one")
    for key, neutral in (("ElementToIntensityFunctionSlope", 1.0), ("ElementToIntensityFunctionOffset", 0.0)):
        if key in fields and numbers(fields[key], key, 1)[0] != neutral:
            raise Unreadable(f"header field {key}: some programs apply it and some do not, expected none")


def _truth(fields: dict[str, str], *keys: str, default: str = "False") -> bool:
    value = next((fields[key] for key in keys if key in fields), default).lower()
    if value not in ("true", "false", "1", "0"):
        raise Unreadable(f"header field {keys[0]} is neither True nor False")
    return value in ("true", "1")


def _dtype(fields: dict[str, str]) -> np.dtype:
    name = fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
    if name not in _TYPES:
        raise Unreadable("unknown ElementType in the header")
    big = _truth(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    return np.dtype(_TYPES[name]).newbyteorder(">" if big else "<")


def _grid(fields: dict[str, str], axes: int) -> tuple[tuple[int, ...], np.ndarray]:
    shape = whole_numbers(fields.get("DimSize", ""), "DimSize", axes)
    spacing = _field(fields, np.ones(axes), "ElementSpacing", "ElementSize")
    matrix = _field(fields, np.eye(axes).ravel(), "TransformMatrix", "Rotation", "Orientation").reshape(axes, axes)
    origin = _field(fields, np.zeros(axes), "Offset", "Position", "Origin")
    if not (spacing > 0).all():
        raise Unreadable(f"spacing {tuple(spacing.tolist())} is not positive")
    if axes == 4 and shape[3] != 1:
        raise SetAside("time series, 4 axes")
    axes = min(axes, 3)
    steps = matrix[:axes, :axes].T * spacing[:axes]  # row i of the matrix is the direction of axis i
    return shape[:axes], LPS_TO_RAS @ affine_from(steps, origin[:axes])


def _field(fields: dict[str, str], default: np.ndarray, *keys: str) -> np.ndarray:
    key = next((key for key in keys if key in fields), None)
    return default if key is None else numbers(fields[key], key, default.size)
