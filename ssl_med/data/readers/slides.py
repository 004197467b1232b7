"""Whole-slide images as tiles of tissue, through ``tiffslide``: no slide is ever held in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Pillow

from ssl_med.data.readers.gate import DEFAULT_LIMITS, Limits, check_shape
from ssl_med.data.readers.packed import Bounded
from ssl_med.data.readers.raster import contained
from ssl_med.data.record import Image, Record, Tiling, Unreadable
from ssl_med.errors import UserError

if TYPE_CHECKING:
    from tiffslide import TiffSlide

_STRIP = 1 << 22
"""Most pixels of the smallest level held at a time while tissue is looked for."""

_OVERVIEW = 64
"""A tile is judged by about this many pixels along its side, if the slide has a level that coarse."""


DEFAULT_TILING = Tiling()


def tiles_of(path: Path, tiling: Tiling = DEFAULT_TILING, limits: Limits = DEFAULT_LIMITS) -> int:
    """Number of tiles with tissue, so that a record may ask for any ``item`` below it.

    Tissue is what is coloured (saturation above 0.07) or grey and not white, but not the black that scanners put around
    a scan. It is looked for on a coarse level, strip by strip.

    Raises:
        UserError: tiffslide is not installed.
        Unreadable: no slide, damaged, or too large.
    """
    with contained():
        return len(_tissue(path, path.stat().st_mtime_ns, tiling, limits))


def read(record: Record, limits: Limits = DEFAULT_LIMITS, tiling: Tiling | None = None) -> Image:
    """Read one tile, (3, size, size) uint8 with its spacing in mm; ``record.item`` counts tiles with tissue.

    Args:
        record: names the slide; its ``tiling`` counts where none is given.
        limits: how large a tile may be.
        tiling: how the slide is cut.

    Raises:
        UserError: tiffslide is not installed.
        Unreadable: no slide, damaged, or no such tile.
    """
    path, item, tiling = record.files[0], record.item, tiling or record.tiling or DEFAULT_TILING
    if item is None:
        raise Unreadable("a slide is read tile by tile")
    check_shape((3, tiling.size, tiling.size), 1, limits)
    with contained():
        tiles = _tissue(path, path.stat().st_mtime_ns, tiling, limits)
        if not 0 <= item < len(tiles):
            raise Unreadable(f"tile {item} of {len(tiles)}")
        with _opened(path) as slide:
            grid = _Grid.of(slide, tiling)
            array = grid.tile(slide, tiles[item], limits)
    notes = () if grid.known else ("no pixel size in the slide",)
    return Image(np.moveaxis(array, -1, 0), grid.spacing, warnings=notes)


@dataclass(frozen=True)
class _Grid:
    """Tiles of a slide, numbered row by row; ``side`` in pixels of the finest level."""

    size: int
    side: tuple[float, float]  # y, x
    shape: tuple[int, int]  # rows, columns
    spacing: tuple[float, float]  # mm, y, x
    known: bool

    @classmethod
    def of(cls, slide: "TiffSlide", tiling: Tiling) -> "_Grid":
        mpp: list[Any] = [slide.properties.get(f"tiffslide.mpp-{axis}") for axis in "yx"]
        known = all(isinstance(step, int | float) and 0 < step < float("inf") for step in mpp)
        steps = [float(step) for step in mpp] if known else [1000.0, 1000.0]
        coarser = [max(1.0, tiling.mpp / step) if known else 1.0 for step in steps]
        side = (tiling.size * coarser[0], tiling.size * coarser[1])
        width, height = slide.dimensions
        spacing = (steps[0] * coarser[0] / 1000, steps[1] * coarser[1] / 1000)
        return cls(tiling.size, side, (int(height // side[0]), int(width // side[1])), spacing, known)

    def corner(self, number: int) -> tuple[int, int]:
        """(x, y) of a tile on the finest level."""
        row, column = divmod(number, self.shape[1])
        return round(column * self.side[1]), round(row * self.side[0])

    def tile(self, slide: "TiffSlide", number: int, limits: Limits) -> np.ndarray:
        level = slide.get_best_level_for_downsample(min(self.side) / self.size * 1.001)
        scale = slide.level_downsamples[level]
        size = round(self.side[1] / scale), round(self.side[0] / scale)
        check_shape((3, *size), 1, limits)
        array = _region(slide, self.corner(number), level, size)
        if size == (self.size, self.size):
            return array
        return np.array(Pillow.fromarray(array).resize((self.size, self.size), Pillow.Resampling.BOX))


@lru_cache(maxsize=64)
def _tissue(path: Path, changed: int, tiling: Tiling, limits: Limits) -> tuple[int, ...]:
    """Numbers of the tiles with tissue; ``changed`` makes an overwritten file a new one."""
    with _opened(path) as slide:
        _check(slide, limits)
        grid = _Grid.of(slide, tiling)
        level = slide.get_best_level_for_downsample(max(1.0, min(grid.side) / _OVERVIEW))
        scale = slide.level_downsamples[level]
        side = max(1, round(grid.side[0] / scale)), max(1, round(grid.side[1] / scale))
        per_strip = max(1, _STRIP // (side[0] * side[1]))
        found: list[int] = []
        for row in range(grid.shape[0]):
            for first in range(0, grid.shape[1], per_strip):
                number = row * grid.shape[1] + first
                count = min(per_strip, grid.shape[1] - first)
                strip = _region(slide, grid.corner(number), level, (side[1] * count, side[0]))
                shares = tissue(strip).reshape(side[0], count, side[1]).mean(axis=(0, 2))
                found += [number + int(k) for k in np.flatnonzero(shares >= tiling.tissue)]
    return tuple(found)


def tissue(pixels: np.ndarray) -> np.ndarray:
    """Where pixels (y, x, 3) uint8 are tissue: coloured, or grey and not white; never the black around a scan."""
    bright, dark = pixels.max(axis=-1).astype(np.int16), pixels.min(axis=-1).astype(np.int16)
    coloured = (bright - dark) * 100 > bright * 7
    return (bright > 40) & (coloured | (bright < 180))


def _check(slide: "TiffSlide", limits: Limits) -> None:
    """Refuse tiles in the file that are too large to decode, or whose bytes lie beyond its end."""
    size = slide.ts_tifffile.filehandle.size
    pages: Any = slide.ts_tifffile.pages  # a slide's pages are whole ones, not bare frames
    for page in pages:
        tile = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        check_shape((page.samplesperpixel, min(tile[0], page.imagelength), tile[1]), 1, limits)
        if len(page.dataoffsets) != prod(page.chunked):  # an absurd size would be searched for tissue for years
            raise Unreadable(f"slide of {len(page.dataoffsets)} parts whose size needs {prod(page.chunked)}")
        ends = (start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True))
        if max(ends, default=0) > size:
            raise Unreadable("slide is cut short")


def _region(slide: "TiffSlide", corner: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
    array = slide.read_region(corner, level, size, as_array=True)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (3, 4):
        raise Unreadable(f"slide of shape {array.shape} and {array.dtype}, expected 8-bit colour")
    return array[..., :3]


@contextmanager
def _opened(path: Path) -> Iterator["TiffSlide"]:
    try:
        import tiffslide
    except ImportError:
        raise UserError('slides are read by tiffslide, which is missing: pip install "ssl_med[slides]"') from None
    with Bounded(path) as file:
        source: Any = file
        try:
            slide = tiffslide.TiffSlide(source)
        except tiffslide.TiffFileError:
            raise Unreadable("not a slide that tiffslide understands") from None
        with slide:
            yield slide
