"""DICOM: files grouped into series by their headers; one series checked, sorted and stacked into one image."""

import filecmp
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from pydicom.dataset import Dataset

from ssl_med.data.readers.dicom_geometry import Plane, Stack, is_film, planes_of, stack
from ssl_med.data.readers.dicom_header import (
    check_headers,
    fact_of,
    frames_of,
    is_cut_short,
    is_no_image,
    is_secondary_capture,
    modality_of,
    notes_of,
    quiet,
    read_header,
    refusing,
    words_of,
)
from ssl_med.data.readers.dicom_pixels import check_lengths, values_of
from ssl_med.data.readers.dicom_split import parts_of
from ssl_med.data.readers.dicom_suv import suv_factor
from ssl_med.data.readers.dicom_tags import SEXES
from ssl_med.data.readers.dicom_window import scaled_window
from ssl_med.data.readers.gate import DEFAULT_LIMITS, Limits
from ssl_med.data.readers.geometry import canonical
from ssl_med.data.record import Image, Record, Unreadable

_CROSS_SECTIONS = ("CT", "MR", "PT", "NM")
_NONSTANDARD = "header breaks the DICOM standard in places"


@dataclass(frozen=True)
class Series:
    """Files that make one image, and whom they belong to; empty where the header does not tell.

    Attributes:
        files: of the image.
        patient, study, modality: as the header tells.
        item: which of the stacks of a multi-frame file that holds several; None where it holds one.
        notes: what a person should know of how the files were grouped.
        aside: why the image should not be used, although it can be read; empty if it should.
        site: name of the institution; it stays in memory, and is stored as a keyed hash.
        sex: ``F``, ``M`` or ``O``.
    """

    files: tuple[Path, ...]
    patient: str = ""
    study: str = ""
    modality: str = ""
    item: int | None = None
    notes: tuple[str, ...] = ()
    aside: str = ""
    site: str = field(default="", repr=False)
    sex: str = ""

    @property
    def groups(self) -> tuple[tuple[str, str], ...]:
        """Subgroups of the image, as of a record."""
        return (("sex", self.sex),) if self.sex in SEXES else ()


@dataclass(frozen=True)
class _Member:
    """What grouping has to know of one file."""

    file: Path
    series: Series
    planes: tuple[Plane, ...] = ()
    uid: str = ""
    kind: str = "original"  # or derived, secondary capture, localiser, no image, cut short, unreadable


# --- grouping


def find_series(files: Iterable[Path]) -> Iterator[Series]:
    """Group files into images by study and series, in the order of their first files, reading headers only.

    Slices with a position are grouped; multi-frame files and projections (X-ray, ultrasound) are images of their own.
    A series that holds several stacks is taken apart. Localisers and objects that are no images are set aside, and so
    are derived cross-sections and secondary captures in a study that has originals. A file that cannot be read, or
    whose header is cut short, is a series of its own too, so that reading it tells the reason; the rest of its series
    carries a note.

    Args:
        files: DICOM files in any folder.
    """
    groups: dict[Hashable, list[_Member]] = defaultdict(list)
    originals: set[Hashable] = set()
    for file in sorted(files):
        with quiet():
            key, member = _member(file)
        groups[key].append(member)
        if member.kind == "original":
            originals |= {_study(member.series), (*_study(member.series), member.series.modality)}
    for members in groups.values():
        whole = [member for member in members if member.kind != "cut short"]
        yield from (member.series for member in members if member.kind == "cut short")
        if not whole:
            continue
        aside = _aside(whole, originals)
        lost = len(members) - len(whole)
        note = f"{lost} files of this series are cut short and left out" if lost else ""
        for series in _images(whole):
            yield replace(series, aside=aside, notes=series.notes + _noted(note))


def _study(series: Series) -> tuple[str, str]:
    return series.patient, series.study


def _member(file: Path) -> tuple[Hashable, _Member]:
    """What a file is grouped by, and what is known of it."""
    try:
        header = read_header(file)
        with refusing("header holds values that break the standard"):
            patient, study, uid, instance = (
                str(header.get(tag) or "")
                for tag in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
            )
            site, sex = fact_of(header, "InstitutionName"), fact_of(header, "PatientSex").upper()
            series = Series((file,), patient, study, modality_of(header), site=site, sex=sex)
            alone = not uid or frames_of(header) > 1
            planes = tuple(planes_of(header))
    except Unreadable:  # told again when the image is read
        return file, _Member(file, Series((file,)), kind="unreadable")
    return file if alone else (patient, study, uid), _Member(file, series, planes, instance, _kind(header))


def _kind(header: Dataset) -> str:
    if is_no_image(header):
        return "no image"
    if is_cut_short(header):
        return "cut short"
    if is_secondary_capture(header):
        return "secondary capture"
    words = words_of(header)
    if "LOCALIZER" in words:
        return "localiser"
    return "derived" if words[:1] == ["DERIVED"] else "original"


