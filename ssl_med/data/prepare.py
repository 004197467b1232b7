"""From files to a store: read, gate, measure, compress; resumable, idempotent, parallel over processes or a cluster."""

import csv
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ssl_med.data.engines import Engine, engine_of
from ssl_med.data.ingest import Job, keyed, prepare_one, source_of
from ssl_med.data.journal import Journal, Outcome, only_one
from ssl_med.data.record import Record
from ssl_med.data.rows import Row, Rows
from ssl_med.data.settings import DEFAULTS, Settings
from ssl_med.data.store import Store, write_index
from ssl_med.data.subsets import split_by_patient
from ssl_med.errors import UserError

KILLED = "the process that read it was killed, probably for want of memory"


def build_store(
    records: list[Record],
    folder: Path,
    class_names: list[str],
    workers: int = 1,
    max_bad_share: float = 0.5,
    say: Callable[[str], Any] = print,
    settings: Settings = DEFAULTS,
    engine: str = "processes",
    scheduler: str = "",
    mask_names: dict[int, str] | None = None,
) -> dict[str, Any]:
    """Prepare all records into ``folder`` and write its index.

    Args:
        records: what the index found.
        folder: the store; a store that exists is brought up to date, only changed files are done again.
        class_names: names of the image labels.
        workers: processes.
        max_bad_share: stop as soon as more than this share of the images cannot be used.
        say: where progress lines go.
        settings: how images are stored.
        engine: ``processes`` or ``dask``; see :func:`ssl_med.data.engines.engine_of`.
        scheduler: address of a Dask scheduler.
        mask_names: names of the voxel labels.

    Returns:
        Counts: images, new, refused (by reason), set_aside.

    Raises:
        UserError: no usable image, too many bad ones, two images of one name, or another process prepares this store.
    """
    _check_names(records)
    run = engine_of(engine, workers, scheduler)
    folder, settings = Path(folder).absolute(), settings.check()
    with only_one(folder):
        journal = Journal(folder)
        try:
            names = {"class_names": class_names, "mask_names": {str(k): v for k, v in (mask_names or {}).items()}}
            return _Build(records, folder, journal, settings, max_bad_share, say).run(run, names)
        finally:
            journal.close()


def _check_names(records: list[Record]) -> None:
    """Refuse two images of one name, since ids are made of names; says their places, as names may be of persons."""
    places: dict[str, int] = {}
    for place, record in enumerate(records, 1):
        if (first := places.setdefault(record.name, place)) != place:
            raise UserError(
                f"images {first} and {place} of {len(records)} have the same name: expected every image once; "
                "remove what lists it a second time"
            )


