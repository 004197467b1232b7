"""Reading stored arrays in windows; every chunk is checked against its hash before it is believed."""

import os
import threading
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ssl_med.data.arrays import npy_rows
from ssl_med.data.seal import Damaged, Read, Seal, check_run, read_seal

Window = tuple[slice, ...]


class StoredArray:
    """One stored array, open for reading in windows.

    Args:
        array: the voxels (c, \\*space) as blosc2 or numpy sees them.
        read: the bytes behind them.
        seal: the table of their hashes.
        verify: check hashes.
    """

    def __init__(self, array: Any, read: Read, seal: Seal, verify: bool = True) -> None:
        self.array, self.bytes, self.seal, self.verify = array, read, seal, verify
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype = np.dtype(array.dtype)
        self.nbytes = prod(self.shape) * self.dtype.itemsize
        self._mapped = isinstance(array, np.ndarray)

    def is_current(self) -> bool:
        """Whether what was opened is still what lies there."""
        return True

    def read(self, window: Window, out: np.ndarray | None = None, lent: bool = False) -> np.ndarray:
        """Voxels (c, \\*size) of a window, one slice per axis of space.

        Args:
            window: first and last voxel along each axis.
            out: array to fill.
            lent: what is given may lie in memory that the next such read of this thread uses again.

        Raises:
            Damaged: a chunk that the window touches has changed.
        """
        if self.verify:
            for first, last in self._npy_runs(window) if self._mapped else self._runs(window):
                check_run(self.bytes, self.seal, first, last)
        voxels = self.array[(slice(None), *window)] if self._mapped else self._decode(window, lent)
        if out is not None:
            np.copyto(out, voxels)
            return out
        return np.array(voxels) if self._mapped else voxels

    def _decode(self, window: Window, lent: bool) -> np.ndarray:
        shape = (self.shape[0], *(part.stop - part.start for part in window))
        voxels = _lent(shape, self.dtype) if lent else np.empty(shape, self.dtype)
        corners = (0, *(part.start for part in window)), (self.shape[0], *(part.stop for part in window))
        try:  # below the operator [], which takes new memory for every crop
            return self.array.get_slice_numpy(voxels, corners)
        except (RuntimeError, ValueError) as error:
            raise Damaged(f"its voxels cannot be decoded: {error}") from None

    def _runs(self, window: Window) -> list[tuple[int, int]]:
        """First and last number of the chunks that a window touches, for every row of chunks."""
        sizes = self.array.chunks[1:]
        grid = [-(-n // size) for n, size in zip(self.shape[1:], sizes, strict=True)]
        touched = [range(w.start // n, (w.stop - 1) // n + 1) for w, n in zip(window, sizes, strict=True)]
        starts = np.zeros(1, np.int64)
        for axis in range(len(grid) - 1):
            starts = np.add.outer(starts, np.array(touched[axis]) * prod(grid[axis + 1 :])).ravel()
        return [(int(s) + touched[-1][0], int(s) + touched[-1][-1]) for s in starts]

    def _npy_runs(self, window: Window) -> list[tuple[int, int]]:
        """First and last number of the hashed rows that a window touches, for every plane."""
        rows, _ = npy_rows(self.shape, self.dtype.itemsize)
        spans = -(-self.shape[-2] // rows)
        planes = np.arange(prod(self.shape[:-2])).reshape(self.shape[:-2])[(slice(None), *window[:-2])].ravel()
        first, last = window[-2].start // rows, (window[-2].stop - 1) // rows
        return [(int(p) * spans + first, int(p) * spans + last) for p in planes]


class StoredFile(StoredArray):
    """A stored array in a file of its own.

    Args:
        path: of the file; its suffix says the format.
        seal: as the index knows it; empty: any.
        verify: check hashes.

    Raises:
        Damaged: the file is missing, cut off, changed, or another one.
    """

    def __init__(self, path: Path, seal: str = "", verify: bool = True) -> None:
        self.path, self.file = path, -1
        try:
            self.file = os.open(path, os.O_RDONLY)
            stat = os.fstat(self.file)
        except OSError as error:
            raise Damaged(f"its file cannot be opened: {error.strerror}") from None
        self.state = _state(stat)
        if stat.st_size == 0:
            raise Damaged("its file is empty")
        read = partial(
            _pread, self.file
        )  # no bound method: in a cycle the file would stay open until the next collection
        table = read_seal(read, stat.st_size, seal if verify else "")  # before a decoder sees the header
        if path.suffix == ".npy":
            content = np.memmap(path, np.uint8, "r").data
            super().__init__(_open_npy(path), lambda a, n: content[a : a + n], table, verify)
        else:
            super().__init__(_open_b2nd(path, verify), read, table, verify)

    def __del__(self) -> None:
        if self.file >= 0:
            os.close(self.file)

    def is_current(self) -> bool:
        """The path still leads to the file that was opened: prepare may have written another one."""
        return _is_still(self.path, self.state)

    def decoded(self) -> "Decoded":
        """All of it in memory, the file closed.

        Raises:
            Damaged: a chunk has changed.
        """
        whole = tuple(slice(0, n) for n in self.shape[1:])
        return Decoded(self.read(whole), self)


class Decoded(StoredArray):
    """An array in memory, whose hashes were checked when it was read.

    Args:
        voxels: (c, \\*space).
        file: where they come from.
    """

    def __init__(self, voxels: np.ndarray, file: StoredFile) -> None:
        super().__init__(voxels, file.bytes, file.seal, verify=False)
        self.path, self.state = file.path, file.state
        del self.bytes  # it belongs to a file that will be closed

    def is_current(self) -> bool:
        """The file still is what was read."""
        return _is_still(self.path, self.state)


def _open_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, OSError) as error:
        raise Damaged(f"its header cannot be read: {type(error).__name__}") from None


def _open_b2nd(path: Path, verify: bool) -> Any:
    """Mapped where hashes are checked: the check has read the chunks with few large reads by then, and decoding from
    the map copies nothing. Without the check a map would read page by page from a cold disk.
    """
    import blosc2

    settings: Any = {"mode": "r", "mmap_mode": "r" if verify else None, "dparams": {"nthreads": 1}}
    try:
        return blosc2.open(str(path), **settings)
    except (RuntimeError, ValueError, OSError) as error:
        raise Damaged(f"its header cannot be read: {type(error).__name__}") from None


def _is_still(path: Path, state: tuple[int, int, int, int]) -> bool:
    try:
        return _state(os.stat(path)) == state  # noqa: PTH116 (a Path costs more than the call)
    except OSError:
        return False


def _state(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _pread(file: int, start: int, length: int) -> memoryview:
    content = _scratch("packed", length)
    try:
        return content[: os.preadv(file, [content], start)]
    except OSError as error:  # a disk or a network drive that gives up on this file
        raise Damaged(f"its file cannot be read: {error.strerror}") from None


_held = threading.local()


def _scratch(use: str, size: int) -> memoryview:
    """Memory of this thread that is used again: fresh pages would cost as much as the hash."""
    held = getattr(_held, use, b"")
    if len(held) < size:
        held = bytearray(max(size, 1 << 20))
        setattr(_held, use, held)
    return memoryview(held)[:size]


def _lent(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(_scratch("voxels", prod(shape) * dtype.itemsize), dtype).reshape(shape)
