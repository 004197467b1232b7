"""Hashes over the parts of a stored file, so that a flipped bit is seen when the part is read and not before.

Neither blosc2 nor ``.npy`` notices a changed byte: voxels come back wrong without an error. Every stored file therefore
ends with a table: where its parts lie (the chunks that are read together, then all bytes between them) and the xxh3-64
hash of each, followed by voxels worth cropping around. Both formats ignore bytes behind their own end, so other
programs still open the files. The hash of the table, the *seal*, stands in the index of the store: table, file and
index belong together, and a file that was exchanged during a run is known as well as a damaged one.

Layout behind the array: spans (n, 2) int64 | hashes (n,) uint64 | points uint32 or int64 | tail of 40 bytes: chunks,
other parts, points, bytes per point as int64, then ``sslseal1``.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

_TAIL = struct.Struct("<4q8s")
_MAGIC = b"sslseal1"
_LARGEST_TABLE = 1 << 30


class Damaged(Exception):
    """A stored file is not what was written. The message names the id of the row, never a path."""


@dataclass(frozen=True)
class Seal:
    """The table at the end of a stored file.

    Attributes:
        spans: (n, 2) offset and length of every part in bytes; the first ``chunks`` are the chunks in their order.
        hashes: xxh3-64 of every part.
        chunks: number of chunks.
        points: flat indices of voxels worth cropping around.
        name: hash of the table, 16 hexadecimal digits.
    """

    spans: np.ndarray
    hashes: np.ndarray
    chunks: int
    points: np.ndarray
    name: str


def append_seal(path: Path, chunks: Sequence[tuple[int, int]], points: np.ndarray) -> str:
    """Hash the parts of a file and write the table behind them.

    Args:
        path: of the file, complete but for the table.
        chunks: offset and length of each chunk, increasing; (0, 0) for a chunk without bytes of its own.
        points: flat indices of voxels.

    Returns:
        The name of the seal.
    """
    content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    others = _between(chunks, len(content))
    spans = np.array([*chunks, *others], np.int64).reshape(-1, 2)
    hashes = np.array([_hash(content[a : a + n]) for a, n in spans.tolist()], np.uint64)
    small = points.astype(np.uint32 if points.max(initial=0) < 1 << 32 else np.int64)
    table = spans.tobytes() + hashes.tobytes() + small.tobytes()
    table += _TAIL.pack(len(chunks), len(others), len(small), small.itemsize, _MAGIC)
    with path.open("ab") as file:
        file.write(table)
    return xxhash.xxh3_64_hexdigest(table)


def split_seal(content: bytes) -> tuple[bytes, bytes]:
    """A stored file in two: the array as its format knows it, and the table.

    Raises:
        Damaged: there is no whole table.
    """
    if len(content) < _TAIL.size or content[-8:] != _MAGIC:
        raise Damaged("its table of hashes is cut off")
    chunks, others, count, width, _ = _TAIL.unpack(content[-_TAIL.size :])
    end = len(content) - (24 * (chunks + others) + count * width + _TAIL.size)
    return content[:end], content[end:]


def _between(chunks: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """All bytes that no chunk covers: the format's own header, index and trailer."""
    found, end = [], 0
    for start, length in chunks:
        if length and start > end:
            found.append((end, start - end))
        end = max(end, start + length)
    return [*found, (end, size - end)] if size > end else found


def _hash(part: np.ndarray | memoryview) -> int:
    data: Any = part  # any buffer, whatever the stubs say
    return xxhash.xxh3_64_intdigest(data)


Read = Callable[[int, int], memoryview]
"""``read(start, length)``: bytes of a stored file, good until the next call; fewer where the file ends."""


def read_seal(read: Read, size: int, expected: str = "") -> Seal:
    """Read the table of a file and check all parts but the chunks.

    Args:
        read: bytes of the file.
        size: bytes of the file.
        expected: name that the index knows; empty: any.

    Raises:
        Damaged: there is no whole table, it is not the expected one, or a part outside the chunks has changed.
    """
    tail = bytes(read(max(size - _TAIL.size, 0), _TAIL.size))
    if len(tail) < _TAIL.size or tail[-8:] != _MAGIC:
        raise Damaged("its table of hashes is cut off")
    chunks, others, count, width, _ = _TAIL.unpack(tail)
    parts, length = chunks + others, 24 * (chunks + others) + count * width + _TAIL.size
    if min(chunks, others, count) < 0 or width not in (4, 8) or length > min(size, _LARGEST_TABLE):
        raise Damaged("its table of hashes is damaged")
    table = bytes(read(size - length, length))
    name = xxhash.xxh3_64_hexdigest(table)
    if expected and name != expected:
        raise Damaged("it is not the file that the index knows")
    spans = np.frombuffer(table, np.int64, 2 * parts).reshape(-1, 2)
    hashes = np.frombuffer(table, np.uint64, parts, 16 * parts)
    points = np.frombuffer(table, np.uint32 if width == 4 else np.int64, count, 24 * parts)
    seal = Seal(spans, hashes, chunks, points, name)
    for number in range(chunks, parts):
        check_run(read, seal, number, number)
    return seal


def check_run(read: Read, seal: Seal, first: int, last: int) -> None:
    """Read parts ``first`` to ``last``, which lie behind one another, at once, and compare their hashes.

    Raises:
        Damaged: one of them has changed, or is cut off.
    """
    spans, hashes = seal.spans[first : last + 1].tolist(), seal.hashes[first : last + 1].tolist()
    held = [(start, length, known) for (start, length), known in zip(spans, hashes, strict=True) if length]
    if not held:
        return
    begin, end = held[0][0], held[-1][0] + held[-1][1]
    content = read(begin, end - begin)
    for start, length, known in held:
        if _hash(content[start - begin : start - begin + length]) != known:
            raise Damaged("its bytes have changed since they were written")
