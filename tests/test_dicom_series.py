"""Which DICOM files make one image: stacks told apart, set aside, tilted, or refused with the reason."""

import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from dicom_files import PIXELS, at, dicom_slice, multiframe, saved, saved_all, series
from image_files import volume
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage

from ssl_med.data.readers import read
from ssl_med.data.readers.dicom import Series, find_series
from ssl_med.data.record import Image, Record, Unreadable


def images(folder: Path, datasets: list[Dataset]) -> list[tuple[Series, Image]]:
    found = list(find_series(saved_all(folder, datasets)))
    return [(series, read(Record("s", "dicom", series.files, item=series.item))) for series in found]


def turned(stored: np.ndarray) -> np.ndarray:
    return stored[:, ::-1, ::-1] - 1024  # LPS -> RAS turns x and y


SECOND = PIXELS + 500

TWO_STACKS = {
    "EchoTime": ({"EchoTime": 10}, {"EchoTime": 80}),
    "ImageType": ({"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}),
    "AcquisitionNumber": ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
    "b-value": ({"DiffusionBValue": 0}, {"DiffusionBValue": 1000}),
    "time point": ({"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}),
    "ConvolutionKernel": ({"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}),
}


@pytest.mark.parametrize("name", TWO_STACKS)
def test_two_stacks_in_one_series_are_told_apart(tmp_path, name):
    tags = TWO_STACKS[name]
    mixed = [dicom_slice(n, p[n], **t) for n in range(5) for p, t in zip((PIXELS, SECOND), tags, strict=True)]
    (first, one), (second, two) = images(tmp_path, mixed)
    np.testing.assert_array_equal(one.array[0], turned(PIXELS))
    np.testing.assert_array_equal(two.array[0], turned(SECOND))
    assert first.notes == second.notes == (f"one of 2 parts of a series, told apart by {name}",)


def test_cine_whose_trigger_times_differ_from_slice_to_slice(tmp_path):
    phases = [PIXELS + 200 * k for k in range(3)]
    mixed = [dicom_slice(n, phases[k][n], TriggerTime=40 * k + 3 * n) for n in range(5) for k in (2, 0, 1)]
    found = images(tmp_path, mixed)
    assert sorted(image.array.min() for _, image in found) == [phase.min() - 1024 for phase in phases]
    assert {series.notes for series, _ in found} == {
        ("one of 3 parts of a series, told apart by order of TriggerTime",),
    }
    for _, image in found:
        assert np.ptp(image.array.astype(int) - turned(PIXELS)) == 0


def test_echoes_times_time_points_need_two_separators(tmp_path):
    kinds = list(itertools.product((10, 20), (1, 2)))
    mixed = [
        dicom_slice(n, PIXELS[n] + 100 * k, EchoTime=echo, TemporalPositionIdentifier=point)
        for n in range(5)
        for k, (echo, point) in enumerate(kinds)
    ]
    found = images(tmp_path, mixed)
    assert {series.notes[0] for series, _ in found} == {
        "one of 4 parts of a series, told apart by EchoTime and time point"
    }
    assert sorted(int(image.array.min()) for _, image in found) == [PIXELS.min() - 1024 + 100 * k for k in range(4)]


def test_three_planes_in_one_series_are_three_volumes(tmp_path):
    axial = [dicom_slice(n, PIXELS[n]) for n in range(5)]
    tags = [
        {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "ImagePositionPatient": [4.0 * n, -7, 9]} for n in range(5)
    ]
    found = images(tmp_path, axial + [dicom_slice(n, SECOND[n], **tags[n]) for n in range(5)])
    assert {image.spacing for _, image in found} == {(2.5, 0.8, 0.5), (0.8, 0.5, 4.0)}
    assert all("told apart by orientation" in series.notes[0] for series, _ in found)


def test_a_part_that_is_not_whole_keeps_the_series_together_and_refused(tmp_path):
    mixed = [dicom_slice(n, PIXELS[n], EchoTime=10) for n in (0, 1, 3, 4)]
    mixed += [dicom_slice(n, SECOND[n], EchoTime=80) for n in range(5)]
    with pytest.raises(Unreadable, match="duplicate positions"):
        read(series(tmp_path, mixed))


def test_frames_of_one_place_are_images_of_their_own(tmp_path):
    frames = [dicom_slice(0, PIXELS[n], TriggerTime=40 * n) for n in range(5)]
    found = images(tmp_path, frames)
    assert [image.array.shape for _, image in found] == [(1, 4, 3)] * 5


def test_files_copied_to_a_second_folder_count_once(tmp_path):
    (tmp_path / "a").mkdir()
    saved_all(tmp_path / "a", [dicom_slice(n, PIXELS[n]) for n in range(5)])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (found,) = find_series(tmp_path.rglob("*.dcm"))
    assert found.notes == ("5 copies of slices left out",)
    np.testing.assert_array_equal(read(Record("s", "dicom", found.files)).array[0], turned(PIXELS))


def test_the_same_identifier_with_other_pixels_is_no_copy(tmp_path):
    twice = [dicom_slice(n, PIXELS[n], SOPInstanceUID=f"1.9.{n}") for n in range(5)]
    twice.append(dicom_slice(2, SECOND[2], SOPInstanceUID="1.9.2"))
    with pytest.raises(Unreadable, match="duplicate positions"):
        read(series(tmp_path, twice))


def test_gantry_tilt_is_told_and_the_affine_is_sheared(tmp_path):
    tilt = np.radians(20)
    slices = [
        dicom_slice(n, PIXELS[n], ImagePositionPatient=[10, 20 + 2.5 * n * np.tan(tilt), 30 + 2.5 * n])
        for n in range(5)
    ]
    image = read(series(tmp_path, slices))
    assert image.warnings == ("gantry tilt of 20.0 degrees: slices are sheared, the affine says how",)
    for n, row, column in itertools.product(range(5), range(4), range(3)):
        world = [-10 - 0.5 * column, -20 - 2.5 * n * np.tan(tilt) - 0.8 * row, 30 + 2.5 * n, 1]
        x, y, z, _ = np.linalg.solve(image.affine, world)
        assert np.abs(np.array([x, y, z]) - np.rint([x, y, z])).max() < 1e-4
        assert image.array[0, round(z), round(y), round(x)] == PIXELS[n, row, column] - 1024


AXES = [
    (row, column)
    for row, column in itertools.product(np.vstack([np.eye(3), -np.eye(3)]), repeat=2)
    if abs(row @ column) < 0.5
]


def rotated(degrees: float) -> np.ndarray:
    a, b = np.radians(degrees), np.radians(degrees / 2)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    return about_z @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])


@pytest.mark.parametrize("degrees", [0.0, 17.0])
@pytest.mark.parametrize("downwards", [False, True])
def test_every_orientation_keeps_its_millimetres(tmp_path, degrees, downwards):
    """24 pairs of axes, straight and oblique, stacked with and against the normal: all 48 codes."""
    for number, axes in enumerate(AXES):
        along_row, along_column = (rotated(degrees) @ axis for axis in axes)
        normal = np.cross(along_row, along_column) * (-1 if downwards else 1)
        places = [np.array([5, -6, 7]) + 3.0 * n * normal for n in range(5)]
        tags = {"ImageOrientationPatient": [*along_row.round(9), *along_column.round(9)]}
        folder = tmp_path / str(number)
        folder.mkdir()
        slices = [
            dicom_slice(n, PIXELS[n], ImagePositionPatient=list(place.round(9)), **tags)
            for n, place in enumerate(places)
        ]
        image = read(series(folder, slices))
        index = np.indices(image.array.shape[1:]).reshape(3, -1)
        world = (image.affine @ np.vstack([index[::-1], np.ones(index.shape[1])]))[:3].T * [-1, -1, 1]
        where = {int(value) - 1024: place for place, value in np.ndenumerate(PIXELS)}
        for found, value in zip(world, image.array.reshape(-1), strict=True):
            n, row, column = where[int(value)]
            expected = places[n] + 0.5 * column * along_row + 0.8 * row * along_column
            np.testing.assert_allclose(found, expected, atol=1e-4)
        assert np.all(np.diag(image.affine)[:3] > 0)


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_even(tmp_path):
    slices = [dicom_slice(n, PIXELS[n], ImagePositionPatient=[10, 20, round(0.625 * n, 1)]) for n in range(5)]
    assert read(series(tmp_path, slices)).spacing[0] == pytest.approx(0.625)


def test_two_slice_spacings_in_one_series_are_named(tmp_path):
    heights = [0, 1, 2, 3, 6.3, 9.6, 12.9]
    pixels = volume((7, 4, 3)) + 100
    slices = [dicom_slice(n, pixels[n], ImagePositionPatient=[10, 20, z]) for n, z in enumerate(heights)]
    with pytest.raises(Unreadable, match=r"mixed slice spacing: gaps of 1\.000 to 3\.300 mm"):
        read(series(tmp_path, slices))


# --- several frames in one file


def test_stacks_of_one_enhanced_file_are_items(tmp_path):
    groups = [at(3.0 * n, MREchoSequence={"EffectiveEchoTime": echo}) for echo in (10.0, 80.0) for n in range(5)]
    pixels = np.concatenate([PIXELS, SECOND])
    found = images(tmp_path, [multiframe(groups, pixels, Modality="MR")])
    assert [series.item for series, _ in found] == [0, 1]
    for (found_series, image), stored in zip(found, (PIXELS, SECOND), strict=True):
        np.testing.assert_array_equal(image.array[0], stored[:, ::-1, ::-1])
        assert image.warnings == found_series.notes == ("one of 2 parts of a series, told apart by EchoTime",)
    with pytest.raises(Unreadable, match="stack 2 of a file that holds 2"):
        read(Record("s", "dicom", found[0][0].files, item=2))
    with pytest.raises(Unreadable, match="duplicate positions"):
        read(Record("s", "dicom", found[0][0].files))


def test_enhanced_file_rescales_frame_by_frame(tmp_path):
    groups = [
        at(3.0 * n, PixelValueTransformationSequence={"RescaleSlope": n + 1, "RescaleIntercept": -n}) for n in range(5)
    ]
    image = read(series(tmp_path, [multiframe(groups)]))
    n = np.arange(5)[:, None, None]
    np.testing.assert_array_equal(image.array[0], (PIXELS * (n + 1) - n)[:, ::-1, ::-1])


def test_enhanced_file_with_too_few_groups_is_refused(tmp_path):
    dataset = multiframe([at(3.0 * n) for n in range(4)])
    dataset.NumberOfFrames = 5
    with pytest.raises(Unreadable, match="4 functional groups for 5 frames"):
        read(series(tmp_path, [dataset]))


def test_ultrasound_film_has_time_first(tmp_path):
    image = read(series(tmp_path, [multiframe(None, Modality="US")]))
    np.testing.assert_array_equal(image.array[0], PIXELS)
    assert (image.affine, image.spacing) == (None, (1.0, 1.0, 1.0))
    assert image.warnings == ("burned-in text possible",)


# --- set aside


def study(folder: Path, **second) -> dict[str, Series]:
    """An original series and another one of the same study, by modality and series number."""
    originals = [dicom_slice(n, PIXELS[n], ImageType=["ORIGINAL", "PRIMARY"]) for n in range(5)]
    second = {"ImageType": ["DERIVED", "SECONDARY"], "SeriesInstanceUID": "1.3", **second}
    others = [dicom_slice(n, SECOND[n], **second) for n in range(5)]
    found = list(find_series(saved_all(folder, originals + others)))
    return {"first": found[0], "second": found[-1]}


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({}, "derived from other images of its study"),
        ({"StudyInstanceUID": "1.7"}, ""),
        ({"Modality": "MR"}, ""),
        ({"ImageType": ["ORIGINAL", "PRIMARY"]}, ""),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, "secondary capture in a study with original images"),
        ({"SOPClassUID": SecondaryCaptureImageStorage, "PatientID": "P8"}, ""),
    ],
)
def test_what_repeats_its_study_is_set_aside(tmp_path, tags, reason):
    found = study(tmp_path, **tags)
    assert (found["first"].aside, found["second"].aside) == ("", reason)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localiser"),
        ({"Modality": "SR"}, "no image: DICOM object of modality SR"),
        ({"Modality": "SEG"}, "no image: DICOM object of modality SEG"),
    ],
)
def test_what_is_no_image_to_learn_from_is_set_aside(tmp_path, tags, reason):
    (found,) = find_series(saved_all(tmp_path, [dicom_slice(n, PIXELS[n], **tags) for n in range(3)]))
    assert found.aside == reason


