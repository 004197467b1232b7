"""DICOM series are sorted, rescaled and turned to RAS, or say why not."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import PIXELS, at, dicom_slice, multiframe, saved, series
from image_files import record, written
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from ssl_med.data.readers import read
from ssl_med.data.readers.dicom import find_series
from ssl_med.data.record import Record, Unreadable


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


def test_multiframe_is_a_volume_where_its_frames_have_places(tmp_path):
    image = read(series(tmp_path, [multiframe([at(-3.0 * number) for number in range(5)])]))  # frames run downwards
    np.testing.assert_array_equal(image.array[0], PIXELS[::-1, ::-1, ::-1])
    assert image.spacing == (3.0, 0.8, 0.5)
    with pytest.raises(Unreadable, match="5 frames without positions"):
        read(series(tmp_path, [multiframe(None)]))


def test_single_slice_is_an_image_as_displayed(tmp_path):
    image = read(series(tmp_path, [dicom_slice(0, PIXELS[0])]))
    np.testing.assert_array_equal(image.array[0], PIXELS[0] - 1024.0)
    assert image.spacing == (0.8, 0.5)


def test_monochrome1_is_inverted_unless_its_numbers_are_absolute(tmp_path):
    plain = {"PhotometricInterpretation": "MONOCHROME1", "RescaleIntercept": 0}
    image = read(series(tmp_path, [dicom_slice(0, PIXELS[0], Modality="DX", **plain)]))
    np.testing.assert_array_equal(image.array[0], 4095 - PIXELS[0])
    (tmp_path / "ct").mkdir()
    hounsfield = read(series(tmp_path / "ct", [dicom_slice(0, PIXELS[0], PhotometricInterpretation="MONOCHROME1")]))
    np.testing.assert_array_equal(hounsfield.array[0], PIXELS[0] - 1024)


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
        ("no_meta.dcm", "not a DICOM file"),
    ],
)
def test_other_bundled_files_say_why(name, reason):
    with pytest.raises(Unreadable, match=reason):
        read(record(Path(get_testdata_file(name, download=False))))


def test_odd_headers_neither_warn_nor_quote_themselves(tmp_path):
    path = saved(tmp_path / "a.dcm", dicom_slice(0, PIXELS[0]))
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
