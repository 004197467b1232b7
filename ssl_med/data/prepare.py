"""From files to a store: read, gate, measure, compress; resumable, idempotent, parallel over processes."""

import csv
import hashlib
import hmac
import json
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ssl_med.data.intensity import statistics
from ssl_med.data.readers import read, read_mask
from ssl_med.data.record import Record, Unreadable
from ssl_med.data.store import Row, Store, content_hash, write_array, write_index
from ssl_med.data.subsets import assign_splits
from ssl_med.errors import UserError


@dataclass(frozen=True)
class Outcome:
    """What became of one record: a row, or the reason why there is none. ``source`` names its content cheaply."""

    source: str
    name: str
    row: Row | None
    reason: str = ""
    warnings: tuple[str, ...] = ()


def source_of(record: Record) -> str:
    """Changes when a file of the record changes (name, size, time), or what the folder says of it."""
    parts = [repr(replace(record, files=(), mask=None))]
    for path in (*record.files, *([record.mask] if record.mask else [])):
        if path.exists():  # a missing file is told when it is read
            state = path.stat()
            parts.append(f"{path.name}:{state.st_size}:{state.st_mtime_ns}")
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def keyed(key: bytes, text: str) -> str:
    """Keyed hash of an identifier; empty stays empty. Without the key it cannot be guessed back."""
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:16] if text else ""


def prepare_one(record: Record, folder: Path, key: bytes) -> Outcome:
    """Read one record and put it into the store. A bad image becomes an outcome with its reason, never an exception."""
    source = source_of(record)
    try:
        image = read(record)
        mask = read_mask(record, image)
    except Unreadable as error:
        return Outcome(source, record.name, None, str(error))
    name = keyed(key, record.name)
    write_array(folder / "images" / f"{name}.b2nd", image.array)
    if mask is not None:
        write_array(folder / "masks" / f"{name}.b2nd", mask)
    values = [] if mask is None else [int(v) for v in np.unique(mask)]
    row = Row(
        id=name,
        patient=keyed(key, record.patient or record.name),
        study=keyed(key, record.study),
        site=keyed(key, record.site),
        split=record.split,
        label=record.label,
        modality=image.modality or record.modality,
        shape=list(image.array.shape),
        spacing=[float(s) for s in image.spacing],
        affine=[] if image.affine is None else [float(a) for a in image.affine.ravel()],
        dtype=image.array.dtype.name,
        has_mask=mask is not None,
        mask_values=values,
        foreground=[] if mask is None else foreground_voxels(mask, values),
        sha256=content_hash(image.array),
        **_measure(image.array),
    )
    return Outcome(source, record.name, row, warnings=image.warnings)


def _measure(array: np.ndarray) -> dict[str, float]:
    return asdict(statistics(array))


def foreground_voxels(mask: np.ndarray, values: list[int], most: int = 256) -> list[int]:
    """Flat indices of up to ``most`` evenly spread voxels of each class above 0."""
    flat, chosen = mask.reshape(-1), []
    for value in values:
        if value > 0:
            where = np.flatnonzero(flat == value)
            chosen += where[np.linspace(0, len(where) - 1, min(most, len(where))).astype(int)].tolist()
    return chosen


class Journal:
    """What is done so far, one JSON line each in the private folder; makes a stopped run go on where it was."""

    def __init__(self, folder: Path) -> None:
        private = folder / "private"
        private.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path, key_file = private / "journal.jsonl", private / "key"
        if not key_file.exists():
            key_file.touch(mode=0o600)
            key_file.write_bytes(secrets.token_bytes(32))
        self.key = key_file.read_bytes()
        self.path.touch(mode=0o600)
        self.done: dict[str, Outcome] = {}
        for line in self.path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that a kill cut off: its image is done again
            row = Row(**entry["row"]) if entry["row"] else None
            self.done[entry["name"]] = Outcome(
                entry["source"], entry["name"], row, entry["reason"], tuple(entry["warnings"])
            )

    def knows(self, record: Record) -> bool:
        """The record was done, and is as it was then."""
        return record.name in self.done and self.done[record.name].source == source_of(record)

    def add(self, outcome: Outcome) -> None:
        """Append one outcome."""
        self.done[outcome.name] = outcome  # only the last: the store holds one version of a file
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")


def run_all(records: Iterable[Record], work: Any, workers: int) -> Iterator[Outcome]:
    """Apply ``work`` to all records, in this process or in ``workers`` others, never more than a few ahead."""
    if workers <= 1:
        yield from map(work, records)
        return
    records = iter(records)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(work, record) for record in islice(records, 4 * workers)}
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
            waiting |= {pool.submit(work, record) for record in islice(records, len(finished))}