@pytest.mark.parametrize(
    ("tags", "risky"),
    [
        ({}, False),
        ({"BurnedInAnnotation": "NO"}, False),
        ({"BurnedInAnnotation": "YES"}, True),
        ({"Modality": "US"}, True),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, True),
        ({"SOPClassUID": CTImageStorage + ".9"}, False),
    ],
)
def test_text_in_the_picture_is_flagged(tmp_path, tags, risky):
    image = read(series(tmp_path, [dicom_slice(0, PIXELS[0], **tags)]))
    assert image.warnings == (("burned-in text possible",) if risky else ())


def test_burned_in_text_of_any_slice_counts(tmp_path):
    slices = [dicom_slice(n, PIXELS[n], BurnedInAnnotation="YES" if n == 3 else "NO") for n in range(5)]
    assert read(series(tmp_path, slices)).warnings == ("burned-in text possible",)


def test_a_modality_that_is_none_is_not_passed_on(tmp_path):
    path = saved(tmp_path / "a.dcm", dicom_slice(0, PIXELS[0], Modality="DOE JOHN"))
    (found,) = find_series([path])
    assert found.modality == read(Record("s", "dicom", (path,))).modality == ""


@pytest.mark.real_data
def test_real_series_agrees_with_gdcm():
    simpleitk = pytest.importorskip("SimpleITK")
    folder = Path(os.environ.get("SSL_MED_DATA", Path(__file__).parents[2] / "shared" / "data")) / "dicom_t1_series"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: set SSL_MED_DATA")
    (found,) = find_series(folder.glob("*.dcm"))
    image = read(Record("s", "dicom", found.files))
    reader = simpleitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(os.fspath(folder)))
    theirs = reader.Execute()
    values = simpleitk.GetArrayFromImage(theirs)
    rng = np.random.default_rng(0)
    for x, y, z in rng.integers(0, theirs.GetSize(), (200, 3)).tolist():
        world = np.array([*theirs.TransformIndexToPhysicalPoint((x, y, z)), 1]) * [-1, -1, 1, 1]
        i, j, k, _ = np.linalg.solve(image.affine, world)
        assert np.abs(np.array([i, j, k]) - np.rint([i, j, k])).max() * max(image.spacing) < 0.05
        assert image.array[0, round(k), round(j), round(i)] == values[z, y, x]
    assert image.array.sum(dtype=np.int64) == values.sum(dtype=np.int64)
