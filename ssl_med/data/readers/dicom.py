"""DICOM: files grouped into series by their headers; one series checked, sorted and stacked into one image."""

import math
import struct
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
import pydicom.config
import pydicom.filereader
from nibabel.affines import voxel_sizes
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import apply_color_lut
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from ssl_med.data.readers.gate import DEFAULT_LIMITS, Limits, check_shape
from ssl_med.data.readers.nifti import canonical
from ssl_med.data.record import Image, Record, Unreadable

_TOLERANCE = 1e-2
"""Share of the slice spacing by which positions may leave an even row."""

_NOT_IMAGES = {"SR", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SEG", "REG", "PR", "KO", "DOC", "ECG", "AU", "FID"}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_BURNED_IN = "burned-in text possible"
_BROKEN = (AttributeError, BytesLengthException, EOFError, IndexError, InvalidDicomError, KeyError)
_BROKEN += (NotImplementedError, OSError, OverflowError, RuntimeError, TypeError, ValueError, struct.error)
"""What pydicom and its decoders raise on damaged or unknown files."""

_TAGS = [
    "BitsAllocated",
    "BitsStored",
    "BurnedInAnnotation",
    "Columns",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "ImagerPixelSpacing",
    "Modality",
    "ModalityLUTSequence",
    "NumberOfFrames",
    "PatientID",
    "PerFrameFunctionalGroupsSequence",
    "PhotometricInterpretation",
    "PixelRepresentation",
    "PixelSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "Rows",
    "SOPClassUID",
    "SamplesPerPixel",
    "SeriesInstanceUID",
    "SharedFunctionalGroupsSequence",
    "StudyInstanceUID",
]


@dataclass(frozen=True)
class Series:
    """Files that make one image, and whom they belong to; empty where the header does not tell."""

    files: tuple[Path, ...]
    patient: str = ""
    study: str = ""
    modality: str = ""


@dataclass(frozen=True)
class _Plane:
    """One slice: where it lies (LPS, mm; NaN where the header does not tell) and how its numbers become units."""

    position: np.ndarray
    orientation: np.ndarray  # (2, 3): direction along a row, along a column
    spacing: np.ndarray  # between rows, between columns
    rescale: tuple[float, float]  # slope, intercept

    @property
    def placed(self) -> bool:
        return all(np.isfinite(part).all() for part in (self.position, self.orientation, self.spacing))


def find_series(files: Iterable[Path]) -> Iterator[Series]:
    """Group files into images by study and series, in the order of their first files, reading headers only.

    Slices with a position are grouped; multi-frame files and projections (X-ray, ultrasound) are images of their own.
    A file that cannot be read is a series of its own too, so that reading it tells the reason.

    Args:
        files: DICOM files in any folder.
    """
    groups: dict[object, list[tuple[Series, bool]]] = defaultdict(list)
    for file in sorted(files):
        with _quiet():
            try:
                key, series, placed = _membership(file)
            except Unreadable:  # told again when the image is read
                key, series, placed = file, Series((file,)), False
        groups[key].append((series, placed))
    for members in groups.values():
        if any(placed for _, placed in members):
            yield replace(members[0][0], files=tuple(file for series, _ in members for file in series.files))
        else:
            yield from (series for series, _ in members)


def _membership(file: Path) -> tuple[object, Series, bool]:
    """What a file is grouped by, the series it would be alone, and whether it has a position."""
    header = _header(file)
    patient, study, modality, uid = (
        str(header.get(tag) or "") for tag in ("PatientID", "StudyInstanceUID", "Modality", "SeriesInstanceUID")
    )
    with _refusing("NumberOfFrames is no number"):
        alone = not uid or _frames(header) > 1
    key = file if alone else (patient, study, uid)
    return key, Series((file,), patient, study, modality), "ImagePositionPatient" in header


def read(record: Record, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Read one series: a volume in RAS order, or a 2D image as it is displayed.

    Rescale slope and intercept are applied (Hounsfield units for CT), MONOCHROME1 is inverted so that bright is high,
    colour stays three 8-bit channels.

    Raises:
        Unreadable: damaged, not an image, a localiser, mixed geometry, missing or doubled slices.
    """
    with _quiet() as caught:
        headers = [_header(file) for file in record.files]
        with _refusing("header holds values that break the standard"):
            _check_kind(headers, limits)
            planes = [plane for header in headers for plane in _planes(header)]
            notes = _notes(headers[0])
        order, affine = _sorted(planes)
        values = _values(record.files, planes, order)
    if caught:
        notes += ("header breaks the DICOM standard in places",)
    return _image(values, planes[0], affine, str(headers[0].get("Modality") or ""), notes)


def _image(values: np.ndarray, plane: _Plane, affine: np.ndarray | None, modality: str, notes: tuple) -> Image:
    """(slices, rows, columns, c) -> image."""
    if len(values) == 1:
        spacing = tuple(np.nan_to_num(plane.spacing, nan=1.0).tolist())
        return Image(np.moveaxis(values[0], -1, 0), spacing, affine, modality, notes)
    if affine is None:
        raise Unreadable("several slices without position")
    array, affine = canonical(values.transpose(2, 1, 0, 3), affine)
    return Image(array.transpose(3, 2, 1, 0), tuple(voxel_sizes(affine)[::-1].tolist()), affine, modality, notes)


# --- headers


@contextmanager
def _refusing(reason: str) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise Unreadable(f"{reason} ({type(error).__name__})") from None  # its words can hold a path or a name


def _header(file: Path) -> Dataset:
    with _refusing("not a DICOM file, or a broken one"):
        meta = pydicom.filereader.read_file_meta_info(file)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise Unreadable("deflated transfer syntax: its size cannot be checked before it is unpacked")
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
    with _refusing("header holds values that break the standard"):
        for tag in _TAGS:
            header.get(tag)  # pydicom interprets a value when it is first asked for
    return header


@contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Keep pydicom's warnings off the screen and out of every log: they quote values, names of patients among them."""
    before = pydicom.config.logger.disabled
    pydicom.config.logger.disabled = True
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        pydicom.config.logger.disabled = before


def _check_kind(headers: list[Dataset], limits: Limits) -> None:
    """Everything that can be said before a pixel is read."""
    first = headers[0]
    if first.get("Modality") in _NOT_IMAGES or "Rows" not in first or "Columns" not in first:
        raise Unreadable(f"no image: DICOM object of modality {first.get('Modality') or 'unknown'}")
    if any("LOCALIZER" in [str(word).upper() for word in header.get("ImageType") or []] for header in headers):
        raise Unreadable("localiser")
    for tag in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation"):
        if len(found := {header.get(tag) for header in headers}) > 1:
            raise Unreadable(f"mixed {tag} in one series: {sorted(map(str, found))}")
    if len(headers) > 1 and any(_frames(header) > 1 for header in headers):
        raise Unreadable("several multi-frame files in one series")
    count = sum(_frames(header) for header in headers)
    shape = (count, int(first.Rows), int(first.Columns), int(first.get("SamplesPerPixel", 1)))
    check_shape(shape, 4, limits)


def _frames(header: Dataset) -> int:
    return int(header.get("NumberOfFrames") or 1)


def _notes(header: Dataset) -> tuple[str, ...]:
    captured = str(header.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE)
    burned = str(header.get("BurnedInAnnotation", "")).upper() == "YES"
    return (_BURNED_IN,) if captured or burned or header.get("Modality") == "US" else ()


# --- geometry


def _planes(header: Dataset) -> list[_Plane]:
    """One plane per frame; in a multi-frame file they stand in its functional groups."""
    if "PerFrameFunctionalGroupsSequence" not in header:
        if _frames(header) > 1:
            raise Unreadable(f"{_frames(header)} frames without positions: a film or a time series")
        return [_plane(header, header, header, header)]
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = header.PerFrameFunctionalGroupsSequence
    if len(groups) != _frames(header):
        raise Unreadable(f"{len(groups)} functional groups for {_frames(header)} frames")
    names = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    names += ("PixelValueTransformationSequence",)
    planes = [_plane(*(_macro(name, group, shared) for name in names)) for group in groups]
    if len(planes) > 1 and any(np.isnan(plane.position).any() for plane in planes):
        raise Unreadable(f"{len(planes)} frames without positions: a film or a time series")
    return planes


def _macro(name: str, group: Dataset, shared: Dataset) -> Dataset:
    for place in (group, shared):
        if place.get(name):
            return place[name][0]
    return Dataset()


def _plane(position: Dataset, orientation: Dataset, measures: Dataset, transformation: Dataset) -> _Plane:
    spacing = _numbers(measures, "PixelSpacing", 2)
    slope, intercept = (transformation.get(tag) for tag in ("RescaleSlope", "RescaleIntercept"))
    return _Plane(
        position=_numbers(position, "ImagePositionPatient", 3),
        orientation=_numbers(orientation, "ImageOrientationPatient", 6).reshape(2, 3),
        spacing=_numbers(measures, "ImagerPixelSpacing", 2) if np.isnan(spacing).any() else spacing,
        rescale=(1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)),
    )


def _numbers(dataset: Dataset, tag: str, count: int) -> np.ndarray:
    values = dataset.get(tag)
    if values is None or values == "":
        return np.full(count, np.nan)
    numbers = np.array([float(value) for value in values])
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise Unreadable(f"{tag} is not {count} finite numbers")
    return numbers


def _sorted(planes: list[_Plane]) -> tuple[np.ndarray, np.ndarray | None]:
    """Order of the planes along their normal, and the affine (column, row, slice) -> RAS world mm."""
    first = planes[0]
    if missing := sum(not plane.placed for plane in planes):
        if len(planes) > 1:
            raise Unreadable(f"{missing} of {len(planes)} slices lack position, orientation or spacing")
        return np.zeros(1, int), None
    _check_alike(planes)
    along_row, along_column = first.orientation
    normal = np.cross(along_row, along_column)
    positions = np.array([plane.position for plane in planes])
    order = np.argsort(positions @ normal, kind="stable")
    step = normal if len(planes) == 1 else _step(positions[order], normal)
    affine = np.eye(4)
    affine[:3] = np.stack([along_row * first.spacing[1], along_column * first.spacing[0], step, positions[order[0]]], 1)
    return order, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's world is left, posterior, superior


def _check_alike(planes: list[_Plane]) -> None:
    directions = np.array([plane.orientation for plane in planes])
    if np.abs(directions - directions[0]).max() > 1e-3:
        raise Unreadable("mixed orientation in one series")
    if np.abs(directions[0] @ directions[0].T - np.eye(2)).max() > 1e-2:
        raise Unreadable("ImageOrientationPatient is not a pair of unit vectors at a right angle")
    spacings = np.array([plane.spacing for plane in planes])
    if spacings.min() <= 0:
        raise Unreadable("PixelSpacing is not positive")
    if np.abs(spacings / spacings[0] - 1).max() > 1e-3:
        raise Unreadable("mixed PixelSpacing in one series")


def _step(positions: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Mean step between neighbouring slices, which must lie evenly on one straight line."""
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    if gaps.min() <= 1e-4 or gaps.min() < _TOLERANCE * usual:
        raise Unreadable("duplicate positions: several slices at one place")
    if (worst := float(np.abs(gaps - usual).max())) > _TOLERANCE * usual:
        kind = "missing slices" if gaps.max() > 1.5 * usual else "uneven slices"
        raise Unreadable(f"{kind}: gaps of {gaps.min():.3f} to {gaps.max():.3f} mm, {worst / usual:.0%} off the median")
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    line = positions[0] + np.arange(len(positions))[:, None] * step
    sideways = (positions - line) - ((positions - line) @ normal)[:, None] * normal
    if np.linalg.norm(sideways, axis=1).max() > 0.1 * usual:
        raise Unreadable("slices do not lie on a straight line")
    return step


# --- values


def _values(files: tuple[Path, ...], planes: list[_Plane], order: np.ndarray) -> np.ndarray:
    """Sorted and rescaled values (slices, rows, columns, c)."""
    rank = np.argsort(order)
    numbers = {number for plane in planes for number in plane.rescale}
    if not all(math.isfinite(number) for number in numbers):
        raise Unreadable("rescale slope or intercept is not finite")
    stored = {plane.rescale for plane in planes} == {(1.0, 0.0)}
    whole = all(number.is_integer() for number in numbers)
    volume, index = np.empty(0), 0
    for file in files:
        for frame in _decoded(file):
            if volume.size == 0:
                dtype = frame.dtype if stored else np.int32 if whole and frame.dtype.kind in "iu" else np.float32
                volume = np.empty((len(planes), *frame.shape), dtype)
            _put(volume, int(rank[index]), frame, planes[index].rescale)
            index += 1
    if index != len(planes):
        raise Unreadable(f"{index} frames of pixels where the header announces {len(planes)}")
    return volume if stored or volume.dtype.kind == "f" else _narrow(volume)


def _put(volume: np.ndarray, place: int, frame: np.ndarray, rescale: tuple[float, float]) -> None:
    if frame.shape != volume.shape[1:]:
        raise Unreadable(f"slices of shape {frame.shape} and {volume.shape[1:]} in one series")
    if rescale != (1.0, 0.0):
        frame = frame * np.float64(rescale[0]) + rescale[1]
    if volume.dtype.kind in "iu":
        limits = np.iinfo(volume.dtype)
        if frame.min() < limits.min or frame.max() > limits.max:
            raise Unreadable("values beyond the range of their type")
    volume[place] = frame


def _narrow(volume: np.ndarray) -> np.ndarray:
    small = volume.min() >= -(2**15) and volume.max() < 2**15
    return volume.astype(np.int16) if small else volume


def _decoded(file: Path) -> np.ndarray:
    """Stored values (frames, rows, columns, c), bright is high, colour as 8-bit RGB."""
    with _refusing("not a DICOM file, or a broken one"):
        dataset = pydicom.dcmread(file)
        syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID", ""))).name or "unknown"
    with _refusing(f"pixels cannot be decoded, transfer syntax {syntax}"):
        array = dataset.pixel_array
        frames = 1 if _frames(dataset) == 1 else len(array)
        photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
        if photometric == "PALETTE COLOR":
            array = apply_color_lut(array, dataset)
        if photometric == "MONOCHROME1":
            array = _inverted(array, dataset)
        if "ModalityLUTSequence" in dataset:
            raise Unreadable("modality lookup table: values are no linear function of the units")
        colours = 1 if photometric.startswith("MONOCHROME") else 3
        array = array.reshape(frames, int(dataset.Rows), int(dataset.Columns), colours)
    if colours == 3 and array.dtype == np.uint16 and photometric == "PALETTE COLOR":
        return (array >> 8).astype(np.uint8)
    if colours == 3 and array.dtype != np.uint8:
        raise Unreadable(f"colour of type {array.dtype}, expected 8 bits")
    return array


def _inverted(array: np.ndarray, dataset: Dataset) -> np.ndarray:
    if array.dtype.kind == "f":
        return -array
    highest = -1 if dataset.PixelRepresentation else 2 ** int(dataset.BitsStored) - 1
    if array.max() > highest and not dataset.PixelRepresentation:
        raise Unreadable("values beyond BitsStored")
    return (highest - array).astype(array.dtype)
