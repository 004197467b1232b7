"""A table (CSV, TSV or parquet) that names images: which column means what, and one record per row."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from ssl_med.data.layouts.base import SPLITS, Layout, name_of
from ssl_med.data.layouts.expand import image_records
from ssl_med.data.layouts.masks import mask_of
from ssl_med.data.layouts.rows import SUFFIXES, NotATable, header_of, rows_of
from ssl_med.data.layouts.targets import FIELDS, PREFIXES, group_of, is_target, spacing_of, targets_of
from ssl_med.data.readers import dicom, reader_of
from ssl_med.data.record import Record
from ssl_med.errors import UserError

_COLUMNS = {
    "image": ("image", "file", "filename", "path", "image_path", "file_name", "filepath"),
    "mask": ("mask", "label_file", "segmentation"),
    "patient": ("patient", "subject", "patient_id", "subject_id"),
    "study": ("study", "study_id"),
    "site": ("site", "site_id"),
    "split": ("split",),
    "modality": ("modality",),
    "label": ("label", "class", "target"),
    "dataset": ("dataset",),
    "units": ("units",),
    "spacing": ("spacing", "pixel_spacing"),
}
"""Fields of a record and the columns that give them unless a person says otherwise."""

_PERSON = re.compile("patient|subject")
_NOT_A_PERSON = re.compile("age|sex|weight|height|position|orientation|birth")
_PLACES = ("", "images", "imagesTr", "imagesTs")
_MOST_CLASSES = 10_000


def find_tables(folder: Path, manifest: Path | None, columns: dict[str, str]) -> tuple[list["Table"], tuple[str, ...]]:
    """The table that was asked for, or every table at the top of a folder that names images in it.

    Returns:
        The tables, and a note for each other table there: why it is not used.

    Raises:
        UserError: the table does not exist, cannot be read or names no image; an unknown field or column.
    """
    if unknown := next((field for field in columns if field not in _COLUMNS and not is_target(field)), None):
        known = (*_COLUMNS, *FIELDS, *(f"{prefix}NAME" for prefix in PREFIXES))
        raise UserError(f"columns: unknown field {unknown!r}{_nearest(unknown, known)}")
    if manifest is not None:
        path = next((p for p in (Path(manifest), folder / manifest) if p.is_file()), None)
        if path is None:
            raise UserError(f"manifest {manifest} does not exist: check the path")
        table = Table(folder, path, columns)
        if not table.source["image"]:
            raise UserError(f"no column of {path.name} names image files: say which with columns={{'image': '...'}}")
        return [table], ()
    tables, notes, unused, paths = [], [], [], _tables_in(folder, columns)
    for path in paths:
        try:
            table = Table(folder, path, columns if len(paths) == 1 else {})
        except NotATable as error:
            notes.append(str(error))
            continue
        if table.source["image"]:
            tables.append(table)
        else:
            unused.append(f"table {path.name} names no image files of this folder, not used")
    return tables, (*notes, *unused)


def _tables_in(folder: Path, columns: dict[str, str]) -> list[Path]:
    """Tables at the top of a folder but for one of boxes that a person named."""
    named = [columns[field] for field in ("boxes", "boxes_mm") if columns.get(field)]
    boxes = {place.resolve() for name in named for place in (Path(name), folder / name)}
    paths = sorted(folder.glob("*")) if folder.is_dir() else []
    return [path for path in paths if path.suffix.lower() in SUFFIXES and path.resolve() not in boxes]


class Table:
    """A CSV, TSV or parquet file and the meaning of its columns; it is read again for each pass, so no rows are held.

    Args:
        folder: where the images lie.
        path: the file, with a header row.
        columns: fields that a person has given a meaning, see :func:`ssl_med.data.index.find_images`.
    """

    def __init__(self, folder: Path, path: Path, columns: dict[str, str]) -> None:
        self.folder = folder
        self.path = path
        self.columns = columns
        self.header = header_of(path)
        self._head = list(islice(rows_of(path), 20))
        self.source = {field: self._source(field) for field in _COLUMNS if field != "label"}
        self.source["label"] = self._source("label")
        if "label" not in columns and not columns.get("mask") and self._names_files(self.source["label"]):
            self.source["mask"], self.source["label"] = self.source["label"], ""  # `label` is a file of voxel labels
        self.targets = targets_of(path, self.header, columns, folder)
        used = bool(self.source["image"])  # of any other table the labels do not matter
        self.class_names, self._classes, self.count = self._find_classes() if used else ((), {}, 0)

    def layout(self) -> Layout:
        """How the table was understood, in words."""
        known = ", ".join(f"{field} from `{source}`" for field, source in self.source.items() if source)
        found = self.targets
        extra = [(f"{len(found.findings)} findings", found.findings), (f"number from `{found.value}`", found.value)]
        extra += [(f"boxes in {found.frame} coordinates", found.boxes or found.side), ("subgroups", found.groups)]
        known = ", ".join([known, *(words for words, there in extra if there)])
        name = f"table {self.path.name}: {known}"
        return Layout(
            name,
            self.class_names,
            files=self.count,
            finding_names=found.finding_names,
            box_names=found.box_names,
        )

    def records(self) -> Iterator[Record]:
        """One record per row, in the order of the table.

        Raises:
            UserError: no file in a row, a file listed twice, or a file that no reader opens.
        """
        seen: set[int] = set()  # of hashes: paths would take ten times the memory
        for number, row in enumerate(rows_of(self.path), 2):
            path = self._find(self._value("image", row))
            if path is None or hash(str(path)) in seen:
                problem = "has no file name" if path is None else "lists a file a second time"
                raise UserError(f"{self.path.name}, line {number} {problem}: expected one line per image")
            seen.add(hash(str(path)))
            facts = self.targets.of(row, self._value("image", row), f"{self.path.name}, line {number}")
            step = spacing_of(self._value("spacing", row), f"{self.path.name}, line {number}")
            told = (f"the table gives a spacing of {' x '.join(f'{s:g}' for s in step)} mm",) if step else ()
            for record in self._of_row(path, number, row):
                yield replace(record, spacing=step, notes=record.notes + told, **facts)

    def _of_row(self, path: Path, number: int, row: dict[str, str]) -> Iterator[Record]:
        if path.is_dir():
            yield self._series(path, number, row)
            return
        reader = reader_of(path)
        if reader is None:
            raise UserError(f"{self.path.name}, line {number}: no reader opens a {path.suffix or 'nameless'} file")
        if reader == "dicom":
            yield from self._stacks(path, row)
        else:
            yield from image_records(self._record(path, reader, row))

    def _series(self, folder: Path, number: int, row: dict[str, str]) -> Record:
        """The one DICOM series of a folder that a cell names."""
        found = list(dicom.find_series(sorted(path for path in folder.iterdir() if path.is_file())))
        series = [one for one in found if not one.aside] or found
        if len(series) != 1:
            raise UserError(
                f"{self.path.name}, line {number} names a folder with {len(series)} DICOM series: expected one"
            )
        return _with_header(self._record(folder, "dicom", row), series[0])

    def _stacks(self, path: Path, row: dict[str, str]) -> Iterator[Record]:
        """The images of one DICOM file: several where it holds several stacks of frames."""
        if not path.is_file():
            yield self._record(path, "dicom", row)  # reading it tells the reason
            return
        for one in dicom.find_series([path]):
            record = self._record(path, "dicom", row)
            name = record.name if one.item is None else f"{record.name}#{one.item}"
            yield replace(_with_header(record, one), name=name)

    def _record(self, path: Path, reader: str, row: dict[str, str]) -> Record:
        split = self._value("split", row)
        return Record(
            name=name_of(path, self.folder),
            reader=reader,
            files=(path,),
            mask=self._mask(path, row),
            label=self._classes.get(self._value("label", row), -1),
            patient=self._value("patient", row),
            study=self._value("study", row),
            site=self._value("site", row),
            split=SPLITS.get(split.lower(), split),
            modality=self._value("modality", row),
            dataset=self._value("dataset", row),
            units=self._value("units", row),
        )

    def _mask(self, path: Path, row: dict[str, str]) -> Path | None:
        if self.source["mask"] or "mask" in self.columns:
            return self._find(self._value("mask", row))
        return mask_of(path, self.folder)

    # --- what the columns mean

    def _source(self, field: str) -> str:
        """Column or template of a field; empty if the table does not have it."""
        if field in self.columns:
            given = self.columns[field]
            for name in re.findall(r"\{([^{}]*)\}", given) if "{" in given else [given]:
                if name and name not in self.header:
                    raise UserError(f"{self.path.name} has no column {name!r}{_nearest(name, self.header)}")
            return given
        by_lower = {name.strip().lower(): name for name in self.header}
        names = [by_lower[name] for name in _COLUMNS[field] if name in by_lower]
        if field == "image":
            return next((name for name in [*names, *self.header] if self._names_files(name)), "")
        if field == "patient" and not names:
            names = [n for low, n in by_lower.items() if _PERSON.search(low) and not _NOT_A_PERSON.search(low)]
        return names[0] if names else ""

    def _value(self, field: str, row: dict[str, str]) -> str:
        source = self.source[field]
        if "{" in source:
            return re.sub(r"\{([^{}]*)\}", lambda match: row[match[1]], source)
        return row[source] if source else ""

    def _names_files(self, column: str) -> bool:
        """Whether a value among the first rows is the name of a file that a reader opens."""
        if not column:
            return False
        paths = [self._find(row[column]) for row in self._head if row.get(column)]
        return any(path is not None and path.is_file() and reader_of(path) for path in paths)

    def _find(self, value: str) -> Path | None:
        if not value:
            return None
        places = [self.folder / place / value for place in _PLACES] + [self.path.parent / value]
        return next((path for path in places if path.exists()), places[0])  # a missing file is told when it is read

    def _find_classes(self) -> tuple[tuple[str, ...], dict[str, int], int]:
        """Class names, the number of each value of the label (whole numbers stand for themselves), number of rows."""
        values, count = set(), 0
        groups: dict[str, set[str]] = {name: set() for name in self.targets.groups}
        for row in rows_of(self.path):
            count += 1
            for name, seen in groups.items():
                if len(seen) <= _MOST_CLASSES:
                    seen.add(group_of(name, row[self.targets.groups[name]]))
            if len(values) <= _MOST_CLASSES and (value := self._value("label", row)):
                values.add(value)
        self.targets.check_groups(groups)
        try:
            numbers = {value: float(value) for value in values}
        except ValueError:
            if len(values) > _MOST_CLASSES:
                raise self._no_classes(f"more than {_MOST_CLASSES} different words") from None
            return tuple(sorted(values)), {value: number for number, value in enumerate(sorted(values))}, count
        if all(number.is_integer() and number >= -1 for number in numbers.values()) and len(values) <= _MOST_CLASSES:
            return (), {value: int(number) for value, number in numbers.items()}, count
        raise self._no_classes("numbers that are no classes")

    def _no_classes(self, what: str) -> UserError:
        return UserError(
            f"{self.path.name}: label column {self.source['label']!r} holds {what}, expected "
            "0, 1, 2 ... or words: choose another with columns={'label': '...'} or leave it out with ''"
        )


def _with_header(record: Record, series: dicom.Series) -> Record:
    """A row and what the headers of its series tell; what the table says of a fact goes first."""
    return replace(
        record,
        files=series.files,
        item=series.item,
        patient=record.patient or series.patient,
        study=record.study or series.study,
        modality=record.modality or series.modality,
        site=record.site or series.site,
        groups=series.groups,
        aside=series.aside,
        notes=series.notes,
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = get_close_matches(name, names, 1, cutoff=0.0)
    return f": did you mean {close[0]!r}? Known are {', '.join(names)}" if close else ""
