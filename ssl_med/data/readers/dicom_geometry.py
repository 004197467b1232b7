"""Where the slices of DICOM images lie, and how they stack into one volume: in order, evenly, or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from ssl_med.data.readers.dicom_header import frames_of, is_inverted
from ssl_med.data.readers.dicom_tags import FILMS, SEPARATORS
from ssl_med.data.readers.dicom_window import shown_in
from ssl_med.data.record import Unreadable

_TOLERANCE = 1e-2
"""Share of the slice spacing by which a slice may lie off its even place ..."""

_ROUNDING = 0.06
"""... or as many mm: scanners write positions of thin slices to a tenth of a millimetre."""

_TILT = 0.5
"""Degrees between the stacking direction and the normal from which a gantry tilt is told."""

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Plane:
    """One slice: where it lies (LPS, mm; NaN where the header does not tell) and how its numbers become units.

    Attributes:
        position: of the centre of the first voxel, (3,).
        orientation: direction along a row, then along a column, (6,).
        spacing: mm between rows, between columns.
        rescale: slope, intercept.
        size: rows, columns.
        tags: what it says of each of :data:`ssl_med.data.readers.dicom_tags.SEPARATORS`.
        window: that it asks to be shown in, see :mod:`ssl_med.data.readers.dicom_window`.
    """

    position: Numbers
    orientation: Numbers
    spacing: Numbers
    rescale: Numbers
    size: tuple[int, int] = (0, 0)
    tags: tuple[str, ...] = ()
    window: str = ""

    @property
    def placed(self) -> bool:
        """The header tells where it lies."""
        return all(isfinite(number) for number in (*self.position, *self.orientation, *self.spacing))


@dataclass(frozen=True)
class Stack:
    """Planes put in order.

    Attributes:
        order: of the planes along their normal.
        affine: (column, row, slice) -> RAS world, mm; None for one image without a place.
        tilt: degrees between the stacking direction and the normal.
    """

    order: np.ndarray
    affine: np.ndarray | None
    tilt: float = 0.0

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the geometry."""
        if self.tilt < _TILT:
            return ()
        return (f"gantry tilt of {self.tilt:.1f} degrees: slices are sheared, the affine says how",)


# --- from headers


def planes_of(header: Dataset) -> list[Plane]:
    """One plane per frame of a file; in a multi-frame file they stand in its functional groups.

    Raises:
        Unreadable: frames without places that are no film, or numbers that are none.
    """
    frames = frames_of(header)
    if "PerFrameFunctionalGroupsSequence" not in header:
        if frames > 1 and not is_film(header):
            raise Unreadable(f"{frames} frames without positions: a film or a time series")
        return [_plane(header, (header,) * 5, (header,))] * frames
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = header.PerFrameFunctionalGroupsSequence
    if len(groups) != frames:
        raise Unreadable(f"{len(groups)} functional groups for {frames} frames")
    names = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    names += ("PixelValueTransformationSequence", "FrameVOILUTSequence")
    planes = [
        _plane(header, tuple(_macro(name, group, shared) for name in names), (group, shared, header))
        for group in groups
    ]
    if len(planes) > 1 and not all(isfinite(plane.position[0]) for plane in planes):
        raise Unreadable(f"{len(planes)} frames without positions: a film or a time series")
    return planes


def is_film(header: Dataset) -> bool:
    """Frames that follow each other in time, as of ultrasound and angiography."""
    return (
        frames_of(header) > 1 and header.get("Modality") in FILMS and "PerFrameFunctionalGroupsSequence" not in header
    )


def _macro(name: str, group: Dataset, shared: Dataset) -> Dataset:
    for place in (group, shared):
        if place.get(name):
            return place[name][0]
    return Dataset()


def _plane(header: Dataset, macros: tuple[Dataset, ...], described: tuple[Dataset, ...]) -> Plane:
    position, orientation, measures, transformation, window = macros
    spacing = _numbers(measures, "PixelSpacing", 2)
    slope, intercept = (transformation.get(tag) for tag in ("RescaleSlope", "RescaleIntercept"))
    rescale = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))
    if not all(isfinite(number) for number in rescale):
        raise Unreadable("rescale slope or intercept is not finite")
    return Plane(
        position=_numbers(position, "ImagePositionPatient", 3),
        orientation=_once(_numbers(orientation, "ImageOrientationPatient", 6)),
        spacing=_once(spacing if isfinite(spacing[0]) else _numbers(measures, "ImagerPixelSpacing", 2)),
        rescale=_once(rescale),
        size=_once((int(header.get("Rows") or 0), int(header.get("Columns") or 0))),
        tags=_once(tuple(_described(places, described) for places in SEPARATORS.values())),
        window=shown_in(header, window, rescale, is_inverted(header)),
    )


