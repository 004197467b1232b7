"""The streaming form of a store for object storage: the same compressed arrays as items of a litdata dataset.

A bucket serves few large objects well and a million small ones badly. litdata (Lightning AI, Apache-2.0) packs items
into chunks, fetches a chunk when one of its items is asked for and keeps it in a cache on the node. An item is one
image with its mask, compressed as in the store and with its table of hashes, so crops are read and checked as from
files. The index stays beside: ``store.json``, ``index.parquet`` and ``index.arrow`` lie in the folder, ``chunks/`` may
be moved to a bucket and named in ``store.json`` under ``chunks`` (``s3://bucket/prefix``).

What it cannot do: read a crop without fetching the image. Where a file system is at hand, the plain store is the faster
one by far.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from ssl_med.data.manifest import write_index
from ssl_med.data.rows import Rows
from ssl_med.data.seal import Damaged, read_seal, split_seal
from ssl_med.data.stored import StoredArray
from ssl_med.errors import UserError


def _litdata() -> Any:
    os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")  # it would ask the package index for newer versions
    try:
        import litdata
    except ImportError:
        raise UserError("the streaming form needs litdata: python -m pip install 'ssl_med[stream]'") from None
    return litdata


def write_streaming(source: Path, facts: dict[str, Any], rows: Rows, folder: Path, chunk_bytes: int) -> Path:
    """Write the streaming form of a store.

    Args:
        source: folder of the store.
        facts: its ``store.json``.
        rows: its index.
        folder: to write to; must be new or empty.
        chunk_bytes: size of an object; an image is never cut.

    Returns:
        The folder; ``Store(folder)`` opens it.

    Raises:
        UserError: the folder is not empty, the store holds bare ``.npy`` voxels, or litdata is not installed.
    """
    _litdata()
    from litdata.streaming.writer import BinaryWriter

    if facts["format"] != "b2nd":
        raise UserError(f"{source} holds {facts['format']} arrays; only b2nd arrays can be streamed: prepare it anew")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: choose a new folder for the streaming form")
    chunks = folder / ".chunks"
    chunks.mkdir(parents=True, exist_ok=True)
    writer = BinaryWriter(str(chunks), chunk_bytes=chunk_bytes)
    for number, row in enumerate(rows):
        item = _item(source, "images", row.id) | (_item(source, "masks", row.id) if row.has_mask else _none("masks"))
        if row.saliency_seal:  # of all images of a store or of none
            item |= _item(source, "saliency", row.id)
        writer.add_item(number, item)
    writer.done()
    writer.merge()
    chunks.replace(folder / "chunks")
    told = {name: value for name, value in facts.items() if name not in ("version", "stamp", "fingerprint")}
    write_index(folder, rows, {**told, "format": "litdata", "chunks": ""})
    return folder


def _item(source: Path, part: str, name: str) -> dict[str, bytes]:
    array, table = split_seal((source / part / f"{name}.b2nd").read_bytes())
    return {part: array, f"{part}_table": table}


def _none(part: str) -> dict[str, bytes]:
    return {part: b"", f"{part}_table": b""}


class Stream:
    """Arrays as items of a litdata dataset, see :class:`ssl_med.data.shelves.Shelf`.

    Args:
        chunks: folder or address of the chunks.
        rows: index of the store, in the order of the items.
    """

    def __init__(self, chunks: str, rows: Rows) -> None:
        self.chunks, self.rows = chunks, rows
        self._dataset: Any = None
        self._order, self._names = np.empty(0, np.int64), np.empty(0, "S1")

    def __getstate__(self) -> dict[str, Any]:
        empty = {"_dataset": None, "_order": np.empty(0, np.int64), "_names": np.empty(0, "S1")}
        return self.__dict__ | empty  # each process opens its own

    def __call__(self, part: str, name: str, seal: str, verify: bool) -> StoredArray:
        """See :class:`ssl_med.data.shelves.Shelf`."""
        dataset = self._opened()
        place = int(np.searchsorted(self._names, name.encode()))
        if place >= len(self._names) or self._names[place] != name.encode():
            raise Damaged("it is not in the index of the stream")
        item = dataset[int(self._order[place])]
        return in_memory(item[part], item[f"{part}_table"], seal, verify)

    def _opened(self) -> Any:
        if self._dataset is None:
            names = self.rows.column("id").astype("S")
            self._order = np.argsort(names)
            self._names = names[self._order]
            self._dataset = _litdata().StreamingDataset(self.chunks)
        return self._dataset


def in_memory(content: bytes, table: bytes, seal: str = "", verify: bool = True) -> StoredArray:
    """A stored array that was fetched whole.

    Raises:
        Damaged: it is not what was written.
    """
    import blosc2

    parts, border = (memoryview(content), memoryview(table)), len(content)

    def read(start: int, length: int) -> memoryview:
        part, first = (parts[0], start) if start < border else (parts[1], start - border)
        return part[first : first + length]

    seal_table = read_seal(read, border + len(table), seal if verify else "")
    try:
        array = blosc2.ndarray_from_cframe(content, copy=False)
    except (RuntimeError, ValueError) as error:
        raise Damaged(f"its header cannot be read: {type(error).__name__}") from None
    return StoredArray(array, read, seal_table, verify)
