"""The index of a store as columns: a million rows are opened by mapping a file, and a row is made when it is asked for.

The columns lie in an Arrow file that every loader process maps, so they share its pages; a selection is an array of row
numbers over them. Nothing here loops over rows in Python.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssl_med.data.intensity import Policy, Scale, Statistics, Windows, scale_of
from ssl_med.errors import UserError

_KEPT = 4096  # rows kept once made: of small sets all, of large ones a few megabytes
BATCH = 1 << 20  # rows per record batch: 32-bit string offsets never overflow in one


@dataclass(frozen=True)
class Row:
    """One image of a store.

    Attributes:
        id: keyed hash of where it came from.
        patient, study, site: keyed hashes; empty where unknown.
        split: ``train``, ``val``, ``test``; ``label``: class, -1 = unlabelled; ``modality``: as read.
        shape: (c, \\*space); ``spacing``: mm along space; ``affine``: 16 numbers, or none for images without geometry.
        dtype: of the voxels that the store answers.
        has_mask: voxel labels are stored; ``mask_values``: which.
        sha256: of the voxels' bytes as read.
        low, high, mean, sd, minimum, maximum: see :class:`ssl_med.data.intensity.Statistics`.
        slope, intercept: voxel = slope * stored number + intercept; 1 and 0 where voxels are stored as they are.
        seal, mask_seal: hash over the chunk hashes of the stored files, so that a changed file is known by it.
        phash: perceptual hash of the image, 64 bits as a signed number, see :mod:`ssl_med.data.likeness`.
        warnings: what a person should know of the image, e.g. ``burned-in text possible``.
        labels: several findings of the image: 1, 0 or -1 (unknown) for each.
        boxes: for each box the lowest corner, the highest corner (faces, in stored voxels along space) and the class.
        value: a number to be learned; None where it is not known.
        groups: ``name=group`` for tables of subgroups, such as ``sex=F``.
        dataset: name of the data set as it is.
        units: of the voxels: ``HU``, ``SUV`` or empty.
        saliency_seal: as ``seal`` of the saliency map; empty where there is none.
        boxed: somebody looked for boxes in this image: where there are none, it is known to have none.
        window: that a DICOM header asks to show the image in, as ``40/400``; empty where there is none.
    """

    id: str
    patient: str
    study: str
    site: str
    split: str
    label: int
    modality: str
    shape: list[int]
    spacing: list[float]
    affine: list[float]
    dtype: str
    has_mask: bool
    mask_values: list[int]
    sha256: str
    low: float
    high: float
    mean: float
    sd: float
    minimum: float
    maximum: float
    slope: float = 1.0
    intercept: float = 0.0
    seal: str = ""
    mask_seal: str = ""
    phash: int = 0
    warnings: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    boxes: list[float] = field(default_factory=list)
    value: float | None = None
    groups: list[str] = field(default_factory=list)
    dataset: str = ""
    units: str = ""
    saliency_seal: str = ""
    boxed: bool = False
    window: str = ""

    @property
    def has_target(self) -> bool:
        """Something is known that can be learned."""
        one = self.has_mask or self.label >= 0 or self.value is not None
        return one or self.boxed or bool(self.boxes) or any(finding >= 0 for finding in self.labels)

    def scale(self, policy: Policy) -> Scale | Windows:
        """How this image's voxels are scaled under a policy."""
        found = Statistics(self.low, self.high, self.mean, self.sd, self.minimum, self.maximum)
        return scale_of(policy, self.modality, self.dtype, found, self.window)


_KINDS = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    float | None: pa.float64(),
    bool: pa.bool_(),
    list[int]: pa.list_(pa.int64()),
    list[float]: pa.list_(pa.float64()),
    list[str]: pa.list_(pa.string()),
}
SCHEMA = pa.schema([(f.name, _KINDS[f.type]) for f in fields(Row)])
ADDED = ("value", "groups", "dataset", "units", "saliency_seal", "boxed", "window")
"""Columns that version 2 began without; a store that lacks them is opened as one that knows nothing of them."""


def completed(table: pa.Table) -> pa.Table:
    """A table with the columns that were added since it was written; unchanged where something else is missing."""
    if table.schema.names != SCHEMA.names[: len(table.schema.names)]:
        return table
    for name in ADDED:
        if name not in table.schema.names:
            kind, nothing = SCHEMA.field(name).type, {"value": None, "groups": [], "boxed": False}.get(name, "")
            table = table.append_column(SCHEMA.field(name), pa.repeat(pa.scalar(nothing, kind), table.num_rows))
    return table


