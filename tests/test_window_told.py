"""The window that a DICOM header asks for: as pydicom applies it, on the values that the reader gives."""

import numpy as np
import pytest
from dicom_files import PIXELS, dicom_slice, nested, saved, series
from pydicom.pixels import apply_rescale, apply_windowing

from ssl_med.data.index import describe_layout, find_images
from ssl_med.data.intensity import scale_of, statistics
from ssl_med.data.module import StoreData
from ssl_med.data.prepare import build_store
from ssl_med.data.readers.dicom import read
from ssl_med.data.record import Record
from ssl_med.data.store import Store
from ssl_med.errors import UserError

STRAIGHT = {"RescaleSlope": 1, "RescaleIntercept": 0}


def one(folder, pixels=PIXELS[2], **tags):
    dataset = dicom_slice(0, pixels, WindowCenter=150, WindowWidth=90, **tags)
    saved(folder / "x.dcm", dataset)
    return dataset, read(Record("x", "dicom", (folder / "x.dcm",)))


def shown(image) -> np.ndarray:
    return scale_of("voi", image.modality, image.array.dtype.name, statistics(image.array), image.window)(image.array)


def by_pydicom(dataset, slope=1.0, intercept=0.0) -> np.ndarray:
    """What pydicom shows, 0 to 1 over the range that it maps to."""
    values = apply_rescale(PIXELS[2].astype(np.uint16), dataset)
    found = apply_windowing(values, dataset)
    low, high = intercept, 4095 * slope + intercept
    return (found - low) / (high - low)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_functions_are_those_of_pydicom(tmp_path, function):
    dataset, image = one(tmp_path, Modality="MR", **STRAIGHT, **({"VOILUTFunction": function} if function else {}))
    assert shown(image)[0] == pytest.approx(by_pydicom(dataset), abs=2e-4)
    assert shown(image).std() > 0.02


def test_hounsfield_units_are_windowed_after_the_rescale(tmp_path):
    dataset = dicom_slice(0, PIXELS[2], WindowCenter=["-880", "40"], WindowWidth=["90", "400"])
    saved(tmp_path / "x.dcm", dataset)
    image = read(Record("x", "dicom", (tmp_path / "x.dcm",)))
    assert image.window == "-880.5/89"  # the first of two, as LINEAR_EXACT
    dataset.WindowCenter, dataset.WindowWidth = -880, 90
    assert shown(image)[0] == pytest.approx(by_pydicom(dataset, 1.0, -1024.0), abs=2e-4)


@pytest.mark.parametrize("rescale", [STRAIGHT, {"RescaleSlope": 2, "RescaleIntercept": -7}])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_an_image_that_is_turned_round_is_shown_as_a_viewer_shows_it(tmp_path, rescale, function):
    tags = {"Modality": "CR", "PhotometricInterpretation": "MONOCHROME1", "VOILUTFunction": function, **rescale}
    centre = 150 if rescale is STRAIGHT else 293
    dataset = dicom_slice(0, PIXELS[2], WindowCenter=centre, WindowWidth=90, **tags)
    saved(tmp_path / "x.dcm", dataset)
    image = read(Record("x", "dicom", (tmp_path / "x.dcm",)))
    slope, intercept = (1.0, 0.0) if rescale is STRAIGHT else (2.0, -7.0)
    assert shown(image)[0] == pytest.approx(1 - by_pydicom(dataset, slope, intercept), abs=2e-4)
    assert shown(image).std() > 0.02


def test_a_volume_has_the_window_of_its_middle_slice(tmp_path):
    slices = [dicom_slice(n, p, WindowCenter=100 * n + 0.5, WindowWidth=51) for n, p in enumerate(PIXELS)]
    assert read(series(tmp_path, slices)).window == "200/50"


