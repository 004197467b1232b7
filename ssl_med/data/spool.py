"""What the index found, on disk: a record is a line, and a million of them take no memory."""

import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from ssl_med.data.record import Record, Tiling
from ssl_med.errors import UserError

_DEFAULTS = {f.name: f.default for f in fields(Record)}


class Spool:
    """Records in the order in which they were added, to be gone through as often as needed.

    They lie in a file without a name in ``folder``, which is gone with the process: it holds paths.

    Args:
        folder: with room for about 300 bytes a record.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by `close`)
        self._names = array("q")  # hashes: the names would take ten times the memory

    @classmethod
    def of(cls, records: Iterable[Record], folder: Path) -> "Spool":
        """All records of an index.

        Raises:
            UserError: two images of one name.
        """
        spool = cls(folder)
        try:
            for record in records:
                spool._add(record)
            spool._check()
        except BaseException:
            spool.close()
            raise
        return spool

    def _add(self, record: Record) -> None:
        self._names.append(hash(record.name))
        self._file.write(json.dumps(_plain(record)).encode() + b"\n")

    def _check(self) -> None:
        """Refuse two images of one name, since ids are made of names; says their places, as names may be of persons."""
        hashes = np.sort(np.frombuffer(self._names, np.int64))
        suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        places: dict[str, int] = {}
        for place, record in enumerate(self if suspects else (), 1):
            if hash(record.name) in suspects and (first := places.setdefault(record.name, place)) != place:
                raise UserError(
                    f"images {first} and {place} of {len(self)} have the same name: expected every image once; "
                    "remove what lists it a second time"
                )

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Record]:
        place = 0
        while True:  # several may go through at a time
            self._file.seek(place)
            lines = self._file.readlines(1 << 20)
            if not lines:
                return
            place = self._file.tell()
            yield from (_record(json.loads(line)) for line in lines)

    def close(self) -> None:
        """Give the room on the disk back."""
        self._file.close()

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _plain(record: Record) -> dict[str, Any]:
    """The fields that say something."""
    facts = {name: value for name, value in vars(record).items() if value != _DEFAULTS[name]}
    facts["files"] = [str(path) for path in record.files]
    facts |= {name: str(facts[name]) for name in ("mask", "saliency") if name in facts}
    if record.tiling:
        facts["tiling"] = asdict(record.tiling)
    return facts


def _record(facts: dict[str, Any]) -> Record:
    facts["files"] = tuple(map(Path, facts["files"]))
    for name in ("notes", "labels", "boxes", "spacing", "ignored"):
        if name in facts:
            facts[name] = tuple(facts[name])
    if "groups" in facts:
        facts["groups"] = tuple((name, group) for name, group in facts["groups"])
    facts |= {name: Path(facts[name]) for name in ("mask", "saliency") if name in facts}
    if "tiling" in facts:
        facts["tiling"] = Tiling(**facts["tiling"])
    return Record(**facts)