class Rows(Sequence[Row]):
    """Rows of a store, or a selection of them.

    Args:
        table: columns named as the fields of :class:`Row`.
        chosen: numbers of the selected rows in their order; None for all.
        path: file that the table is mapped from: another process then maps it too instead of receiving a copy.
    """

    def __init__(self, table: pa.Table, chosen: np.ndarray | None = None, path: Path | None = None) -> None:
        self.table, self.chosen, self.path = table, chosen, path

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Rows":
        """Rows held in memory."""
        return cls(pa.Table.from_batches(batches(rows), SCHEMA))

    @classmethod
    def open(cls, path: Path, chosen: np.ndarray | None = None, stamp: str | None = None) -> "Rows":
        """Map an Arrow file.

        Raises:
            UserError: the file is of another stamp, because the store was prepared again meanwhile.
        """
        table = completed(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
        rows = cls(table, chosen, path)
        if stamp is not None and rows.stamp != stamp:
            raise UserError(f"{path} was written anew while it was in use; start again with the store as it is now")
        return rows

    @property
    def stamp(self) -> str:
        """Hash of the whole index as it was written; empty for rows that were never written."""
        return ((self.table.schema.metadata or {}).get(b"stamp", b"")).decode()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None:
            return Rows, (self.table, self.chosen)
        return Rows.open, (self.path, self.chosen, self.stamp)

    def __len__(self) -> int:
        return self.table.num_rows if self.chosen is None else len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "Row | Rows":
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        place = int(index) + len(self) * (index < 0)
        if not 0 <= place < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._row(place if self.chosen is None else int(self.chosen[place]))

    @cached_property
    def _row(self) -> Callable[[int], Row]:
        """The row of a line of the table; those asked for last are kept."""
        columns = self._columns  # not self: the cache must not keep these rows alive
        return lru_cache(_KEPT)(lambda number: Row(**{name: column[number].as_py() for name, column in columns}))

    def __iter__(self) -> Iterator[Row]:
        for first in range(0, len(self), 1024):
            for line in self._arrow(slice(first, first + 1024)).to_pylist():
                yield Row(**line)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    @cached_property
    def _columns(self) -> list[tuple[str, Any]]:
        """Arrays where the table is one batch: their items are found faster than those of chunked arrays."""
        found = [(name, self.table.column(name)) for name in SCHEMA.names]
        return [(name, column.chunk(0) if column.num_chunks == 1 else column) for name, column in found]

    def _arrow(self, part: slice) -> pa.Table:
        if self.chosen is None:
            return self.table.slice(part.start, part.stop - part.start)
        return self.table.take(pa.array(self.chosen[part]))

    def take(self, places: np.ndarray) -> "Rows":
        """The rows at these places of this selection, in that order."""
        chosen = np.asarray(places, np.int64) if self.chosen is None else self.chosen[places]
        return Rows(self.table, chosen, self.path)

    def column(self, name: str) -> np.ndarray:
        """One value per row: numbers as they are, texts as objects.

        Raises:
            UserError: a field that holds lists, see :meth:`lengths`.
        """
        if pa.types.is_list(self.table.schema.field(name).type):
            raise UserError(f"{name} is a list in every row; `lengths` gives shape and spacing as one array")
        values = self.table.column(name).to_numpy()
        return values if self.chosen is None else values[self.chosen]

    def lengths(self, name: str) -> np.ndarray:
        """``shape`` (n, 1 + axes) or ``spacing`` (n, axes) of all rows as one array; all rows of a store agree."""
        column = self.table.column(name)
        values = np.concatenate([np.asarray(chunk.flatten()) for chunk in column.chunks] or [np.empty(0)])
        values = values.reshape(self.table.num_rows, -1)
        return values if self.chosen is None else values[self.chosen]

    def counts(self, name: str) -> np.ndarray:
        """How many items a list such as ``labels`` or ``boxes`` holds in every row."""
        values = np.asarray(pc.call_function("list_value_length", [self.table.column(name)]).to_numpy(), np.int64)
        return values if self.chosen is None else values[self.chosen]

    def boxed(self) -> np.ndarray:
        """Rows (places of this selection) in which somebody looked for boxes, with and without any."""
        return np.flatnonzero(self.column("boxed") | (self.counts("boxes") > 0))

    def known(self, name: str) -> np.ndarray:
        """Rows (places of this selection) whose list of whole numbers has one that is not -1."""
        column, places = self.table.column(name), []
        first = 0
        for chunk in column.chunks:
            hits = np.asarray(pc.call_function("list_parent_indices", [chunk]))[np.asarray(chunk.flatten()) >= 0]
            places.append(hits + first)
            first += len(chunk)
        keep = np.zeros(self.table.num_rows, bool)
        keep[np.concatenate(places or [np.empty(0, np.int64)])] = True
        return np.flatnonzero(keep if self.chosen is None else keep[self.chosen])

    def where(
        self,
        split: str | None = None,
        has_mask: bool | None = None,
        labelled: bool | None = None,
        modality: str | None = None,
        valued: bool | None = None,
    ) -> "Rows":
        """The rows for which all that is given holds.

        Args:
            split, has_mask, modality: as in :class:`Row`.
            labelled: has a class of the whole image.
            valued: has a number to be learned.
        """
        wanted = {"split": split, "has_mask": has_mask, "modality": modality}
        keep = np.ones(self.table.num_rows, bool)
        for name, value in wanted.items():
            if value is not None:
                keep &= self._equal(name, value)
        if labelled is not None:
            keep &= (self.table.column("label").to_numpy() >= 0) == labelled
        if valued is not None:
            keep &= self.table.column("value").is_valid().to_numpy() == valued
        places = np.flatnonzero(keep) if self.chosen is None else np.flatnonzero(keep[self.chosen])
        return self.take(places)

    def _equal(self, name: str, value: Any) -> np.ndarray:
        return pc.call_function("equal", [self.table.column(name), pa.scalar(value)]).to_numpy()

    def distinct(self, name: str) -> dict[Any, int]:
        """How many rows have each value of a field, by value."""
        column = self.table.column(name)
        column = column if self.chosen is None else column.take(pa.array(self.chosen))
        found = column.value_counts().to_pylist()
        return dict(sorted((entry["values"], entry["counts"]) for entry in found))


def batches(rows: Iterable[Row], size: int = BATCH) -> Iterator[pa.RecordBatch]:
    """Rows as record batches of ``size``; no more than a few thousand rows are held as objects."""
    part = min(size, 8192)
    held: list[pa.RecordBatch] = []
    for group in _groups(rows, part):
        held.append(pa.RecordBatch.from_pylist([vars(row) for row in group], schema=SCHEMA))
        if (len(held) + 1) * part > size:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _groups(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _joined(held: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.Table.from_batches(held).combine_chunks().to_batches()[0]