def test_an_enhanced_file_has_its_window_in_the_functional_groups(tmp_path):
    dataset = dicom_slice(0, PIXELS[0], NumberOfFrames=5, WindowCenter=1, WindowWidth=2)
    dataset.PixelData = PIXELS.astype("<u2").tobytes()
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(dataset, tag)
    orientation = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    window = {"WindowCenter": 30, "WindowWidth": 8, "VOILUTFunction": "SIGMOID"}
    measures = {"PixelSpacing": [1, 1]}
    shared = nested(PlaneOrientationSequence=orientation, PixelMeasuresSequence=measures, FrameVOILUTSequence=window)
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [
        nested(PlanePositionSequence={"ImagePositionPatient": [0, 0, n]}) for n in range(5)
    ]
    saved(tmp_path / "x.dcm", dataset)
    assert read(Record("x", "dicom", (tmp_path / "x.dcm",))).window == "30/8:SIGMOID"


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowWidth": 0},
        {"WindowWidth": 1},  # LINEAR: a step
        {"WindowWidth": None},
        {"WindowCenter": None},
        {"VOILUTFunction": "CURVED"},
        {"WindowCenter": [], "WindowWidth": []},
    ],
)
def test_what_is_no_window_is_no_fault_of_the_image(tmp_path, tags):
    dataset = dicom_slice(0, PIXELS[2], WindowCenter=5, WindowWidth=10)
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    saved(tmp_path / "x.dcm", dataset)
    assert read(Record("x", "dicom", (tmp_path / "x.dcm",))).window == ""


def test_suv_takes_the_window_along(tmp_path):
    tags = {"Modality": "PT", "Units": "BQML", "CorrectedImage": ["ATTN", "DECY"], "DecayCorrection": "ADMIN"}
    isotope = nested(x={"a": 1})
    isotope.clear()
    isotope.RadionuclideTotalDose, isotope.RadionuclideHalfLife = 1e8, 6586.2
    tags |= {"PatientWeight": 70, "RadiopharmaceuticalInformationSequence": [isotope], **STRAIGHT}
    _, image = one(tmp_path, VOILUTFunction="LINEAR_EXACT", **tags)
    factor = 70 * 1000 / 1e8
    assert image.units == "SUV"
    assert image.window == f"{150 * factor:.9g}/{90 * factor:.9g}"


def stored(folder, **tags) -> Store:
    (folder / "in").mkdir(parents=True)
    for number in range(2):
        uids = {"SeriesInstanceUID": f"1.2.{number}", "StudyInstanceUID": f"1.3.{number}", "PatientID": f"P{number}"}
        window = {"WindowCenter": 150 + 20 * number, "WindowWidth": 90} | tags
        dataset = dicom_slice(0, PIXELS[2], Modality="MR", VOILUTFunction="LINEAR_EXACT", **uids, **STRAIGHT, **window)
        saved(folder / "in" / f"{number}.dcm", dataset)
    names = list(describe_layout(folder / "in").class_names)
    build_store(list(find_images(folder / "in")), folder / "store", names, say=lambda text: None)
    return Store(folder / "store")


def test_a_training_sees_each_image_in_its_own_window(tmp_path):
    store = stored(tmp_path)
    data = StoreData(str(store.folder), crop=[4, 3], batch_size=2, intensity="voi")
    for row, centre in zip(sorted(store.rows, key=lambda row: row.window), (150, 170), strict=True):
        assert row.window == f"{centre}/90"
        wanted = np.clip((PIXELS[2] - centre) / 90 + 0.5, 0, 1)
        place = [r.id for r in store.rows].index(row.id)
        found = next(b for b in (data.crops()[p] for p in range(20)) if b["id"] == row.id)
        assert found["image"][0].numpy() == pytest.approx(wanted, abs=1e-6), place


def test_images_without_a_window_are_counted_before_anything_is_read(tmp_path):
    store = stored(tmp_path, WindowCenter=None)
    with pytest.raises(UserError, match="2 of 2 images in split 'train' have no window in the header"):
        StoreData(str(store.folder), crop=[4, 3], batch_size=2, intensity="voi").crops()
