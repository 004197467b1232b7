"""The store: images ready for fast random crops, with their content hashes.

Layout of the folder::

    store.json          version, axes, channels, classes, settings, fingerprint
    index.parquet       one row per image, no identifiers; index.arrow: the same, mapped by every process
    images/<id>.b2nd    voxels as scanned (integers stay integers), (c, *space)
    masks/<id>.b2nd     voxel labels, (1, *space)
    saliency/<id>.b2nd  what stands out, 0 to 255, (1, *space); where ``prepare`` was asked for maps
    private/            mode 0700: the key of the hashes, where each id came from, what was refused and why
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_med.data.arrays import write_array
from ssl_med.data.at_hand import AtHand
from ssl_med.data.manifest import VERSION, open_index, read_facts, read_lock, write_index, write_lock
from ssl_med.data.rows import Row, Rows
from ssl_med.data.seal import Damaged
from ssl_med.data.shelves import Shelf, shelf_of
from ssl_med.data.stored import StoredArray

__all__ = [
    "VERSION",
    "Damaged",
    "Row",
    "Rows",
    "Store",
    "content_hash",
    "read_lock",
    "write_array",
    "write_index",
    "write_lock",
]


def content_hash(array: np.ndarray) -> str:
    """SHA-256 of type, shape and voxels: equal for equal images wherever they came from."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class Store:
    """A prepared folder of images, opened for reading.

    Args:
        folder: what ``ssl-med prepare`` wrote.
        verify: check the hash of every chunk that is read.

    Raises:
        UserError: the folder is no store, or of another version.
    """

    def __init__(self, folder: str | Path, verify: bool = True) -> None:
        self.folder, self.verify = Path(folder), verify
        self.facts: dict[str, Any] = read_facts(self.folder)
        self.rows: Rows = open_index(self.folder, self.facts["stamp"])
        self.spatial_dims: int = self.facts["spatial_dims"]
        self.channels: int = self.facts["channels"]
        self.class_names: list[str] = self.facts["class_names"]
        self._shelf: Shelf = shelf_of(self.folder, self.facts, self.rows)
        self._at_hand = AtHand()

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_at_hand": AtHand()}

    def read(
        self,
        row: Row,
        part: str = "images",
        start: Sequence[int] | None = None,
        size: Sequence[int] | None = None,
        raw: bool = False,
        out: np.ndarray | None = None,
        lent: bool = False,
    ) -> np.ndarray:
        """Voxels (c, \\*size) from corner ``start``; the whole image without them. Only the chunks touched are read.

        Masks painted black and white (0 and 255) read as 0 and 1; -1, where nothing is known, stays.

        Args:
            row: which image.
            part: ``images``, ``masks`` or ``saliency``.
            start: first voxel along each axis of space.
            size: voxels along each axis of space.
            raw: the numbers as stored, without the row's slope and intercept; where these are 1 and 0, the voxels in
                the smallest integers that hold them.
            out: array of that shape and of any type that holds these numbers, to fill; no new memory is touched then.
                With ``raw``.
            lent: for who uses the answer up at once: it may lie in memory that the next such read of this thread uses
                again.

        Raises:
            Damaged: the file is missing, or what it holds is not what was written; names the id of the row.
        """
        space = row.shape[1:]
        corner, lengths = ([0] * len(space), space) if start is None or size is None else (start, size)
        window = tuple(slice(a, a + n) for a, n in zip(corner, lengths, strict=True))
        if out is not None and not raw:
            raise ValueError("out is filled with the numbers as stored: ask for them with raw=True")
        try:
            voxels = self._array(row, part).read(window, out, lent)
        except Damaged as error:
            raise Damaged(f"{part} {row.id}: {error}") from None
        if part == "masks":
            return np.minimum(voxels, 1) if self.facts.get("painted") else voxels
        if raw or part == "saliency":
            return voxels
        if (row.slope, row.intercept) == (1.0, 0.0):
            return voxels.astype(row.dtype, copy=False)
        return voxels.astype(np.float32) * np.float32(row.slope) + np.float32(row.intercept)

    def foreground(self, row: Row) -> np.ndarray:
        """Flat indices over space of up to 256 labelled voxels per class; of tissue where the image has no mask.

        Raises:
            Damaged: as :meth:`read`.
        """
        return self._points(row, "masks" if row.has_mask else "images")

    def tissue(self, row: Row) -> np.ndarray:
        """Flat indices over space of voxels brighter than the background (Otsu), evenly spread.

        Raises:
            Damaged: as :meth:`read`.
        """
        return self._points(row, "images")

    def _points(self, row: Row, part: str) -> np.ndarray:
        try:
            return self._array(row, part).seal.points
        except Damaged as error:
            raise Damaged(f"{part} {row.id}: {error}") from None

    def _array(self, row: Row, part: str) -> StoredArray:
        seal = {"images": row.seal, "masks": row.mask_seal, "saliency": row.saliency_seal}[part]
        return self._at_hand((part, row.id), lambda: self._shelf(part, row.id, seal, self.verify))

    def lock(self, folder: str | Path, rows: Sequence[Row] | None = None, number: int = 0) -> Path:
        """Write ``manifest.lock`` into the folder of a run: the images that it uses, all of the store by default.

        Args:
            folder: of the run.
            rows: the images.
            number: of this store among those of the run.
        """
        return write_lock(Path(folder), self.rows if rows is None else rows, self.facts["key"], number)

    def to_litdata(self, folder: str | Path, chunk_bytes: int = 1 << 28) -> Path:
        """Write the streaming form for object storage; see :func:`ssl_med.data.streaming.write_streaming`."""
        from ssl_med.data.streaming import write_streaming

        return write_streaming(self.folder, self.facts, self.rows, Path(folder), chunk_bytes)

    def fingerprint(self) -> str:
        """Hash of the content of all images, in order: names the data without saying where it lies."""
        return self.facts["fingerprint"]

    def summary(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Counts that may be published: images, patients, modalities."""
        chosen = rows if isinstance(rows, Rows) else Rows.of(rows)
        return {
            "fingerprint": self.fingerprint(),
            "images": len(chosen),
            "patients": len(chosen.distinct("patient")),
            "spatial_dims": self.spatial_dims,
            "channels": self.channels,
            "modalities": {name or "unknown": count for name, count in chosen.distinct("modality").items()},
        }


def summary_of(parts: Sequence[tuple[Store, Sequence[Row]]]) -> dict[str, Any]:
    """Counts of one store, or of several together with those of each under ``stores``.

    Patients of several stores are added up: whether a person is in two of them cannot be told.
    """
    each = [store.summary(rows) for store, rows in parts]
    if len(each) == 1:
        return each[0]
    modalities: dict[str, int] = {}
    for one in each:
        for name, count in one["modalities"].items():
            modalities[name] = modalities.get(name, 0) + count
    together = hashlib.sha256("".join(one["fingerprint"] for one in each).encode()).hexdigest()[:16]
    counts = {name: sum(one[name] for one in each) for name in ("images", "patients")}
    return {**each[0], **counts, "fingerprint": together, "modalities": modalities, "stores": each}
