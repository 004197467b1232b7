"""The index of a store on disk, and the lock file by which a run names the data it used.

``index.parquet`` is the manifest that any program reads. ``index.arrow`` holds the same columns uncompressed, to be
mapped by every process; it is derived, and made again where it is missing. Both carry one stamp, and so does
``store.json``, which is written last: a store whose three files do not agree is not opened.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ssl_med.data.rows import SCHEMA, Row, Rows, batches, completed
from ssl_med.errors import UserError

VERSION = 2
LOCK = "manifest.lock"
_LOCK_SCHEMA = pa.schema(
    [("id", pa.string()), ("patient", pa.string()), ("sha256", pa.binary(32)), ("phash", pa.int64())]
)


def write_index(folder: Path, rows: Iterable[Row], facts: dict[str, Any]) -> None:
    """Write the index of a store and, last of all, ``store.json``: a folder without it is not a store.

    Args:
        folder: of the store; all its images are on the disk.
        rows: in their order; they may be made one by one.
        facts: what else ``store.json`` says.
    """
    held = list(batches(rows))
    stamp = _stamp(held)
    table = pa.Table.from_batches(held, SCHEMA).replace_schema_metadata({"stamp": stamp})
    _write_arrow(folder, table)
    temporary = folder / ".index.parquet"
    pq.write_table(table, temporary, compression="zstd", row_group_size=1 << 17)
    _settle(temporary, folder / "index.parquet")
    facts = {"version": VERSION, "stamp": stamp, "fingerprint": fingerprint(Rows(table)), **facts}
    temporary = folder / ".store.json"
    temporary.write_text(json.dumps(facts, indent=1))
    _settle(temporary, folder / "store.json")


def open_index(folder: Path, stamp: str) -> Rows:
    """The rows of a store, mapped.

    Raises:
        UserError: no index of this stamp is there.
    """
    mapped, manifest = folder / "index.arrow", folder / "index.parquet"
    if mapped.is_file():
        rows = Rows.open(mapped)
        if rows.stamp == stamp and rows.table.schema.equals(SCHEMA):
            return rows
    if manifest.is_file():
        table = completed(pq.read_table(manifest))
        rows = Rows(table)
        if rows.stamp == stamp and table.schema.equals(SCHEMA):
            if os.access(folder, os.W_OK):
                _write_arrow(folder, table)
                return Rows.open(mapped)
            return rows
    raise UserError(f"{folder}: index and store.json do not belong together: a prepare was cut off; run it again")


def _stamp(held: list[pa.RecordBatch]) -> str:
    digest = hashlib.sha256(SCHEMA.serialize())
    for batch in held:
        digest.update(batch.serialize())
    return digest.hexdigest()[:16]


def _write_arrow(folder: Path, table: pa.Table) -> None:
    temporary = folder / f".index.{os.getpid()}.arrow"
    with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    _settle(temporary, folder / "index.arrow")


def _settle(temporary: Path, path: Path) -> None:
    """Put a file in its place once its bytes are on the disk."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def fingerprint(rows: Sequence[Row]) -> str:
    """Hash of the content of all images, in order: names the data without saying where it lies."""
    digest = hashlib.sha256()
    for group in _contents(rows):
        digest.update("".join(group).encode())
    return digest.hexdigest()[:16]


def _contents(rows: Sequence[Row], size: int = 65536) -> Iterator[list[str]]:
    hashes = rows.column("sha256") if isinstance(rows, Rows) else [row.sha256 for row in rows]
    for first in range(0, len(rows), size):
        yield list(hashes[first : first + size])


def lock_name(store: int = 0) -> str:
    """Name of the lock file of one of the stores of a run, counted from 0."""
    return f"manifest.{store}.lock" if store else LOCK


def locks_in(folder: Path) -> list[Path]:
    """The lock files of a run or an export: one of each store, in their order."""
    later = sorted(folder.glob("manifest.*.lock"), key=lambda path: int(path.name.split(".")[1]))
    return [path for path in (folder / LOCK, *later) if path.is_file()]


def write_lock(folder: Path, rows: Sequence[Row], key: str = "", store: int = 0) -> Path:
    """Write ``manifest.lock``: which images a run used, by id, keyed patient, content and likeness, and without a path.

    It is a parquet file (32 bytes of hash per row do not compress, so text would be twice as large), written group by
    group; its metadata name the number of images, their fingerprint and the key behind ids and patients.

    Args:
        folder: of the run.
        rows: what the run trains on.
        key: public name of the key of the store.
        store: number of the store among those of the run.

    Returns:
        The file.
    """
    path, temporary = folder / lock_name(store), folder / f".{lock_name(store)}"
    facts = {"images": str(len(rows)), "fingerprint": fingerprint(rows), "key": key}
    with pq.ParquetWriter(temporary, _LOCK_SCHEMA.with_metadata(facts), compression="zstd") as writer:
        for first in range(0, len(rows), 1 << 17):
            writer.write_table(_lock_part(rows[first : first + (1 << 17)]))
    _settle(temporary, path)
    return path


def _lock_part(rows: Sequence[Row]) -> pa.Table:
    if isinstance(rows, Rows):
        columns: dict[str, Any] = {name: rows.column(name) for name in _LOCK_SCHEMA.names}
    else:
        columns = {name: [getattr(row, name) for row in rows] for name in _LOCK_SCHEMA.names}
    columns["sha256"] = [bytes.fromhex(text) for text in columns["sha256"]]
    return pa.Table.from_arrays([pa.array(columns[f.name], f.type) for f in _LOCK_SCHEMA], schema=_LOCK_SCHEMA)


def read_lock(path: Path) -> tuple[pa.Table, dict[str, str]]:
    """The images that a run used, and the facts about them.

    Args:
        path: ``manifest.lock`` of a run.
    """
    table = pq.read_table(path)
    facts = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    return table, {name: facts[name] for name in ("images", "fingerprint", "key")}


def read_facts(folder: Path) -> dict[str, Any]:
    """``store.json`` of a store.

    Raises:
        UserError: the folder is no store, or of another version.
    """
    head = folder / "store.json"
    if not head.is_file():
        raise UserError(f"{folder} is not a store: it has no store.json; make one with `ssl-med prepare`")
    facts: dict[str, Any] = json.loads(head.read_text())
    if facts["version"] != VERSION:
        raise UserError(f"{folder} is a store of version {facts['version']}, this is {VERSION}: prepare anew")
    return facts
