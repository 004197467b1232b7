"""NumPy files give their rows without pickle, or say why not."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from image_files import record, volume, written

from ssl_med.data.index import find_images
from ssl_med.data.readers import read, read_mask
from ssl_med.data.readers.array import rows
from ssl_med.data.record import Unreadable


def test_npy_shapes(tmp_path):
    for shape, expected in (
        ((5, 4), (1, 5, 4)),
        ((5, 4, 3), (3, 5, 4)),
        ((7, 5, 4), (1, 7, 5, 4)),
        ((7, 5, 4, 1), (1, 7, 5, 4)),
    ):
        array = volume(shape)
        np.save(tmp_path / "a.npy", array)
        image = read(record(tmp_path / "a.npy"))
        assert image.array.shape == expected
        np.testing.assert_array_equal(np.moveaxis(image.array, 0, -1).reshape(shape), array)


def test_npz_rows_are_read_once_and_cannot_be_written_into(tmp_path, monkeypatch):
    images = volume((6, 5, 4, 3), np.uint8)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, train_images=images)
    opened = []
    original = zipfile.ZipFile.open
    monkeypatch.setattr(
        zipfile.ZipFile, "open", lambda self, name, *a, **k: opened.append(name) or original(self, name, *a, **k)
    )
    for item in (3, 3, 0):
        image = read(record(path, item=item, split="train"))
        np.testing.assert_array_equal(image.array, images[item].transpose(2, 0, 1))
        image.array[:] = 0
    assert opened == ["train_images.npy"]


def test_masks_beside_images_in_an_npz(tmp_path):
    images, masks = volume((6, 5, 4), np.uint8), volume((6, 5, 4), np.uint8) % 3
    path = tmp_path / "a.npz"
    np.savez(path, train_images=images[:4], train_masks=masks[:4], test_images=images[4:])
    assert [row.masked for row in rows(path)] == [True] * 4 + [False] * 2
    for item in range(4):
        mask = read_mask(record(path, item=item, split="train", mask=path))
        assert mask is not None
        np.testing.assert_array_equal(mask[0], masks[item])
    with pytest.raises(Unreadable, match="mask: no key test_masks"):
        read_mask(record(path, item=0, split="test", mask=path))
    np.savez(path, images=images, masks=masks[:4])
    with pytest.raises(Unreadable, match=r"masks of shape .* for 6 images"):
        list(rows(path))


def test_a_header_that_unpacks_to_gigabytes_is_refused_first(tmp_path):
    bomb = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**28) + b" " * 2**24
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bomb)
    tracemalloc.start()
    with pytest.raises(Unreadable, match="header claims 268435456 bytes"):
        read(record(tmp_path / "a.npz", item=0))
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_broken_arrays_say_why(tmp_path):
    np.savez(tmp_path / "pickled.npz", images=np.array([{}, {}], object))
    np.savez(tmp_path / "other.npz", pixels=np.zeros((3, 4, 4)), seg=np.zeros((3, 4, 4)))
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    np.savez(tmp_path / "good.npz", images=volume((3, 4, 4)))
    damaged = bytearray((tmp_path / "good.npz").read_bytes())
    damaged[200] ^= 1  # inside the stored values: only the zip's checksum knows
    written(tmp_path / "damaged.npz", bytes(damaged))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (30000, 30000, 30000)}
    )
    written(tmp_path / "huge.npy", header.getvalue() + bytes(64))
    for name, item, reason in (
        ("pickled.npz", 0, "pickled objects"),
        ("objects.npy", None, "pickled objects"),
        ("other.npz", None, "no key `images`"),
        ("good.npz", 3, "row 3 of 3"),
        ("damaged.npz", 0, "damaged array file"),
        ("huge.npy", None, "header claims 27000000000000 voxels"),
    ):
        with pytest.raises(Unreadable, match=reason):
            read(record(tmp_path / name, item=item))


def test_one_array_alone_in_an_npz_is_an_image(tmp_path):
    array = volume((7, 5, 6))
    np.savez(tmp_path / "a.npz", array)
    np.savez_compressed(
        tmp_path / "b.npz", vol=array, spacing=np.ones(3), who=np.array("x"), facts=np.array([{}], object)
    )
    for name in ("a.npz", "b.npz"):
        (found,) = find_images(tmp_path / name)
        assert found.item is None
        np.testing.assert_array_equal(read(found).array[0], array)
        assert read(found).warnings == ()
    read(record(tmp_path / "a.npz")).array[:] = 0
    assert read(record(tmp_path / "a.npz")).array.any()
    np.savez(tmp_path / "a_mask.npz", (array > 9).astype(np.uint8))
    mask = read_mask(record(tmp_path / "a.npz", mask=tmp_path / "a_mask.npz"))
    assert mask is not None
    np.testing.assert_array_equal(mask[0], array > 9)


def test_a_guess_of_the_colours_is_told(tmp_path):
    for shape, guessed in (
        ((8, 9, 4), True),
        ((3, 8, 9), True),
        ((4, 8, 9), True),
        ((8, 9, 3), False),
        ((8, 9), False),
    ):
        np.save(tmp_path / "a.npy", volume(shape))
        warnings = read(record(tmp_path / "a.npy")).warnings
        assert [f"array of shape {shape} taken for a volume" in warning for warning in warnings] == [True] * guessed
