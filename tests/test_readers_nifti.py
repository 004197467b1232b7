"""NIfTI volumes come out in RAS with the right numbers in the right place, or say why not."""

import gzip
from functools import cache

import nibabel
import numpy as np
import pytest
from image_files import (
    AXIS_CODES,
    SHAPE,
    assert_same_world,
    changed,
    named,
    nifti_bytes,
    oblique,
    record,
    turned_affine,
    volume,
    written,
)

from ssl_med.data.readers import Limits, read
from ssl_med.data.readers.nifti import restore
from ssl_med.data.record import Unreadable


@pytest.mark.parametrize("start", [np.diag([0.7, 0.9, 2.5, 1.0]), oblique()], ids=["straight", "oblique"])
@pytest.mark.parametrize("code", AXIS_CODES, ids=named)
def test_every_orientation_keeps_the_world_and_comes_back(tmp_path, code, start):
    source = volume()
    affine = turned_affine(code, start)
    path = written(tmp_path / "a.nii", nifti_bytes(source, affine))
    image = read(record(path))
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.array.dtype == np.int16
    np.testing.assert_allclose(image.spacing, [2.5, 0.9, 0.7], rtol=1e-5)
    assert_same_world(path, image, source, affine)
    back = restore(image.array[0], path)
    nibabel.save(back, tmp_path / "b.nii.gz")
    saved = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(saved.dataobj), source)
    np.testing.assert_allclose(saved.affine, affine, atol=1e-4)


def test_all_axis_codes_are_there():
    assert len({tuple(map(tuple, code)) for code in AXIS_CODES}) == 48


def test_agrees_with_nibabel(tmp_path):
    path = written(
        tmp_path / "a.nii.gz", gzip.compress(nifti_bytes(volume(dtype=np.float32), oblique() @ np.diag([-1, 1, -1, 1])))
    )
    expected = nibabel.as_closest_canonical(nibabel.load(path))
    image = read(record(path))
    np.testing.assert_array_equal(image.array[0], expected.get_fdata().transpose())
    np.testing.assert_allclose(image.affine, expected.affine)


def test_scaled_values_become_float(tmp_path):
    data = changed(nifti_bytes(), 112, "<ff", 0.5, -3.0)
    image = read(record(written(tmp_path / "a.nii", data)))
    assert image.array.dtype == np.float32
    np.testing.assert_allclose(image.array[0], volume().transpose() * 0.5 - 3)


def test_trivial_axes_are_dropped_and_a_slice_is_an_image(tmp_path):
    volume_4d = written(tmp_path / "a.nii", nifti_bytes(volume((4, 5, 6, 1))))
    assert read(record(volume_4d)).array.shape == (1, 6, 5, 4)
    for shape in ((4, 5), (4, 5, 1)):
        source = volume(shape)
        path = written(tmp_path / "b.nii", nifti_bytes(source, np.diag([2.0, 3, 1, 1])))
        image = read(record(path))
        np.testing.assert_array_equal(image.array[0], source.reshape(4, 5).T)
        assert image.spacing == (3.0, 2.0)
        assert np.array_equal(np.asanyarray(restore(image.array[0], path).dataobj), source)


def test_restore_copies_no_text_and_refuses_another_grid(tmp_path):
    path = written(tmp_path / "a.nii", changed(nifti_bytes(), 148, "9s", b"Mr Smith!"))
    assert b"Smith" not in restore(np.zeros(SHAPE[::-1], np.uint8), path).to_bytes()
    with pytest.raises(Unreadable, match="the source's grid is"):
        restore(np.zeros(SHAPE, np.uint8), path)


def test_colour_and_lengths_in_micron(tmp_path):
    colour = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colour["G"] = volume(dtype=np.uint8)
    image = read(record(written(tmp_path / "a.nii", changed(nifti_bytes(colour), 123, "b", 3))))
    np.testing.assert_array_equal(image.array[1], colour["G"].transpose())
    assert image.array.shape[0] == 3
    np.testing.assert_allclose(image.spacing, 1e-3)
    assert "lengths given in micron, turned into mm" in image.warnings