def build_store(
    records: list[Record],
    folder: Path,
    class_names: list[str],
    workers: int = 1,
    max_bad_share: float = 0.5,
    say: Any = print,
) -> dict[str, Any]:
    """Prepare all records into ``folder`` and write its index.

    Args:
        records: what the index found.
        folder: the store; a store that exists is brought up to date, only changed files are done again.
        class_names: names of the image labels.
        workers: processes.
        max_bad_share: stop with an error when more than this share of the images cannot be used.
        say: where progress lines go.

    Returns:
        Counts: images, new, refused (by reason), set_aside.

    Raises:
        UserError: no usable image, or too many bad ones.
    """
    journal = Journal(folder)
    fresh = [record for record in records if not journal.knows(record)]
    _prepare_all(fresh, folder, journal, workers, say)
    kept, _ = _one_kind([o for record in records if (o := journal.done[record.name]).row])
    lost_names = {outcome.name for outcome in kept if not _is_stored(outcome, folder)}
    lost = [record for record in records if record.name in lost_names]
    _prepare_all(lost, folder, journal, workers, say)
    outcomes = [journal.done[record.name] for record in records]
    kept, aside = _one_kind([o for o in outcomes if o.row])
    refused = [o for o in outcomes if not o.row]
    _write_private(folder, records, outcomes, aside)
    if not kept or len(refused) > max_bad_share * len(outcomes):
        reasons = "; ".join(f"{n} x {r}" for r, n in Counter(o.reason for o in refused).most_common(3))
        raise UserError(f"{len(refused)} of {len(outcomes)} images cannot be used: {reasons or 'no image found'}")
    before = {row.patient: row.split for row in Store(folder).rows} if (folder / "store.json").is_file() else {}
    rows = assign_splits([o.row for o in kept if o.row], before=before)
    painted = {value for row in rows for value in row.mask_values} in ({0, 255}, {255})
    if painted:  # masks painted black and white; decided over all of them, since 255 may be a label beside others
        rows = [replace(row, mask_values=[int(v > 0) for v in row.mask_values]) for row in rows]
    facts = {
        "spatial_dims": len(rows[0].shape) - 1,
        "channels": rows[0].shape[0],
        "class_names": class_names,
        "painted": painted,
    }
    write_index(folder, rows, facts)
    _sweep(folder, rows)
    reasons = Counter(o.reason for o in refused) | Counter(o.reason for o in aside)
    return {"images": len(rows), "new": len(fresh) + len(lost), "refused": dict(reasons), "set_aside": len(aside)}


def _prepare_all(records: list[Record], folder: Path, journal: Journal, workers: int, say: Any) -> None:
    began = time.monotonic()
    work = partial(prepare_one, folder=folder, key=journal.key)
    for number, outcome in enumerate(run_all(records, work, workers), 1):
        journal.add(outcome)
        if number in (1, len(records)) or number % 50 == 0:
            left = (time.monotonic() - began) / number * (len(records) - number)
            say(f"prepared {number}/{len(records)}, about {left:.0f} s left")


def _is_stored(outcome: Outcome, folder: Path) -> bool:
    """The files of an outcome's row are there: a person may have removed them, or the image was set aside before."""
    row = outcome.row
    parts = ("images", "masks") if row and row.has_mask else ("images",)
    return row is not None and all((folder / part / f"{row.id}.b2nd").exists() for part in parts)


def _one_kind(outcomes: list[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """A store holds images of one rank and one number of channels: the most common; the others are set aside."""
    kinds = Counter((len(o.row.shape), o.row.shape[0]) for o in outcomes if o.row)
    if not kinds:
        return [], []
    (rank, channels), _ = kinds.most_common(1)[0]
    kept, aside = [], []
    for outcome in outcomes:
        shape = outcome.row.shape if outcome.row else []
        if (len(shape), shape[0]) == (rank, channels):
            kept.append(outcome)
        else:
            reason = f"{len(shape) - 1}D with {shape[0]} channels in a store of {rank - 1}D with {channels}"
            aside.append(Outcome(outcome.source, outcome.name, None, reason))
    return kept, aside


def _write_private(folder: Path, records: list[Record], outcomes: list[Outcome], aside: list[Outcome]) -> None:
    files = {record.name: str(record.files[0]) for record in records}
    other = {o.name: o.reason for o in aside}
    for name, lines in (
        ("sources.csv", [(o.row.id, files[o.name]) for o in outcomes if o.row]),
        (
            "quarantine.csv",
            [(files[o.name], o.reason or other[o.name]) for o in outcomes if not o.row or o.name in other],
        ),
    ):
        path = folder / "private" / name
        path.touch(mode=0o600)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(lines)


def _sweep(folder: Path, rows: list[Row]) -> None:
    """Remove what no row names: images and masks of removed files, and leftovers of killed runs."""
    named = {"images": {row.id for row in rows}, "masks": {row.id for row in rows if row.has_mask}}
    for part, ids in named.items():
        for path in (folder / part).glob("*.b2nd"):  # dot files too
            if path.stem not in ids:
                path.unlink()


def disk_estimate(records: list[Record], folder: Path) -> tuple[int, int]:
    """Bytes of the sources (the store is about as large as compressed sources), and bytes free at the folder."""
    where = folder if folder.exists() else folder.absolute().parent
    while not where.exists():
        where = where.parent
    files = {path for record in records for path in record.files}
    return sum(path.stat().st_size for path in files if path.exists()), shutil.disk_usage(where).free