class _Build:
    """One run of prepare over a journal."""

    def __init__(
        self,
        records: list[Record],
        folder: Path,
        journal: Journal,
        settings: Settings,
        max_bad_share: float,
        say: Callable[[str], Any],
    ) -> None:
        self.records, self.folder, self.journal, self.settings = records, folder, journal, settings
        self.max_bad_share, self.say = max_bad_share, say

    def run(self, engine: Engine, names: dict[str, Any]) -> dict[str, Any]:
        """Do what is to be done, then write the index."""
        jobs = [r for r in self.records if self.journal.source(r.name) != source_of(r, self.settings)]
        new = self._do(jobs, engine)
        kept, _ = self._sorted()
        lost = [record for record in kept if not self._is_stored(self.journal[record.name])]
        new += self._do(lost, engine)
        kept, reasons = self._sorted()
        self._write_private(reasons)
        if not kept:
            raise UserError(self._too_many(Counter(reason for reason, _ in reasons.values())))
        rows = self._write_index(kept, names)
        _sweep(self.folder, rows, self.settings.format)
        aside = sum(is_aside for _, is_aside in reasons.values())
        counts = dict(Counter(reason for reason, _ in reasons.values()))
        return {"images": len(rows), "new": new, "refused": counts, "set_aside": aside}

    def _do(self, records: list[Record], engine: Engine) -> int:
        """Prepare records; stop as soon as it is certain that too many are bad. Answers how many were read anew."""
        new, began = 0, time.monotonic()
        fresh = {record.name for record in records}
        old = (self.journal[r.name] for r in self.records if r.name not in fresh and r.name in self.journal)
        bad = Counter(outcome.reason for outcome in old if _is_bad(outcome))
        self._check(bad)
        work = partial(prepare_one, folder=self.folder, key=self.journal.key, settings=self.settings)
        jobs = (Job(record, self._before(record)) for record in records)
        for number, outcome in enumerate(engine(work, jobs, self._killed), 1):
            self.journal.add(outcome)
            new += not outcome.reused
            if number in (1, len(records)) or number % 50 == 0:
                left = (time.monotonic() - began) / number * (len(records) - number)
                self.say(f"prepared {number}/{len(records)}, about {left:.0f} s left")
            if _is_bad(outcome):
                bad[outcome.reason] += 1
                self._check(bad)
        return new

    def _before(self, record: Record) -> Outcome | None:
        if record.name not in self.journal:
            return None
        outcome = self.journal[record.name]
        return outcome if outcome.row is None or self._is_stored(outcome) else None

    def _killed(self, job: Job) -> Outcome:
        source = source_of(job.record, self.settings)
        return Outcome(source, job.record.name, None, KILLED)

    def _check(self, bad: Counter) -> None:
        if bad.total() > self.max_bad_share * len(self.records):
            outcomes = (self.journal[r.name] for r in self.records if r.name in self.journal)
            self._write_private({o.name: (o.reason, o.aside) for o in outcomes if o.row is None})
            raise UserError(self._too_many(bad))

    def _too_many(self, bad: Counter) -> str:
        reasons = "; ".join(f"{n} x {r}" for r, n in bad.most_common(3))
        told = f" (listed in {self.folder / 'private' / 'quarantine.parquet'})" if bad else ""
        return f"{bad.total()} of {len(self.records)} images cannot be used: {reasons or 'no image found'}{told}"

    def _is_stored(self, outcome: Outcome) -> bool:
        """The files of an outcome's row are there: a person may have removed them, or the image was set aside."""
        row = outcome.row
        parts = ("images", "masks") if row and row.has_mask else ("images",)
        return row is not None and all((self.folder / p / f"{row.id}.{self.settings.format}").exists() for p in parts)

    def _sorted(self) -> tuple[list[Record], dict[str, tuple[str, bool]]]:
        """Records of the one kind that the store holds; for all others the reason, and whether they were set aside.

        A store holds images of one rank and one number of channels: the most common.
        """
        kinds: dict[str, tuple[int, int]] = {}
        reasons: dict[str, tuple[str, bool]] = {}
        for record in self.records:
            outcome = self.journal[record.name]
            if outcome.row is None:
                reasons[record.name] = (outcome.reason, outcome.aside)
            else:
                kinds[record.name] = (len(outcome.row.shape) - 1, outcome.row.shape[0])
        (rank, channels), _ = Counter(kinds.values()).most_common(1)[0] if kinds else ((0, 0), 0)
        for name, kind in kinds.items():
            if kind != (rank, channels):
                reason = f"{kind[0]}D with {kind[1]} channels in a store of {rank}D with {channels}"
                reasons[name] = (reason, True)
        return [r for r in self.records if r.name not in reasons], reasons

    def _rows(self, kept: list[Record]) -> Iterator[Row]:
        for record in kept:
            row = self.journal[record.name].row
            if row is not None:
                yield row

    def _write_index(self, kept: list[Record], names: dict[str, Any]) -> Rows:
        rows = Rows.of(self._rows(kept))
        split = split_by_patient(rows, before=_splits_before(self.folder))
        values = {value for row in rows for value in row.mask_values}
        painted = values in ({0, 255}, {255})  # decided over all of them, since 255 may be a label beside others
        first = rows[0]
        facts = {
            "spatial_dims": len(first.shape) - 1,
            "channels": first.shape[0],
            **names,
            "painted": painted,
            "key": keyed(self.journal.key, "public name of this key"),
            **asdict(self.settings),
        }
        write_index(self.folder, (_finished(row, split[row.patient], painted) for row in rows), facts)
        return rows

    def _write_private(self, reasons: dict[str, tuple[str, bool]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        private = self.folder / "private"
        sources, quarantine = private / "sources.csv", private / "quarantine.parquet"
        for path in (sources, quarantine):
            path.touch(mode=0o600)
        with sources.open("w", newline="") as file:
            lines = csv.writer(file)
            for record in self.records:
                if record.name in self.journal:
                    lines.writerow((keyed(self.journal.key, record.name), record.files[0]))
        refused = [record for record in self.records if record.name in reasons]
        columns = {
            "file": [str(record.files[0]) for record in refused],
            "reason": [reasons[record.name][0] for record in refused],
            "set_aside": [reasons[record.name][1] for record in refused],
        }
        types = pa.schema([("file", pa.string()), ("reason", pa.string()), ("set_aside", pa.bool_())])
        pq.write_table(pa.table(columns, types), quarantine)


def _is_bad(outcome: Outcome) -> bool:
    return outcome.row is None and not outcome.aside


def _finished(row: Row, split: str, painted: bool) -> Row:
    values = [int(v > 0) for v in row.mask_values] if painted else row.mask_values
    return replace(row, split=split, mask_values=values)


def _splits_before(folder: Path) -> dict[str, str]:
    """Splits that patients were dealt in the store as it is: those who had a label or a mask there, others were not."""
    if not (folder / "store.json").is_file():
        return {}
    rows = Store(folder).rows
    dealt = rows.column("has_mask") | (rows.column("label") >= 0)
    return dict(zip(rows.column("patient")[dealt], rows.column("split")[dealt], strict=True))


def _sweep(folder: Path, rows: Rows, suffix: str) -> None:
    """Remove what no row names: images and masks of removed files, other formats, and leftovers of killed runs."""
    for part, named in (("images", rows), ("masks", rows.where(has_mask=True))):
        names = {f"{name}.{suffix}" for name in named.column("id")}
        for path in (folder / part).glob("*"):  # dot files too
            if path.name not in names:
                path.unlink()


_GROWTH = {".jpg": 8.0, ".jpeg": 8.0, ".png": 1.2, ".gz": 1.0, ".nii": 0.5, ".npy": 0.5, ".tif": 0.6, ".dcm": 0.6}
"""Bytes of a compressed store for each byte of a source; measured on CT, MR and photographs, so a guess for others."""


def disk_estimate(records: list[Record], folder: Path, settings: Settings = DEFAULTS) -> tuple[int, int]:
    """Bytes that the store will need, by the kind of the sources, and bytes free at the folder."""
    where = Path(folder).absolute()
    while not where.exists():
        where = where.parent
    files = {path for record in records for path in record.files if path.exists()}
    need = sum(path.stat().st_size * _GROWTH.get(path.suffix.lower(), 1.0) for path in files)
    return int(need * (2.7 if settings.format == "npy" else 1.0)), shutil.disk_usage(where).free
