"""PET becomes SUV where the header tells everything, and stays as scanned where it does not."""

import numpy as np
import pytest
from dicom_files import PIXELS, dicom_slice, series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from ssl_med.data.readers import read
from ssl_med.data.record import Image

DOSE, HALF_LIFE, WEIGHT = 3.5e8, 6586.2, 72.0  # Bq, s (F-18), kg


def pet(folder, slope: float = 1.0, isotope: dict | None = None, **tags) -> Image:
    """Injection at 10:00:00, series and first slice at 11:01:40; 3700 s passed."""
    given = {"RadionuclideTotalDose": DOSE, "RadionuclideHalfLife": HALF_LIFE, "RadiopharmaceuticalStartTime": "100000"}
    tracer = Dataset()
    for tag, value in (given | (isotope or {})).items():
        setattr(tracer, tag, value)
    facts = {
        "Modality": "PT",
        "Units": "BQML",
        "CorrectedImage": ["DECY", "ATTN", "SCAT"],
        "DecayCorrection": "START",
        "PatientWeight": WEIGHT,
        "SeriesDate": "20200131",
        "SeriesTime": "110140",
        "AcquisitionDate": "20200131",
        "RescaleIntercept": 0,
        "RadiopharmaceuticalInformationSequence": Sequence([tracer]),
    }
    slices = [
        dicom_slice(
            n, PIXELS[n], RescaleSlope=slope * (n + 1), **({"AcquisitionTime": f"11{n + 1:02d}40"} | facts | tags)
        )
        for n in range(5)
    ]
    return read(series(folder, slices))


def activity(slope: float = 1.0) -> np.ndarray:
    return (PIXELS * slope * np.arange(1, 6)[:, None, None])[:, ::-1, ::-1]


def test_suv_is_activity_times_weight_over_what_is_left_of_the_dose(tmp_path):
    image = pet(tmp_path, slope=40.5)
    left = DOSE * 0.5 ** (3700 / HALF_LIFE)
    np.testing.assert_allclose(image.array[0], activity(40.5) * WEIGHT * 1000 / left, rtol=1e-6)
    assert image.warnings == ()
    assert image.array.dtype == np.float32


def test_dose_at_administration_needs_no_clock(tmp_path):
    image = pet(tmp_path, DecayCorrection="ADMIN", SeriesTime=None)
    np.testing.assert_allclose(image.array[0], activity() * WEIGHT * 1000 / DOSE, rtol=1e-6)


def test_date_and_time_of_injection_cross_midnight(tmp_path):
    night = {"RadiopharmaceuticalStartDateTime": "20200130235000"}
    image = pet(tmp_path, isotope=night, SeriesTime="005000", AcquisitionTime="005000")
    left = DOSE * 0.5 ** (3600 / HALF_LIFE)
    np.testing.assert_allclose(image.array[0], activity() * WEIGHT * 1000 / left, rtol=1e-6)


def test_what_is_suv_already_stays(tmp_path):
    image = pet(tmp_path, Units="GML", PatientWeight=None)
    np.testing.assert_array_equal(image.array[0], activity())
    assert image.warnings == ()


@pytest.mark.parametrize(
    ("isotope", "tags", "reason"),
    [
        ({"RadionuclideTotalDose": None}, {}, "RadionuclideTotalDose is missing"),
        ({"RadionuclideHalfLife": 0}, {}, "RadionuclideHalfLife is missing"),
        ({"RadiopharmaceuticalStartTime": None}, {}, "the time of injection is missing"),
        ({"RadiopharmaceuticalStartTime": "120000"}, {}, "injection and scan do not follow each other"),
        ({"RadiopharmaceuticalStartDateTime": "20200131100000+0100"}, {}, "time zone"),
        ({}, {"PatientWeight": None}, "PatientWeight is missing"),
        ({}, {"Units": "CNTS"}, "Units is not BQML"),
        ({}, {"CorrectedImage": ["DECY"]}, "CorrectedImage lacks ATTN or DECY"),
        ({}, {"DecayCorrection": "NONE"}, "DecayCorrection is neither START nor ADMIN"),
        ({}, {"SeriesTime": "150000"}, "SeriesTime is later than the acquisition"),
        ({}, {"SeriesDate": None}, "SeriesDate or SeriesTime is missing"),
        ({}, {"RadiopharmaceuticalInformationSequence": Sequence([])}, "RadionuclideTotalDose is missing"),
    ],
)
def test_nothing_is_guessed(tmp_path, isotope, tags, reason):
    image = pet(tmp_path, isotope=isotope, **tags)
    np.testing.assert_array_equal(image.array[0], activity())
    (warning,) = image.warnings
    assert warning.startswith("PET stays in scanner units, no SUV: ")
    assert reason in warning