@lru_cache(4096)
def _once(values: tuple) -> tuple:
    """Equal tuples as one object: a million slices share what they have in common."""
    return values


def _numbers(dataset: Dataset, tag: str, count: int) -> Numbers:
    values = dataset.get(tag)
    if values is None or values == "":
        return (float("nan"),) * count
    numbers = tuple(float(value) for value in values)
    if len(numbers) != count or not all(isfinite(number) for number in numbers):
        raise Unreadable(f"{tag} is not {count} finite numbers")
    return numbers


def _described(places: Sequence[tuple[str | int, ...]], datasets: tuple[Dataset, ...]) -> str:
    """The first value found on one of the paths, as text; empty where there is none."""
    for *sequences, tag in places:
        for dataset in datasets:
            place = dataset
            for sequence in sequences:
                place = (place.get(sequence) or [Dataset()])[0]
            found = place.get(tag)
            value = found.value if isinstance(found, DataElement) else found
            if value is not None and value != "":
                return str(value)
    return ""


# --- from planes


def stack(planes: Sequence[Plane]) -> Stack:
    """Put planes in order along their normal.

    Raises:
        Unreadable: they are no even stack: unplaced, of mixed geometry, missing, doubled or crooked slices.
    """
    if missing := sum(not plane.placed for plane in planes):
        if len(planes) > 1:
            raise Unreadable(f"{missing} of {len(planes)} slices lack position, orientation or spacing")
        return Stack(np.zeros(1, int), None)
    _check_alike(planes)
    along_row, along_column = np.array(planes[0].orientation).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    normal /= np.linalg.norm(normal)
    positions = np.array([plane.position for plane in planes])
    order = np.argsort(positions @ normal, kind="stable")
    step = normal if len(planes) == 1 else _step(positions[order], normal)
    rows, columns = planes[0].spacing
    affine = np.eye(4)
    affine[:3] = np.stack([along_row * columns, along_column * rows, step, positions[order[0]]], 1)
    tilt = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))
    return Stack(order, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, tilt)  # DICOM's world is left, posterior, superior


def _check_alike(planes: Sequence[Plane]) -> None:
    if len({plane.size for plane in planes}) > 1:
        raise Unreadable("mixed Rows or Columns in one series")
    directions = np.array([plane.orientation for plane in planes])
    if np.abs(directions - directions[0]).max() > 1e-3:
        raise Unreadable("mixed orientation in one series")
    pair = directions[0].reshape(2, 3)
    if np.abs(pair @ pair.T - np.eye(2)).max() > 1e-2:
        raise Unreadable("ImageOrientationPatient is not a pair of unit vectors at a right angle")
    spacings = np.array([plane.spacing for plane in planes])
    if spacings.min() <= 0:
        raise Unreadable("PixelSpacing is not positive")
    if np.abs(spacings / spacings[0] - 1).max() > 1e-3:
        raise Unreadable("mixed PixelSpacing in one series")


def _step(positions: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Mean step between neighbouring slices (sorted), which must lie evenly on one straight line."""
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    if gaps.min() <= 1e-4 or gaps.min() < _TOLERANCE * usual:
        raise Unreadable("duplicate positions: several slices at one place")
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    off = positions - (positions[0] + np.arange(len(positions))[:, None] * step)
    along = off @ normal
    if (worst := float(np.abs(along).max())) > max(_TOLERANCE * usual, min(_ROUNDING, usual / 10)):
        kind = _unevenness(gaps, usual)
        raise Unreadable(f"{kind}: gaps of {gaps.min():.3f} to {gaps.max():.3f} mm, {worst:.3f} mm off an even stack")
    sideways = off - along[:, None] * normal
    if np.linalg.norm(sideways, axis=1).max() > 0.1 * usual:
        raise Unreadable("slices do not lie on a straight line")
    return step


def _unevenness(gaps: np.ndarray, usual: float) -> str:
    """Gaps of whole multiples of the usual one are holes; gaps that each come often are two spacings."""
    wide = gaps[gaps > 1.5 * usual] / usual
    if len(wide) and np.abs(wide - np.rint(wide)).max() < 0.05 and len(wide) <= len(gaps) // 4 + 1:
        return "missing slices"
    near = np.abs(gaps[:, None] - gaps[None]) < _ROUNDING
    return "mixed slice spacing" if len(gaps) > 3 and near.sum(1).min() > 1 else "uneven slices"
