"""Whole slides are read as tiles of tissue at a known size of pixels, without holding the slide."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from image_files import record, written

from ssl_med.data.readers import Limits, read, reader_of
from ssl_med.data.readers import slides as reader
from ssl_med.data.readers.slides import Tiling, tiles_of
from ssl_med.data.record import Unreadable
from ssl_med.errors import UserError

MPP = 0.25


def slide_pixels(height: int = 512, width: int = 768) -> np.ndarray:
    """White glass, a black rim above, and two rectangles of pink noise: tissue."""
    random = np.random.default_rng(0)
    pixels = np.full((height, width, 3), 245, np.uint8)
    pixels[:64] = 0
    for rows, columns in ((slice(128, 256), slice(128, 384)), (slice(384, 512), slice(640, 768))):
        noise = random.integers(0, 40, (rows.stop - rows.start, columns.stop - columns.start, 1))
        pixels[rows, columns] = np.array([180, 90, 150]) + noise
    return pixels


def saved(path: Path, pixels: np.ndarray, mpp: float | None = MPP, compression: str | None = "deflate") -> Path:
    options = {"tile": (128, 128), "photometric": "rgb", "compression": compression, "metadata": None}
    scale = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"} if mpp else {}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, subifds=0, **options, **scale)
        for step in (2, 4):
            file.write(pixels[::step, ::step], subfiletype=1, **options)
    return path


def test_a_pyramid_is_known_by_its_content(tmp_path):
    path = saved(tmp_path / "a.tif", slide_pixels())
    assert reader_of(path) == "slides"
    tifffile.imwrite(tmp_path / "b.tif", slide_pixels())
    assert reader_of(tmp_path / "b.tif") == "raster"
    tifffile.imwrite(tmp_path / "c.tif", slide_pixels(), tile=(128, 128))
    assert reader_of(tmp_path / "c.tif") == "raster"
    assert reader_of(written(tmp_path / "d.tif", path.read_bytes()[:9])) == "raster"


def test_tiles_are_the_tissue_in_reading_order(tmp_path):
    pixels = slide_pixels()
    path = saved(tmp_path / "a.tif", pixels)
    tiling = Tiling(size=128, mpp=MPP)
    assert tiles_of(path, tiling) == 3
    for item, (row, column) in enumerate(((1, 1), (1, 2), (3, 5))):
        image = reader.read(record(path, item=item), tiling=tiling)
        tile = pixels[128 * row : 128 * row + 128, 128 * column : 128 * column + 128]
        np.testing.assert_array_equal(image.array, np.moveaxis(tile, -1, 0))
        np.testing.assert_allclose(image.spacing, (MPP / 1000, MPP / 1000), rtol=1e-6)
    with pytest.raises(Unreadable, match="tile 3 of 3"):
        reader.read(record(path, item=3), tiling=tiling)
    with pytest.raises(Unreadable, match="tile by tile"):
        read(record(path))


def test_a_coarser_tile_comes_from_a_coarser_level(tmp_path):
    pixels = slide_pixels()
    path = saved(tmp_path / "a.tif", pixels)
    tiling = Tiling(size=64, mpp=2 * MPP)
    assert tiles_of(path, tiling) == 3
    image = reader.read(record(path, item=2), tiling=tiling)
    np.testing.assert_array_equal(image.array, np.moveaxis(pixels[::2, ::2][192:, 320:], -1, 0))
    np.testing.assert_allclose(image.spacing, (2 * MPP / 1000, 2 * MPP / 1000), rtol=1e-6)
    between = reader.read(record(path, item=2), tiling=Tiling(size=128, mpp=1.5 * MPP, tissue=0.05))
    assert between.array.shape == (3, 128, 128)
    np.testing.assert_allclose(between.spacing, (1.5 * MPP / 1000, 1.5 * MPP / 1000), rtol=1e-6)


def test_the_default_tiling_through_the_gate(tmp_path):
    path = saved(tmp_path / "a.tif", np.tile(slide_pixels()[128:256, 128:384], (16, 8, 1)))
    assert tiles_of(path) == 4
    image = read(record(path, item=1))
    assert image.array.shape == (3, 512, 512)
    np.testing.assert_allclose(image.spacing, (5e-4, 5e-4), rtol=1e-6)


def test_a_slide_without_a_pixel_size_says_so(tmp_path):
    path = saved(tmp_path / "a.tif", slide_pixels(), mpp=None)
    image = reader.read(record(path, item=0), tiling=Tiling(size=128))
    assert image.spacing == (1.0, 1.0)
    assert image.warnings == ("no pixel size in the slide",)


def test_broken_slides_say_why(tmp_path):
    path = saved(tmp_path / "a.tif", slide_pixels())
    data = path.read_bytes()
    with pytest.raises(Unreadable, match=r"not a slide|damaged"):
        tiles_of(written(tmp_path / "b.svs", b"<html>" * 100))
    for share in (0.3, 0.7, 0.97):
        with pytest.raises(Unreadable, match=r"not a slide|damaged|cut short"):
            tiles_of(written(tmp_path / "b.svs", data[: int(len(data) * share)]))
    with pytest.raises(Unreadable, match="voxels, the limit is 1000"):
        tiles_of(path, Tiling(size=128), Limits(voxels=1000))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.tif", slide_pixels())
    monkeypatch.setitem(sys.modules, "tiffslide", None)
    with pytest.raises(UserError, match=r"pip install \"ssl_med\[slides\]\""):
        tiles_of(path)
