"""PNG, JPEG and TIFF pictures keep their bits, or say why not."""

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from image_files import record, volume, written
from PIL import Image as Pillow

from ssl_med.data.readers import Limits, read
from ssl_med.data.record import Unreadable


def saved(path: Path, array: np.ndarray, **options) -> Path:
    Pillow.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_grey_pictures_keep_their_bits(tmp_path, dtype, suffix):
    array = (volume((6, 4)) * 10).astype(dtype) if dtype == np.uint8 else (volume((6, 4)) * 2500).astype(dtype)
    image = read(record(saved(tmp_path / f"a.{suffix}", array)))
    np.testing.assert_array_equal(image.array[0], array)
    assert image.array.dtype == dtype
    assert image.spacing == (1.0, 1.0)


def test_colour_palette_alpha_and_bits(tmp_path):
    colour = volume((6, 4, 3), np.uint8)
    np.testing.assert_array_equal(read(record(saved(tmp_path / "a.png", colour))).array, colour.transpose(2, 0, 1))
    alpha = np.concatenate([colour, np.full((6, 4, 1), 9, np.uint8)], 2)
    np.testing.assert_array_equal(read(record(saved(tmp_path / "b.png", alpha))).array, colour.transpose(2, 0, 1))
    palette = Pillow.frombytes("P", (2, 1), b"\0\1")
    palette.putpalette([1, 2, 3, 40, 50, 60])
    palette.save(tmp_path / "c.png")
    np.testing.assert_array_equal(read(record(tmp_path / "c.png")).array[:, 0], [[1, 40], [2, 50], [3, 60]])
    bits = volume((6, 4)) % 2 == 0
    image = read(record(saved(tmp_path / "d.png", bits)))
    assert image.array.dtype == np.uint8
    np.testing.assert_array_equal(image.array[0], bits)
    assert read(record(saved(tmp_path / "e.jpg", colour))).array.shape == (3, 6, 4)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_deep_colour_png_keeps_its_bits(tmp_path, channels):
    array = np.random.default_rng(0).integers(0, 2**16, (17, 13, channels), dtype=np.uint16)
    array[:, 4:] = array[:, 3:4] + np.arange(9, dtype=np.uint16)[:, None]  # smooth parts, so that filters are used
    path = written(tmp_path / "a.png", imagecodecs.png_encode(array, level=6))
    image = read(record(path))
    assert image.array.dtype == np.uint16
    np.testing.assert_array_equal(image.array, np.moveaxis(array, -1, 0)[: 1 if channels == 2 else 3])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    with pytest.raises(Unreadable, match="damaged or cut short"):
        read(record(written(tmp_path / "b.png", bytes(data))))