@cache
def broken_nifti() -> dict[str, tuple[str, bytes, str]]:
    good = nifti_bytes()
    packed = gzip.compress(good, mtime=0)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 8
    huge = changed(good, 42, "<3h", 30000, 30000, 30000)
    return {
        "truncated gz": ("a.nii.gz", packed[:-40], "gzip stream is cut short"),
        "truncated": ("a.nii", good[:-10], "data cut short: 230 of 240 bytes"),
        "header cut": ("a.nii", good[:200], "header cut short"),
        "flipped bit": ("a.nii.gz", bytes(flipped), "gzip stream is damaged|header|data cut short|not a NIfTI"),
        "wrong checksum": ("a.nii.gz", packed[:-8] + b"\0\0\0\0" + packed[-4:], "wrong checksum"),
        "empty": ("a.nii.gz", b"", "empty file"),
        "web page": ("a.nii.gz", b"<!DOCTYPE html><html>sign in</html>" * 20, "not a NIfTI file"),
        "huge": ("a.nii.gz", gzip.compress(huge), "header claims 27000000000000 voxels"),
        "bomb": ("a.nii.gz", gzip.compress(good + bytes(10_000_000)), "more data than the 240 bytes"),
        "zero axis": ("a.nii", changed(good, 44, "<h", 0), "axis of size zero"),
        "nan": ("a.nii", nifti_bytes(np.full(SHAPE, np.nan, np.float32)), r"only 0.0000% of the values are finite"),
        "one infinity": ("a.nii", nifti_bytes(np.r_[np.inf, np.arange(7)].reshape(2, 2, 2)), "87.5000% of the values"),
        "constant": ("a.nii", nifti_bytes(np.full(SHAPE, 7, np.int16)), "constant image"),
        "time series": ("a.nii", nifti_bytes(volume((2, 3, 4, 5))), "time series, 4 axes"),
        "complex": ("a.nii", nifti_bytes(volume().astype(np.complex64)), "not intensities"),
        "flat affine": ("a.nii", changed(good, 280, "<12f", *[1, 0, 0, 0] * 2, 0, 0, 1, 0), "determinant zero"),
        "nan affine": ("a.nii", changed(good, 280, "<f", np.nan), "affine is not finite"),
        "zero spacing": ("a.nii", changed(changed(good, 80, "<f", 0), 252, "<2h", 0, 0), "spacing .* is not positive"),
        "pair": ("a.nii", changed(good, 344, "3s", b"ni1"), ".hdr/.img pair"),
        "bits": ("a.nii", changed(good, 72, "<h", 8), "header disagrees with itself"),
        "offset": ("a.nii", changed(good, 108, "<f", 20), "vox offset 20 too low"),
    }


@pytest.mark.parametrize("case", broken_nifti())
def test_broken_nifti_says_why(tmp_path, case):
    name, data, reason = broken_nifti()[case]
    with pytest.raises(Unreadable, match=reason) as caught:
        read(record(written(tmp_path / name, data)))
    assert str(tmp_path) not in str(caught.value)


def test_a_flipped_bit_in_a_packed_file_never_changes_an_image(tmp_path):
    packed = gzip.compress(nifti_bytes(), mtime=0)
    expected = volume().transpose()
    refused = 0
    for position in range(0, len(packed) * 8, 3):
        data = bytearray(packed)
        data[position // 8] ^= 1 << position % 8
        try:
            image = read(record(written(tmp_path / "a.nii.gz", bytes(data))))
        except Unreadable:
            refused += 1
        else:
            np.testing.assert_array_equal(image.array[0], expected)  # gzip's own date, or bits that nobody reads
    assert refused > 0.8 * len(packed) * 8 / 3


def test_limits_come_before_allocation(tmp_path):
    path = written(tmp_path / "a.nii", nifti_bytes())
    with pytest.raises(Unreadable, match="120 voxels, the limit is 100"):
        read(record(path), Limits(voxels=100))
    with pytest.raises(Unreadable, match="240 bytes, the limit is 200"):
        read(record(path), Limits(size=200))


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair, nibabel.Spm2AnalyzeImage])
@pytest.mark.parametrize("packed", [False, True])
def test_pairs_agree_with_nibabel(tmp_path, kind, packed):
    affine = oblique() if kind is not nibabel.Spm2AnalyzeImage else np.diag([-0.5, 0.7, 2.0, 1.0])
    nibabel.save(kind(volume(), affine), tmp_path / "a.img")
    (tmp_path / "a.mat").unlink(missing_ok=True)  # SPM's own file, which nibabel would look into
    expected = nibabel.load(tmp_path / "a.img")
    stored = np.asanyarray(expected.dataobj)
    if packed:
        written(tmp_path / "a.img.gz", gzip.compress((tmp_path / "a.img").read_bytes()))
        (tmp_path / "a.img").unlink()
    image = read(record(tmp_path / "a.hdr"))
    assert_same_world(tmp_path, image, stored, expected.affine)
    guessed = "no orientation in the header: left and right are a guess" in image.warnings
    assert guessed == (kind is nibabel.Spm2AnalyzeImage)


def test_broken_pairs_say_why(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(volume(), np.eye(4)), tmp_path / "a.img")
    voxels = (tmp_path / "a.img").read_bytes()
    written(tmp_path / "a.img", voxels[:-2])
    with pytest.raises(Unreadable, match="data cut short: 238 of 240 bytes"):
        read(record(tmp_path / "a.hdr"))
    (tmp_path / "a.img").unlink()
    with pytest.raises(Unreadable, match=r"the \.img file of the pair is missing"):
        read(record(tmp_path / "a.hdr"))
    with pytest.raises(Unreadable, match=r"one \.nii file, expected a \.hdr/\.img pair"):
        read(record(written(tmp_path / "b.hdr", nifti_bytes())))


def test_missing_file(tmp_path):
    with pytest.raises(Unreadable, match="file is missing"):
        read(record(tmp_path / "a.nii"))
