"""From files to a store: read, gate, measure, compress; resumable, idempotent, parallel over processes or a cluster."""

import csv
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from ssl_med.data.engines import Engine, engine_of
from ssl_med.data.ingest import Job, keyed, prepare_one, source_of
from ssl_med.data.journal import Journal, Outcome, only_one, private_folder
from ssl_med.data.kinds import Kind, kind_of, most_common, to_turn
from ssl_med.data.maps import FLAT
from ssl_med.data.quarantine import Quarantine
from ssl_med.data.record import Record
from ssl_med.data.rows import Row, Rows
from ssl_med.data.settings import DEFAULTS, Settings
from ssl_med.data.soundness import files_of_row, is_sound
from ssl_med.data.spool import Spool
from ssl_med.data.store import Store, write_index
from ssl_med.data.subsets import split_by_patient
from ssl_med.data.twins import twins, write_twins
from ssl_med.errors import UserError

KILLED = "the process that read it was killed, probably for want of memory"


def build_store(
    records: Iterable[Record],
    folder: Path,
    class_names: list[str],
    workers: int = 1,
    max_bad_share: float = 0.5,
    say: Callable[[str], Any] = print,
    settings: Settings = DEFAULTS,
    engine: str = "processes",
    scheduler: str = "",
    mask_names: dict[int, str] | None = None,
    finding_names: Sequence[str] = (),
    box_names: Sequence[str] = (),
    check: bool = False,
    rank: int | None = None,
) -> dict[str, Any]:
    """Prepare all records into ``folder`` and write its index.

    Args:
        records: what the index found; they are put on the disk as they come, and never held all at once.
        folder: the store; a store that exists is brought up to date, only changed files are done again.
        class_names: names of the image labels.
        workers: processes.
        max_bad_share: stop as soon as more than this share of the images cannot be used.
        say: where progress lines go.
        settings: how images are stored.
        engine: ``processes`` or ``dask``; see :func:`ssl_med.data.engines.engine_of`.
        scheduler: address of a Dask scheduler.
        mask_names: names of the voxel labels.
        finding_names: names of the findings, in their order.
        box_names: names of the classes of boxes.
        check: read every stored file, and do those images again whose files have changed since they were written.
        rank: keep images (2) or volumes (3) of a folder that holds both; what there is more of by default.

    Returns:
        Counts: images, new, refused (by reason), set_aside; flat_maps where saliency maps were asked for.

    Raises:
        UserError: no usable image, too many bad ones, two images of one name, or another process prepares this store.
    """
    run = engine_of(engine, workers, scheduler)
    folder, settings = Path(folder).absolute(), settings.check()
    names = {"class_names": class_names, "mask_names": {str(k): v for k, v in (mask_names or {}).items()}}
    names |= {"finding_names": list(finding_names), "box_names": list(box_names)}
    with only_one(folder), _spooled(records, folder) as spool:
        journal = Journal(folder)
        try:
            return _Build(spool, folder, journal, settings, max_bad_share, say, check, rank).run(run, names)
        finally:
            journal.close()


@contextmanager
def _spooled(records: Iterable[Record], folder: Path) -> Iterator[Spool]:
    if isinstance(records, Spool):
        yield records
        return
    with Spool.of(records, private_folder(folder)) as spool:
        yield spool


