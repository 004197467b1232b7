"""Arrays to disk: written once, whole or not at all, in chunks that follow the crops they will be read in.

``b2nd`` (default): chunks of lz4 over bit-shuffled integers. The chunk is what is read and checked together, the block
inside it what is decoded. Their size follows the crop, see :func:`chunks_for`. ``npy``: the bare voxels, mapped into
memory; about three times the disk, and the fastest where it all fits in the page cache.
"""

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssl_med.data.seal import append_seal

Format = Literal["b2nd", "npy"]
DEFAULT_CROP = {2: 224, 3: 96}
_BLOCK = {2: 64, 3: 16}
_UNIT = {2: 128, 3: 32}
_NPY_SPAN = 32768  # bytes of .npy that are hashed together: small, since a crop reads short rows far apart
_NO_POINTS = np.empty(0, np.int64)


def chunks_for(shape: tuple[int, ...], crop: int | None = None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunk and block of an array (c, \\*space) that is read in crops of ``crop`` voxels.

    In 3D a chunk has two thirds of the crop along each axis, in multiples of 32 (96: 64; 64: 32; 160: 96): with larger
    ones a crop reads mostly what it does not need, with smaller ones it does many reads. In 2D an image is small, and a
    chunk has twice the crop, in multiples of 128 (224: 512). Blocks have 16 voxels in 3D and 64 in 2D.
    """
    axes = len(shape) - 1
    crop, unit = crop or DEFAULT_CROP[axes], _UNIT[axes]
    edge = max(unit, crop * 2 // 3 // unit * unit) if axes == 3 else -(-2 * crop // unit) * unit
    chunks = (shape[0], *(min(edge, size) for size in shape[1:]))
    return chunks, (shape[0], *(min(_BLOCK[axes], size) for size in chunks[1:]))


def write_array(path: Path, array: np.ndarray, crop: int | None = None, points: np.ndarray = _NO_POINTS) -> str:
    """Write (c, \\*space) through a temporary file, so that a path is whole or absent, also after a power cut.

    Args:
        path: its suffix says the format, ``.b2nd`` or ``.npy``.
        array: the voxels.
        crop: voxels along an axis of the crops it will be read in.
        points: flat indices over space of voxels worth cropping around.

    Returns:
        The seal, see :mod:`ssl_med.data.seal`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    temporary.unlink(missing_ok=True)
    voxels = np.ascontiguousarray(array)
    spans = _write_b2nd(temporary, voxels, crop) if path.suffix == ".b2nd" else _write_npy(temporary, voxels)
    seal = append_seal(temporary, spans, points)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    return seal


def _write_b2nd(path: Path, voxels: np.ndarray, crop: int | None) -> list[tuple[int, int]]:
    import blosc2

    chunks, blocks = chunks_for(voxels.shape, crop)
    params = {"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": [blosc2.Filter.BITSHUFFLE], "nthreads": 1}
    how: Any = {"chunks": chunks, "blocks": blocks, "cparams": params}
    array: Any = blosc2.empty(voxels.shape, voxels.dtype, **how)
    array[...] = voxels  # at once: asarray works its settings out anew for every chunk
    content: bytes = array.to_cframe()  # packed in memory: on disk every chunk would write the table of chunks anew
    path.write_bytes(content)
    spans, end = [], 0
    for number in range(array.schunk.nchunks):
        chunk = array.schunk.get_chunk(number)
        # chunks lie in their order, nearly always without a gap; one of a single value may have no bytes at all
        start = end if content.startswith(chunk, end) else content.find(chunk, end)
        spans.append((start, len(chunk)) if start >= 0 else (0, 0))
        end = max(end, sum(spans[-1]))
    return spans


def _write_npy(path: Path, voxels: np.ndarray) -> list[tuple[int, int]]:
    with path.open("wb") as file:
        np.save(file, voxels)
    start = path.stat().st_size - voxels.nbytes
    rows, width = npy_rows(voxels.shape, voxels.itemsize)
    height = voxels.shape[-2]
    planes = range(start, start + voxels.nbytes, height * width)
    return [(p + r * width, min(rows, height - r) * width) for p in planes for r in range(0, height, rows)]


def npy_rows(shape: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Rows of a ``.npy`` that are hashed together, always of one plane, and bytes of a row."""
    width = shape[-1] * itemsize
    return max(1, min(_NPY_SPAN // width, shape[-2])), width
