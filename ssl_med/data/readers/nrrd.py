"""NRRD volumes (``.nrrd``, ``.nhdr`` with the voxels in a second file), read to the last byte into RAS order.

The format: https://teem.sourceforge.net/nrrd/format.html. Headers are parsed here, within limits, before anything is
allocated.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from os import SEEK_END
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ssl_med.data.readers.gate import DEFAULT_LIMITS, Limits, Stream, check_shape, read_exactly
from ssl_med.data.readers.geometry import placed
from ssl_med.data.readers.nrrd_grid import Grid, grid_of
from ssl_med.data.readers.packed import bunzipped, gunzipped, skip
from ssl_med.data.readers.text_header import Lines, beside, whole_numbers
from ssl_med.data.record import Image, Record, Unreadable

_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_DTYPES = {name: np.dtype(code) for code, names in _TYPES.items() for name in names}
_ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_MAX_SKIP = 1 << 30


@dataclass(frozen=True)
class _Header:
    grid: Grid
    dtype: np.dtype
    encoding: str
    lines: int  # to skip before the packed bytes
    bytes: int  # to skip before the voxels; -1 = the voxels are the last bytes of the file
    file: str | None  # None: the voxels follow the header


def read(record: Record, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Read an NRRD file with raw, gzip or bzip2 voxels.

    Raw voxels carry no checksum: a flipped bit in them cannot be known.

    Raises:
        Unreadable: not NRRD, cut short, damaged, too large, a time series, or without sound geometry.
    """
    path = record.files[0]
    with path.open("rb") as raw:
        header = _header(raw)
        check_shape(header.grid.sizes, header.dtype.itemsize, limits)
        with _voxels(path, raw, header) as stream:
            data = read_exactly(stream, prod(header.grid.sizes) * header.dtype.itemsize)
    stored = data.view(header.dtype).reshape(header.grid.sizes, order="F")
    return placed(header.grid.channels_last(stored), header.grid.affine, header.grid.warnings)


def grid_of_file(path: Path, limits: Limits = DEFAULT_LIMITS) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape (x, y) or (x, y, z) and affine of a file, from its header alone.

    Raises:
        Unreadable: a broken header, or one that claims too much.
    """
    with path.open("rb") as raw:
        header = _header(raw)
    check_shape(header.grid.sizes, header.dtype.itemsize, limits)
    return header.grid.space, header.grid.affine


def voxel_file(path: Path) -> Path | None:
    """The second file that holds the voxels; None where they follow the header.

    Raises:
        Unreadable: a broken header, or no such file.
    """
    with path.open("rb") as raw:
        name = _header(raw).file
    return None if name is None else beside(path, name)


@contextmanager
def _voxels(path: Path, raw: BinaryIO, header: _Header) -> Iterator[Stream]:
    detached: AbstractContextManager[BinaryIO] = nullcontext(raw)
    if header.file is not None:
        detached = beside(path, header.file).open("rb")
    with detached as file:
        lines = Lines(file)
        for _ in range(header.lines):
            lines.next()
        if header.bytes < 0:
            file.seek(max(file.tell(), file.seek(0, SEEK_END) - prod(header.grid.sizes) * header.dtype.itemsize))
        with _unpacked(file, header.encoding) as stream:
            skip(stream, header.bytes)
            yield stream


def _unpacked(file: BinaryIO, encoding: str) -> AbstractContextManager[Stream]:
    if encoding == "gzip":
        return gunzipped(file)
    return bunzipped(file) if encoding == "bzip2" else nullcontext(file)


def _fields(raw: BinaryIO) -> dict[str, str]:
    """Fields up to the empty line, their names in lower case; a detached header may also end with its file."""
    magic = raw.readline(16).rstrip(b"\r\n")
    if len(magic) != 8 or not magic.startswith(b"NRRD000") or magic[7:] not in b"12345":
        raise Unreadable("not an NRRD file")
    lines, fields = Lines(raw), {}
    while not _at_end(raw, fields) and (line := lines.next()):
        name, colon, value = line.partition(":")
        if line.startswith("#") or value.startswith("="):
            continue  # a comment, or a key and value that is free text
        if not colon:
            raise Unreadable("a line of the NRRD header is no field")
        name = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}.get(name.lower(), name)
        if name.lower() in fields:
            raise Unreadable("a header field is given twice")
        fields[name.lower()] = value.strip()
    return fields


def _at_end(raw: BinaryIO, fields: dict[str, str]) -> bool:
    if "data file" not in fields:
        return False
    place = raw.tell()
    ended = not raw.read(1)
    raw.seek(place)
    return ended


def _header(raw: BinaryIO) -> _Header:
    fields = _fields(raw)
    kind = " ".join(fields.get("type", "").lower().split())
    if kind not in _DTYPES:
        raise Unreadable("unknown type in the header")
    encoding = _ENCODINGS.get(fields.get("encoding", "").lower())
    if encoding is None:
        raise Unreadable("encoding is not raw, gzip or bzip2")
    file = fields.get("data file")
    if file is not None and (file.startswith("LIST") or "%" in file):
        raise Unreadable("voxels spread over several files, expected one")
    lines = whole_numbers(fields.get("line skip", "0"), "line skip", 1)[0]
    skipped = whole_numbers(fields.get("byte skip", "0"), "byte skip", 1)[0]
    if lines < 0 or not -1 <= skipped <= _MAX_SKIP or (skipped < 0 and encoding != "raw"):
        raise Unreadable("line skip or byte skip is impossible")
    return _Header(grid_of(fields), _ordered(_DTYPES[kind], fields), encoding, lines, skipped, file)


def _ordered(dtype: np.dtype, fields: dict[str, str]) -> np.dtype:
    endian = fields.get("endian", "").lower()
    if dtype.itemsize == 1:
        return dtype
    if endian not in ("little", "big"):
        raise Unreadable("header field endian is neither little nor big")
    return dtype.newbyteorder("<" if endian == "little" else ">")