def test_png_filters_of_deep_colour(tmp_path):
    """Every filter type of the standard, written out by its own formula."""
    random = np.random.default_rng(1)
    array = random.integers(0, 2**16, (5, 6, 3), dtype=np.uint16)
    lines = array.astype(">u2").view(np.uint8).reshape(5, 36).astype(int)
    body = b""
    for row, kind in enumerate((0, 1, 2, 3, 4)):
        filtered = []
        for k, value in enumerate(lines[row]):
            left = lines[row, k - 6] if k >= 6 else 0
            up = lines[row - 1, k] if row else 0
            corner = lines[row - 1, k - 6] if row and k >= 6 else 0
            guess = left + up - corner
            paeth = min((left, up, corner), key=lambda near, guess=guess: abs(guess - near))
            filtered.append((value - (0, left, up, (left + up) // 2, paeth)[kind]) % 256)
        body += bytes([kind, *filtered])
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 5, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    image = read(record(written(tmp_path / "a.png", data)))
    np.testing.assert_array_equal(image.array, np.moveaxis(array, -1, 0))


TIFF_KINDS = [
    ("u1", 1, None),
    ("u1", 3, "deflate"),
    ("u2", 1, "lzw"),
    ("u2", 3, None),
    ("u2", 3, "lzw"),
    ("u2", 4, "deflate"),
    ("i2", 1, None),
    ("u4", 1, "deflate"),
    ("f4", 1, "lzw"),
    ("f4", 3, None),
    ("f8", 1, "deflate"),
]


@pytest.mark.parametrize(("dtype", "channels", "packed"), TIFF_KINDS)
@pytest.mark.parametrize("pages", [1, 4])
def test_tiff_of_every_kind(tmp_path, dtype, channels, packed, pages):
    array = volume((pages, 6, 4, channels), dtype)
    options = {"photometric": "rgb"} if channels > 1 else {"photometric": "minisblack"}
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in array:
            file.write(page if channels > 1 else page[..., 0], compression=packed, metadata=None, **options)
    image = read(record(tmp_path / "a.tif"))
    expected = np.moveaxis(array[..., :3], -1, 0)
    np.testing.assert_array_equal(image.array, expected if pages > 1 else expected[:, 0])
    assert len(image.spacing) == image.array.ndim - 1


def test_planes_of_colour_and_white_is_zero(tmp_path):
    colour = volume((3, 6, 4), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", colour, photometric="rgb", planarconfig="separate", metadata=None)
    np.testing.assert_array_equal(read(record(tmp_path / "a.tif")).array, colour)
    for dtype in (np.uint8, np.uint16, np.uint32):
        grey = volume((6, 4), dtype)
        tifffile.imwrite(tmp_path / "b.tif", grey, photometric="miniswhite", metadata=None)
        image = read(record(tmp_path / "b.tif"))
        np.testing.assert_array_equal(image.array[0], np.iinfo(dtype).max - grey)


def test_smaller_copies_are_no_slices_and_channels_are_none_either(tmp_path):
    stack = volume((3, 6, 4), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in stack:
            file.write(page, metadata=None)
        file.write(stack[0, ::2, ::2], subfiletype=1, metadata=None)
    np.testing.assert_array_equal(read(record(tmp_path / "a.tif")).array[0], stack)
    grey = {"photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "b.tif", volume((3, 2, 6, 5), np.uint8), imagej=True, metadata={"axes": "ZCYX"}, **grey)
    with pytest.raises(Unreadable, match=r"ImageJ stack|2 channels"):
        read(record(tmp_path / "b.tif"))
    tifffile.imwrite(tmp_path / "c.ome.tif", volume((3, 2, 6, 5), np.uint8), metadata={"axes": "ZCYX"}, **grey)
    with pytest.raises(Unreadable, match="6 pages of 2 channels and 1 times"):
        read(record(tmp_path / "c.ome.tif"))
    tifffile.imwrite(tmp_path / "d.ome.tif", stack, metadata={"axes": "ZYX"}, **grey)
    np.testing.assert_array_equal(read(record(tmp_path / "d.ome.tif")).array[0], stack)


def test_pages_of_several_depths_and_unsaid_colours_are_refused(tmp_path):
    colour = volume((6, 4, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in (colour, colour.astype(np.uint16) * 257):
            file.write(page, photometric="rgb", metadata=None)
    with pytest.raises(Unreadable, match="several kinds of pixels"):
        read(record(tmp_path / "a.tif"))
    for dtype in (np.uint8, np.uint16):
        tifffile.imwrite(tmp_path / "b.tif", colour.astype(dtype), photometric="rgb", metadata=None)
        unsaid = bytearray((tmp_path / "b.tif").read_bytes())
        place = unsaid.index(struct.pack("<HHI", 262, 3, 1))
        unsaid[place] = 7  # a tag that nobody knows in the place of PhotometricInterpretation
        with pytest.raises(Unreadable, match="one that does not say which"):
            read(record(written(tmp_path / "b.tif", bytes(unsaid))))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "deep.tif"])
def test_exif_rotation_is_applied(tmp_path, orientation, suffix):
    """Against the words of the standard: where the stored first row and first column are seen."""
    rows, columns = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    stored = volume((6, 4), np.uint8)
    path = tmp_path / f"a.{suffix}"
    if suffix == "deep.tif":
        colour = np.repeat(stored[..., None], 3, 2).astype(np.uint16)
        tag = (274, "H", 1, orientation, True)
        tifffile.imwrite(path, colour, photometric="rgb", metadata=None, extratags=[tag])
    else:
        exif = Pillow.Exif()
        exif[0x0112] = orientation
        Pillow.fromarray(stored).save(path, exif=exif)
    seen = read(record(path)).array[0]
    edges = {"top": seen[0], "bottom": seen[-1], "left": seen[:, 0], "right": seen[:, -1]}
    assert set(edges[rows].tolist()) == set(stored[0].tolist())
    assert set(edges[columns].tolist()) == set(stored[:, 0].tolist())


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_broken_pictures_say_why(tmp_path):
    good = saved(tmp_path / "a.png", volume((20, 20)).astype(np.uint8)).read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    pages = io.BytesIO()
    Pillow.new("L", (4, 4)).save(pages, "TIFF", save_all=True, append_images=[Pillow.new("L", (4, 5), 3)])
    cases = {
        "b.png": (bytes(flipped), "damaged or cut short"),
        "c.png": (good[:-60], "damaged or cut short"),
        "d.png": (b"<html>" * 20, "not a PNG, JPEG or TIFF picture"),
        "e.png": (b"", "empty file"),
        "f.png": (png_claiming(60000, 60000), "bomb"),
        "g.png": (png_claiming(10000, 10000), "bomb"),  # Pillow only warns of this one
        "h.tif": (pages.getvalue(), r"pages of \(4, 4\) and of \(4, 5\) pixels are not one stack"),
    }
    for name, (data, reason) in cases.items():
        with pytest.raises(Unreadable, match=reason) as caught:
            read(record(written(tmp_path / name, data)))
        assert str(tmp_path) not in str(caught.value)


def test_broken_tiffs_say_why(tmp_path):
    deep = volume((40, 30, 3), np.uint16)
    for name, array, options in (
        ("plain", deep[..., 0], {}),
        ("deep", deep, {"photometric": "rgb"}),
        ("deflate", deep, {"photometric": "rgb", "compression": "deflate"}),
    ):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, array, metadata=None, **options)
        with pytest.raises(Unreadable, match=r"voxels, the limit is 1000"):
            read(record(path), Limits(voxels=1000))
        data = path.read_bytes()
        for share in (0.02, 0.3, 0.9, 0.99):
            with pytest.raises(Unreadable, match="cut short"):
                read(record(written(path, data[: int(len(data) * share)])))


def test_animations_are_refused(tmp_path):
    frames = [Pillow.fromarray(volume((6, 4), np.uint8) + k) for k in range(3)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(Unreadable, match="animation of 3 pictures"):
        read(record(tmp_path / "a.png"))