class _Build:
    """One run of prepare over a journal."""

    def __init__(
        self,
        records: Spool,
        folder: Path,
        journal: Journal,
        settings: Settings,
        max_bad_share: float,
        say: Callable[[str], Any],
        check: bool = False,
        rank: int | None = None,
    ) -> None:
        self.rank = rank
        self.usable = is_sound if check else _is_there
        self.records, self.folder, self.journal, self.settings = records, folder, journal, settings
        self.max_bad_share, self.say = max_bad_share, say
        self.kind = (0, 0)  # rank and channels of the images that are kept

    def run(self, engine: Engine, names: dict[str, Any]) -> dict[str, Any]:
        """Do what is to be done, then write the index."""
        new = self._do(engine, lambda record: self.journal.source(record.name) != source_of(record, self.settings))
        self.kind = self._most_common()
        new += self._do(engine, self._is_lost)
        self.kind = self._most_common()
        if self.greys - {self.kind}:
            self._do(engine, lambda record: to_turn(self.journal[record.name], self.kind))
        reasons = self._write_private()
        if self.kind == (0, 0) and self.rank and any(kind_of(self.journal[r.name])[0] for r in self.records):
            raise UserError(f"rank {self.rank}: no image here has {self.rank} axes; leave --rank out")
        if self.kind == (0, 0):
            raise UserError(self._too_many(Counter({reason: number for (reason, _), number in reasons.items()})))
        rows = self._write_index(names)
        _sweep(self.folder, rows, self.settings.format)
        self._tell_twins()
        refused = {reason: sum(n for (r, _), n in reasons.items() if r == reason) for reason, _ in reasons}
        aside = sum(number for (_, is_aside), number in reasons.items() if is_aside)
        counts = {"images": len(rows), "new": new, "refused": refused, "set_aside": aside}
        flat = {"flat_maps": sum(FLAT in row.warnings for row in rows)} if self.settings.saliency else {}
        return {**counts, **flat}

    def _do(self, engine: Engine, wanted: Callable[[Record], bool]) -> int:
        """Prepare the records that are wanted; stop as soon as it is certain that too many are bad.

        Returns:
            How many were read anew.
        """
        marks, bad = bytearray(wanted(record) for record in self.records), Counter()
        for mark, record in zip(marks, self.records, strict=True):
            if not mark and record.name in self.journal and _is_bad(outcome := self.journal[record.name]):
                bad[outcome.reason] += 1
        self._check(bad)
        new, began, total = 0, time.monotonic(), sum(marks)
        work = partial(prepare_one, folder=self.folder, key=self.journal.key, settings=self.settings)
        grey = self.kind[1] == 1
        jobs = (Job(record, self._before(record), grey) for record in compress(self.records, marks))
        for number, outcome in enumerate(engine(work, jobs, self._killed), 1):
            self.journal.add(outcome)
            new += not outcome.reused
            if number in (1, total) or number % 50 == 0:
                left = (time.monotonic() - began) / number * (total - number)
                self.say(f"prepared {number}/{total}, about {left:.0f} s left")
            if _is_bad(outcome):
                bad[outcome.reason] += 1
                self._check(bad)
        return new

    def _before(self, record: Record) -> Outcome | None:
        if record.name not in self.journal:
            return None
        outcome = self.journal[record.name]
        if to_turn(outcome, self.kind):
            return None
        return outcome if outcome.row is None or self._is_stored(outcome) else None

    def _killed(self, job: Job) -> Outcome:
        source = source_of(job.record, self.settings)
        return Outcome(source, job.record.name, None, KILLED)

    def _check(self, bad: Counter) -> None:
        if bad.total() > self.max_bad_share * len(self.records):
            self._write_private()
            raise UserError(self._too_many(bad))

    def _too_many(self, bad: Counter) -> str:
        reasons = "; ".join(f"{n} x {r}" for r, n in bad.most_common(3))
        told = f" (listed in {self.folder / 'private' / 'quarantine.parquet'})" if bad else ""
        return f"{bad.total()} of {len(self.records)} images cannot be used: {reasons or 'no image found'}{told}"

    def _is_stored(self, outcome: Outcome) -> bool:
        """The files of an outcome's row are there: a person may have removed them, or the image was set aside."""
        if outcome.row is None:
            return False
        files = files_of_row(self.folder, outcome.row, self.settings.format)
        return all(self.usable(path, seal) for path, seal in files.items())

    def _is_lost(self, record: Record) -> bool:
        """The image is to be kept, and its files are gone."""
        outcome = self.journal[record.name]
        return not self._reason(outcome)[0] and not self._is_stored(outcome)

    def _most_common(self) -> Kind:
        """Rank and channels of most images: a store holds those of one kind."""
        self.greys: set[Kind] = set()
        return most_common(self._outcomes(), self.rank)

    def _outcomes(self) -> Iterator[Outcome]:
        """Of all records, noting as what those are stored that may be grey or coloured."""
        for record in self.records:
            outcome = self.journal[record.name]
            if outcome.grey:
                self.greys.add(kind_of(outcome))
            yield outcome

    def _reason(self, outcome: Outcome) -> tuple[str, bool]:
        """Why an image is not in the store, and whether it was set aside; an empty reason where it is."""
        if outcome.row is None:
            return outcome.reason, outcome.aside
        kind = kind_of(outcome)
        if kind == self.kind or self.kind == (0, 0):
            return "", False
        return f"{kind[0]}D with {kind[1]} channels in a store of {self.kind[0]}D with {self.kind[1]}", True

    def _rows(self) -> Iterator[Row]:
        for record in self.records:
            outcome = self.journal[record.name]
            if outcome.row is not None and not self._reason(outcome)[0]:
                yield replace(outcome.row, dataset=record.dataset)

    def _write_index(self, names: dict[str, Any]) -> Rows:
        rows = Rows.of(self._rows())
        split = split_by_patient(rows, before=_splits_before(self.folder))
        values = {value for row in rows for value in row.mask_values}
        painted = values - {-1} in ({0, 255}, {255})  # decided over all of them, since 255 may be a label beside others
        facts = {
            "spatial_dims": self.kind[0],
            "channels": self.kind[1],
            **names,
            "painted": painted,
            "key": keyed(self.journal.key, "public name of this key"),
            **asdict(self.settings),
        }
        write_index(self.folder, (_finished(row, split[row.patient], painted) for row in rows), facts)
        return rows

    def _tell_twins(self) -> None:
        """List what is in several splits or under several patients, now that the splits are known."""
        rows, path = Store(self.folder).rows, self.folder / "private" / "duplicates.parquet"
        found = twins(rows)
        write_twins(found, rows, path)
        if found:
            self.say(f"  {found.sentence()}: {path}")

    def _write_private(self) -> Counter:
        """Write where every image came from, and what was not taken; counts the reasons."""
        private, reasons = self.folder / "private", Counter()
        sources, quarantine = private / "sources.csv", private / "quarantine.parquet"
        for path in (sources, quarantine):
            path.touch(mode=0o600)
        with sources.open("w", newline="") as file, Quarantine(quarantine) as refused:
            lines = csv.writer(file)
            for record in self.records:
                if record.name not in self.journal:
                    continue
                lines.writerow((keyed(self.journal.key, record.name), record.files[0]))
                reason, aside = self._reason(self.journal[record.name])
                if reason:
                    reasons[reason, aside] += 1
                    refused.add(record.files[0], reason, aside)
        return reasons


