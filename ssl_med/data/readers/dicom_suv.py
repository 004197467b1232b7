"""PET in standardised uptake values by body weight, where the header tells all that is needed; nothing is guessed.

Source: QIBA, "SUV vendor-neutral pseudo-code"; DICOM PS3.3 C.8.9.1 (PET series), C.8.9.2 (PET isotope).
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from math import isfinite

from pydicom.dataset import Dataset
from pydicom.valuerep import DA, DT, TM

from ssl_med.data.readers.dicom_header import BROKEN
from ssl_med.data.record import Unreadable

_LONGEST = timedelta(days=14)
"""Longer between injection and scan is a mistake in the header, whatever the isotope."""


def suv_factor(headers: Sequence[Dataset]) -> tuple[float, tuple[str, ...]]:
    """The factor from stored units to SUV (g/ml), and what a person should know.

    ``SUV = activity * weight / (dose * 2 ** (-elapsed / half life))``, activity in Bq/ml, weight in g, dose in Bq.

    Args:
        headers: of all files of the image.

    Returns:
        The factor; 1 with a warning where a field is missing or makes no sense: the image stays in scanner units.
    """
    first = headers[0]
    if str(first.get("Units") or "") == "GML":
        return 1.0, ()
    try:
        return _factor(headers), ()
    except Unreadable as reason:
        return 1.0, (f"PET stays in scanner units, no SUV: {reason}",)
    except BROKEN:
        return 1.0, ("PET stays in scanner units, no SUV: a field breaks the standard",)


def _factor(headers: Sequence[Dataset]) -> float:
    first = headers[0]
    if any(str(header.get("Units") or "") != "BQML" for header in headers):
        raise Unreadable("Units is not BQML")
    corrected = first.get("CorrectedImage") or []
    if not {"ATTN", "DECY"} <= set([corrected] if isinstance(corrected, str) else corrected):
        raise Unreadable("CorrectedImage lacks ATTN or DECY")
    weight = _positive(first, "PatientWeight")
    isotope = (first.get("RadiopharmaceuticalInformationSequence") or [Dataset()])[0]
    dose, half_life = (_positive(isotope, tag) for tag in ("RadionuclideTotalDose", "RadionuclideHalfLife"))
    correction = str(first.get("DecayCorrection") or "")
    if correction == "ADMIN":
        return weight * 1000 / dose
    if correction != "START":
        raise Unreadable("DecayCorrection is neither START nor ADMIN")
    elapsed = _scanned(headers) - _injected(isotope, first)
    if not timedelta(0) <= elapsed <= _LONGEST:
        raise Unreadable("injection and scan do not follow each other")
    return weight * 1000 / (dose * 2 ** (-elapsed.total_seconds() / half_life))


def _positive(dataset: Dataset, tag: str) -> float:
    value = dataset.get(tag)
    if value is None or not isfinite(number := float(value)) or number <= 0:
        raise Unreadable(f"{tag} is missing")
    return number


def _scanned(headers: Sequence[Dataset]) -> datetime:
    """Time that the decay was corrected to: that of the series, unless it was written after the acquisition."""
    series = _moment(headers[0], "SeriesDate", "SeriesTime")
    if series > min(_moment(header, "AcquisitionDate", "AcquisitionTime") for header in headers):
        raise Unreadable("SeriesTime is later than the acquisition")
    return series


def _injected(isotope: Dataset, header: Dataset) -> datetime:
    if value := isotope.get("RadiopharmaceuticalStartDateTime"):
        moment = DT(str(value))
        if not isinstance(moment, datetime):
            raise Unreadable("the time of injection is missing")
        if moment.tzinfo is not None:
            raise Unreadable("the time of injection is in a time zone of its own")
        return moment
    if value := isotope.get("RadiopharmaceuticalStartTime"):
        return _joined(str(header.SeriesDate), str(value))
    raise Unreadable("the time of injection is missing")


def _moment(header: Dataset, date: str, time: str) -> datetime:
    if not header.get(date) or not header.get(time):
        raise Unreadable(f"{date} or {time} is missing")
    return _joined(str(header.get(date)), str(header.get(time)))


def _joined(date: str, time: str) -> datetime:
    day, hour = DA(date), TM(time)
    if day is None or hour is None:
        raise Unreadable("a date or time is empty")
    return datetime.combine(day, hour)
