"""Every reader gives the right numbers in the right place, or says why it gives none."""

import gzip
import io
import itertools
import struct
import subprocess
import sys
import zipfile
import zlib
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from nibabel.orientations import inv_ornt_aff, ornt_transform
from PIL import Image as Pillow
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from ssl_med.data.readers import Limits, read, read_mask, reader_of
from ssl_med.data.readers.dicom import find_series
from ssl_med.data.readers.nifti import restore
from ssl_med.data.record import Record, Unreadable

SHAPE = (4, 5, 6)
AXIS_CODES = [
    np.array(list(zip(axes, signs, strict=True)))
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def record(path: Path, **facts) -> Record:
    return Record(path.name, reader_of(path) or "nifti", (path,), **facts)


def volume(shape=SHAPE, dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(dtype)


def nifti_bytes(array=None, affine=None) -> bytes:
    image = nibabel.Nifti1Image(volume() if array is None else array, np.eye(4) if affine is None else affine)
    return image.to_bytes()


def changed(data: bytes, offset: int, layout: str, *values) -> bytes:
    block = bytearray(data)
    struct.pack_into(layout, block, offset, *values)
    return bytes(block)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# --- NIfTI


def oblique() -> np.ndarray:
    a, b = 0.3, -0.2
    rotation = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    rotation = rotation @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([0.7, 0.9, 2.5])
    affine[:3, 3] = 12.5, -30.25, 7.0
    return affine


def assert_same_world(path: Path, image, source: np.ndarray, affine: np.ndarray) -> None:
    """Each value of a volume of distinct values lies at the same millimetre before and after."""
    z, y, x = np.indices(image.array.shape[1:]).reshape(3, -1)
    world = (image.affine @ np.stack([x, y, z, np.ones_like(x)]))[:3]
    place = {value: index for index, value in np.ndenumerate(source)}
    stored = np.array([(*place[value], 1) for value in image.array.reshape(-1)]).T
    np.testing.assert_allclose(world, (affine @ stored)[:3], atol=1e-4)


@pytest.mark.parametrize("start", [np.diag([0.7, 0.9, 2.5, 1.0]), oblique()], ids=["straight", "oblique"])
@pytest.mark.parametrize(
    "code", AXIS_CODES, ids=lambda code: "".join(f"{int(a)}{'+' if s > 0 else '-'}" for a, s in code)
)
def test_every_orientation_keeps_the_world_and_comes_back(tmp_path, code, start):
    source = volume()
    ras = np.array([[0, 1], [1, 1], [2, 1]])
    affine = start @ inv_ornt_aff(ornt_transform(ras, code), np.array(SHAPE))
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


def test_missing_file(tmp_path):
    with pytest.raises(Unreadable, match="file is missing"):
        read(record(tmp_path / "a.nii"))


def whole_files(folder: Path) -> list[tuple[Path, int | None]]:
    """One good file per reader, with the row to read."""
    written(folder / "a.nii", nifti_bytes(affine=oblique()))
    dicom_slice(0, PIXELS[0]).save_as(folder / "a.dcm", enforce_file_format=True)
    multiframe(positions=True).save_as(folder / "b.dcm", enforce_file_format=True)
    np.savez_compressed(folder / "a.npz", images=volume((3, 6, 4)))
    np.save(folder / "a.npy", volume((6, 4)))
    for suffix in ("png", "jpg", "tif"):
        Pillow.fromarray(volume((6, 4)).astype(np.uint8)).save(folder / f"a.{suffix}")
    files = [(path, None) for path in sorted(folder.iterdir()) if path.suffix != ".npz"]
    return [*files, (folder / "a.npz", 1)]


def test_any_damage_is_a_refusal_or_an_image_never_another_error(tmp_path, caplog):
    random, reasons = np.random.default_rng(1), []
    for path, item in whole_files(tmp_path):
        good = path.read_bytes()
        for _ in range(120):
            data = bytearray(good[: random.integers(len(good))] if random.random() < 0.2 else good)
            for place in random.integers(min(len(data), 1500), size=3) if data else ():
                data[place] = random.integers(256)
            path.write_bytes(bytes(data))
            try:
                image = read(record(path, item=item), Limits(voxels=10**6))
                assert np.isfinite(image.array).all()
            except Unreadable as error:
                reasons.append(str(error))
    assert len(reasons) > 300
    assert not any(str(tmp_path) in reason for reason in reasons)
    assert not caplog.records or {entry.name for entry in caplog.records} == {"nibabel.global"}  # which quotes no text


# --- masks


def test_mask_lies_on_the_grid_of_its_image(tmp_path):
    image = written(tmp_path / "image.nii", nifti_bytes())
    labels = (volume() > 60).astype(np.float32) * 2
    flipped = nifti_bytes(labels[::-1], np.array([[-1.0, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    mask = read_mask(record(image, mask=written(tmp_path / "mask.nii", flipped)))
    assert mask is not None
    assert mask.dtype == np.int16
    np.testing.assert_array_equal(mask[0], labels.transpose())
    assert read_mask(record(image)) is None


@pytest.mark.parametrize(
    ("array", "affine", "reason"),
    [
        (volume((4, 5, 7)), np.eye(4), "mask: shape"),
        (volume(), np.diag([1, 1, 1.5, 1]), "mask: affine differs from the image's by up to 2.5 mm"),
        (volume().astype(np.float32) / 2, np.eye(4), "mask: values are not whole numbers"),
        (np.full(SHAPE, np.nan, np.float32), np.eye(4), "mask: only 0"),
    ],
)
def test_wrong_mask_says_why(tmp_path, array, affine, reason):
    image = written(tmp_path / "image.nii", nifti_bytes())
    mask = written(tmp_path / "mask.nii", nifti_bytes(array, affine))
    with pytest.raises(Unreadable, match=reason):
        read_mask(record(image, mask=mask))


def test_picture_masks_keep_their_labels(tmp_path):
    labels = volume((6, 4), np.uint8) % 3
    Pillow.fromarray(volume((6, 4), np.uint8)).save(tmp_path / "image.png")
    palette = Pillow.frombytes("P", (4, 6), labels.tobytes())
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "mask.png")
    mask = read_mask(record(tmp_path / "image.png", mask=tmp_path / "mask.png"))
    assert mask is not None
    np.testing.assert_array_equal(mask[0], labels)
    Pillow.fromarray(labels > 0).save(tmp_path / "bits.png")
    bits = read_mask(record(tmp_path / "image.png", mask=tmp_path / "bits.png"))
    assert bits is not None
    np.testing.assert_array_equal(bits[0], labels > 0)


# --- DICOM


def dicom_slice(number: int, pixels: np.ndarray, **tags) -> Dataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.PatientID, dataset.Modality = "1.2", "1.1", "P7", "CT"
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [10, 20, 30 + 2.5 * number]
    dataset.PixelSpacing = [0.8, 0.5]  # between rows, between columns
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = pixels.astype("<u2").tobytes()
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    return dataset


def series(folder: Path, datasets: list[Dataset]) -> Record:
    for number, dataset in enumerate(datasets):
        dataset.save_as(folder / f"{(number * 7) % 10}_{number}.dcm", enforce_file_format=True)
    (found,) = find_series(folder.glob("*.dcm"))
    return Record("s", "dicom", found.files)


PIXELS = volume((5, 4, 3)) + 100  # slices, rows, columns


def test_series_is_sorted_rescaled_and_turned_to_ras(tmp_path):
    image = read(series(tmp_path, [dicom_slice(n, PIXELS[n]) for n in (3, 0, 4, 1, 2)]))
    np.testing.assert_array_equal(image.array[0], PIXELS[:, ::-1, ::-1] - 1024)  # LPS -> RAS turns x and y
    assert image.array.dtype == np.int16
    assert image.spacing == (2.5, 0.8, 0.5)
    assert image.modality == "CT"
    assert image.warnings == ()
    first = image.affine @ [2, 3, 0, 1]  # the voxel that DICOM writes first
    np.testing.assert_allclose(first[:3], [-10, -20, 30])


def test_sagittal_series_has_its_own_axes(tmp_path):
    tags = [
        {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "ImagePositionPatient": [4.0 * n, -7, 9]} for n in range(5)
    ]
    image = read(series(tmp_path, [dicom_slice(n, PIXELS[n], **tags[n]) for n in range(5)]))
    np.testing.assert_allclose(image.spacing, [0.8, 0.5, 4.0])
    n, row, column = 1, 2, 1
    world = np.array([-4.0 * n, 7 - 0.5 * column, 9 - 0.8 * row, 1])
    x, y, z = np.rint(np.linalg.solve(image.affine, world)[:3]).astype(int)
    assert image.array[0, z, y, x] == PIXELS[n, row, column] - 1024


def test_fractional_slope_and_slope_per_slice(tmp_path):
    image = read(series(tmp_path, [dicom_slice(n, PIXELS[n], RescaleSlope=n + 0.5) for n in range(5)]))
    expected = PIXELS * (np.arange(5) + 0.5)[:, None, None] - 1024
    assert image.array.dtype == np.float32
    np.testing.assert_allclose(image.array[0], expected[:, ::-1, ::-1])


def odd_series() -> dict[str, tuple[list[Dataset], str]]:
    def with_tags(**tags):
        return [dicom_slice(n, PIXELS[n], **(tags if n == 2 else {})) for n in range(5)]

    return {
        "orientation": (with_tags(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "mixed orientation"),
        "spacing": (with_tags(PixelSpacing=[0.8, 0.6]), "mixed PixelSpacing"),
        "shape": ([dicom_slice(0, PIXELS[0]), dicom_slice(1, PIXELS[1][:2])], "mixed Rows"),
        "double": (with_tags(ImagePositionPatient=[10, 20, 32.5]), "duplicate positions"),
        "missing": ([dicom_slice(n, PIXELS[n]) for n in (0, 1, 3, 4)], "missing slices"),
        "uneven": (with_tags(ImagePositionPatient=[10, 20, 35.2]), "uneven slices"),
        "crooked": (with_tags(ImagePositionPatient=[12, 20, 35]), "straight line"),
        "unplaced": (with_tags(ImagePositionPatient=None), "1 of 5 slices lack position"),
        "localiser": (with_tags(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localiser"),
        "skewed": (
            [dicom_slice(n, PIXELS[n], ImageOrientationPatient=[1, 0, 0, 1, 0, 0]) for n in (0, 1)],
            "right angle",
        ),
        "lookup": ([dicom_slice(0, PIXELS[0], ModalityLUTSequence=Sequence([Dataset()]))], "lookup table"),
    }


@pytest.mark.parametrize("case", odd_series())
def test_odd_series_says_why(tmp_path, case):
    datasets, reason = odd_series()[case]
    with pytest.raises(Unreadable, match=reason) as caught:
        read(series(tmp_path, datasets))
    assert "P7" not in str(caught.value)


def multiframe(positions: bool) -> Dataset:
    dataset = dicom_slice(0, PIXELS[0])
    dataset.NumberOfFrames = 5
    dataset.PixelData = PIXELS.astype("<u2").tobytes()
    for tag in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(dataset, tag)
    if not positions:
        return dataset
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient, measures.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.8, 0.5]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for number in range(5):
        group, place = Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, -3.0 * number]  # frames run downwards
        group.PlanePositionSequence = Sequence([place])
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return dataset


def test_multiframe_is_a_volume_where_its_frames_have_places(tmp_path):
    image = read(series(tmp_path, [multiframe(positions=True)]))
    np.testing.assert_array_equal(image.array[0], PIXELS[::-1, ::-1, ::-1])
    assert image.spacing == (3.0, 0.8, 0.5)
    with pytest.raises(Unreadable, match="5 frames without positions"):
        read(series(tmp_path, [multiframe(positions=False)]))


def test_single_slice_is_an_image_as_displayed(tmp_path):
    image = read(series(tmp_path, [dicom_slice(0, PIXELS[0])]))
    np.testing.assert_array_equal(image.array[0], PIXELS[0] - 1024.0)
    assert image.spacing == (0.8, 0.5)


def test_monochrome1_is_inverted(tmp_path):
    plain = {"PhotometricInterpretation": "MONOCHROME1", "RescaleIntercept": 0}
    image = read(series(tmp_path, [dicom_slice(0, PIXELS[0], **plain)]))
    np.testing.assert_array_equal(image.array[0], 4095 - PIXELS[0])


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm"])
def test_bundled_files_agree_with_pydicom(name):
    path = Path(get_testdata_file(name, download=False))
    dataset = pydicom.dcmread(path)
    expected = dataset.pixel_array * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    image = read(record(path))
    np.testing.assert_array_equal(image.array[0], expected)
    assert image.array.dtype == np.int16


def test_colour_dicom_and_its_warning():
    image = read(record(Path(get_testdata_file("SC_rgb_dcmtk_+eb+cr.dcm", download=False))))
    assert image.array.shape == (3, 100, 100)
    assert image.array.dtype == np.uint8
    assert image.warnings == ("burned-in text possible",)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MR_truncated.dcm", "pixels cannot be decoded"),
        ("rtplan.dcm", "no image: DICOM object of modality RTPLAN"),
        ("image_dfl.dcm", "deflated"),
        ("no_meta.dcm", "not a DICOM file"),
    ],
)
def test_other_bundled_files_say_why(name, reason):
    with pytest.raises(Unreadable, match=reason):
        read(record(Path(get_testdata_file(name, download=False))))


def test_odd_headers_neither_warn_nor_quote_themselves(tmp_path):
    path = tmp_path / "a.dcm"
    dataset = dicom_slice(0, PIXELS[0])
    dataset.save_as(path, enforce_file_format=True)
    data = path.read_bytes().replace(b"-1024.0", b"-10x4.0")
    with pytest.raises(Unreadable, match="break the standard") as caught:
        read(record(written(path, data)))
    assert "10x4" not in str(caught.value)
    padded = read(record(Path(get_testdata_file("MR_small_padded.dcm", download=False))))
    assert "header breaks the DICOM standard in places" in padded.warnings


def test_web_page_named_dcm_is_a_series_that_says_why(tmp_path):
    path = written(tmp_path / "a.dcm", b"<html></html>" * 50)
    (found,) = find_series([path])
    with pytest.raises(Unreadable, match="not a DICOM file"):
        read(Record("a", "dicom", found.files))


# --- pictures


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


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_broken_pictures_say_why(tmp_path):
    good = saved(tmp_path / "a.png", volume((20, 20)).astype(np.uint8)).read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    pages = io.BytesIO()
    Pillow.new("L", (4, 4)).save(pages, "TIFF", save_all=True, append_images=[Pillow.new("L", (4, 4), 3)])
    cases = {
        "b.png": (bytes(flipped), "damaged or cut short"),
        "c.png": (good[:-60], "damaged or cut short"),
        "d.png": (b"<html>" * 20, "not a PNG, JPEG or TIFF picture"),
        "e.png": (b"", "empty file"),
        "f.png": (png_claiming(60000, 60000), "bomb"),
        "g.png": (png_claiming(10000, 10000), "bomb"),  # Pillow only warns of this one
        "h.tif": (pages.getvalue(), "2 pages"),
    }
    for name, (data, reason) in cases.items():
        with pytest.raises(Unreadable, match=reason) as caught:
            read(record(written(tmp_path / name, data)))
        assert str(tmp_path) not in str(caught.value)


# --- arrays


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


def test_broken_arrays_say_why(tmp_path):
    np.savez(tmp_path / "pickled.npz", images=np.array([{}, {}], object))
    np.savez(tmp_path / "other.npz", pixels=np.zeros((3, 4, 4)))
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


def test_reading_needs_no_torch():
    code = "import ssl_med.verbs.inspect, ssl_med.data.readers.nifti, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