def _is_there(path: Path, seal: str) -> bool:
    return path.exists()


def _is_bad(outcome: Outcome) -> bool:
    return outcome.row is None and not outcome.aside


def _finished(row: Row, split: str, painted: bool) -> Row:
    values = [min(v, 1) for v in row.mask_values] if painted else row.mask_values
    return replace(row, split=split, mask_values=values)


def _splits_before(folder: Path) -> dict[str, str]:
    """Splits that patients were dealt in the store as it is: those who had a label or a mask there, others were not."""
    if not (folder / "store.json").is_file():
        return {}
    rows = Store(folder).rows
    dealt = rows.column("has_mask") | (rows.column("label") >= 0) | ~np.isnan(rows.column("value"))
    dealt[rows.boxed()] = True
    dealt[rows.known("labels")] = True
    return dict(zip(rows.column("patient")[dealt], rows.column("split")[dealt], strict=True))


def _sweep(folder: Path, rows: Rows, suffix: str) -> None:
    """Remove what no row names: arrays of removed files, other formats, maps nobody wants, leftovers of killed runs."""
    mapped = rows.take(np.flatnonzero(rows.column("saliency_seal") != ""))
    for part, named in (("images", rows), ("masks", rows.where(has_mask=True)), ("saliency", mapped)):
        names = {f"{name}.{suffix}" for name in named.column("id")}
        for path in (folder / part).glob("*"):  # dot files too
            if path.name not in names:
                path.unlink()