def _aside(members: Sequence[_Member], originals: set[Hashable]) -> str:
    """Why a series is no image to learn from, or repeats what its study holds in a better form; empty otherwise."""
    series, kinds = members[0].series, {member.kind for member in members}
    if kinds == {"localiser"}:
        return "localiser"
    if kinds == {"no image"}:
        return f"no image: DICOM object of modality {series.modality or 'unknown'}"
    if not series.study:
        return ""
    if kinds == {"secondary capture"} and _study(series) in originals:
        return "secondary capture in a study with original images"
    if kinds == {"derived"} and series.modality in _CROSS_SECTIONS and (*_study(series), series.modality) in originals:
        return "derived from other images of its study"
    return ""


def _images(members: list[_Member]) -> Iterator[Series]:
    """The images of one group of files."""
    if len(members) == 1:
        parts = parts_of(members[0].planes)
        for item, part in enumerate(parts):
            several = len(parts) > 1
            yield replace(members[0].series, item=item if several else None, notes=_noted(part.note))
        return
    if not any(np.isfinite(plane.position[0]) for member in members for plane in member.planes):
        yield from (member.series for member in members)
        return
    members, copies = _without_copies(members)
    for part in parts_of([member.planes[0] for member in members]):
        files = tuple(members[index].file for index in part.indices)
        yield replace(members[0].series, files=files, notes=_noted(part.note, copies))


def _noted(*notes: str) -> tuple[str, ...]:
    return tuple(note for note in notes if note)


def _without_copies(members: list[_Member]) -> tuple[list[_Member], str]:
    """Files that are the same to the last byte count once; what only claims to be the same stays, and is refused."""
    kept: dict[str, _Member] = {}
    chosen = []
    for member in members:
        first = kept.setdefault(member.uid, member) if member.uid else member
        if first is member or not filecmp.cmp(first.file, member.file, shallow=False):
            chosen.append(member)
    copies = len(members) - len(chosen)
    return chosen, f"{copies} copies of slices left out" if copies else ""


# --- reading


def read(record: Record, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Read one series: a volume in RAS order, a 2D image as it is displayed, or a film with time as its first axis.

    Rescale slope and intercept are applied (Hounsfield units for CT), PET comes in SUV where its header tells all that
    this needs, MONOCHROME1 is inverted so that bright is high (but not in CT and PET, whose numbers are absolute),
    colour stays three 8-bit channels. ``record.item`` chooses among the stacks of a multi-frame file.

    Raises:
        SetAside: not an image, a localiser.
        Unreadable: damaged, mixed geometry, missing or doubled slices.
    """
    with quiet() as caught:
        headers = [read_header(file) for file in record.files]
        with refusing("header holds values that break the standard"):
            check_headers(headers, limits)
            check_lengths(record.files, headers)
            planes = [plane for header in headers for plane in planes_of(header)]
            notes = notes_of(headers)
        indices, note = _chosen(planes, record.item)
        film = is_film(headers[0])
        stacked = Stack(np.arange(len(planes)), None) if film else stack([planes[index] for index in indices])
        values = values_of(record.files, headers, planes, indices, stacked.order)
        modality = modality_of(headers[0])
        units, window = "HU" if modality == "CT" else "", planes[indices[stacked.order[len(indices) // 2]]].window
        if modality == "PT":
            factor, told = suv_factor(headers)
            values = values if factor == 1.0 else (values * np.float64(factor)).astype(np.float32)
            units, notes, window = "" if told else "SUV", notes + told, scaled_window(window, factor)
    notes += _noted(note, *stacked.notes, _NONSTANDARD if caught else "")
    return replace(_image(values, planes[indices[0]], stacked, modality, notes), units=units, window=window)


def _chosen(planes: list[Plane], item: int | None) -> tuple[tuple[int, ...], str]:
    if item is None:
        return tuple(range(len(planes))), ""
    parts = parts_of(planes)
    if not 0 <= item < len(parts):
        raise Unreadable(f"stack {item} of a file that holds {len(parts)}")
    return parts[item]


def _image(values: np.ndarray, plane: Plane, stacked: Stack, modality: str, notes: tuple[str, ...]) -> Image:
    """(slices, rows, columns, c) -> image."""
    if len(values) == 1:
        spacing = tuple(np.nan_to_num(plane.spacing, nan=1.0).tolist())
        return Image(np.moveaxis(values[0], -1, 0), spacing, stacked.affine, modality, notes)
    if stacked.affine is None:  # a film: time comes first, and is counted in frames
        spacing = (1.0, *np.nan_to_num(plane.spacing, nan=1.0).tolist())
        return Image(np.moveaxis(values, -1, 0), spacing, None, modality, notes)
    array, affine = canonical(values.transpose(2, 1, 0, 3), stacked.affine)
    spacing = tuple(voxel_sizes(affine)[::-1].tolist())
    return Image(array.transpose(3, 2, 1, 0), spacing, affine, modality, notes, stored=stacked.affine)
