"""What prepare has done so far: one JSON line per image in the private folder, and a lock against a second run there.

In memory stands only where each line begins and of which source it speaks: about 150 bytes an image.
"""

import fcntl
import json
import os
import secrets
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ssl_med.data.rows import Row
from ssl_med.errors import UserError

_DIGEST = 32  # bytes of a source's hash


@dataclass(frozen=True)
class Outcome:
    """What became of one record: a row, or the reason why there is none.

    Attributes:
        source: hash of what is cheap to see: what the folder says of the record, settings, sizes and times of files.
        name: of the record.
        row: of the store; None where the image cannot be used.
        reason: why not.
        aside: it could be read but is not of the kind that is wanted, such as a localiser.
        content: hash of what the folder says, settings and the bytes of the files.
        reused: the content was that of an earlier time, so nothing was read again.
        grey: its file has three equal channels, of which one says everything.
    """

    source: str
    name: str
    row: Row | None
    reason: str = ""
    aside: bool = False
    content: str = ""
    reused: bool = False
    grey: bool = False


class Journal:
    """Outcomes by the name of their record; the last one of a name counts.

    Args:
        folder: the store.
    """

    def __init__(self, folder: Path) -> None:
        private = private_folder(folder)
        self.path, key_file = private / "journal.jsonl", private / "key"
        if not key_file.exists() or key_file.stat().st_size != 32:  # a power cut can leave it empty
            key_file.touch(mode=0o600)
            key_file.write_bytes(secrets.token_bytes(32))
        self.key = key_file.read_bytes()
        self.path.touch(mode=0o600)
        self._slots: dict[int, int] = {}  # hash of a name -> its number in the two below
        self._places, self._sources = array("q"), bytearray()
        self._scan()
        self._reading, self._writing = self.path.open("rb"), self.path.open("ab")

    def _scan(self) -> None:
        end = 0
        with self.path.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    self._note(entry["name"], end, entry["source"])
                except json.JSONDecodeError:
                    pass  # the line that a kill cut off: its image is done again
                end += len(line)
                whole = line.endswith(b"\n")
        if end and not whole:
            with self.path.open("ab") as file:
                file.write(b"\n")  # so that the next line is not lost with the broken one

    def _note(self, name: str, place: int, source: str) -> None:
        """Where the last line of a name begins."""
        slot, digest = self._slots.setdefault(hash(name), len(self._places)), bytes.fromhex(source)
        if slot == len(self._places):
            self._places.append(place)
            self._sources += digest
        self._places[slot], self._sources[slot * _DIGEST : (slot + 1) * _DIGEST] = place, digest

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: str) -> bool:
        return hash(name) in self._slots

    def __getitem__(self, name: str) -> Outcome:
        self._reading.seek(self._places[self._slots[hash(name)]])
        entry = json.loads(self._reading.readline())
        return Outcome(**{**entry, "row": Row(**entry["row"]) if entry["row"] else None})

    def source(self, name: str) -> str:
        """The source hash of a record when it was done; empty if it never was."""
        slot = self._slots.get(hash(name))
        return "" if slot is None else self._sources[slot * _DIGEST : (slot + 1) * _DIGEST].hex()

    def add(self, outcome: Outcome) -> None:
        """Append one outcome."""
        place = self._writing.seek(0, os.SEEK_END)
        self._writing.write(json.dumps(asdict(outcome)).encode() + b"\n")
        self._writing.flush()
        self._note(outcome.name, place, outcome.source)

    def close(self) -> None:
        """Put everything on the disk."""
        os.fsync(self._writing.fileno())
        self._reading.close()
        self._writing.close()


def private_folder(folder: Path) -> Path:
    """The folder of a store that only its owner may read; it is made."""
    private = folder / "private"
    folder.mkdir(parents=True, exist_ok=True)
    private.mkdir(exist_ok=True, mode=0o700)
    return private


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the store against a second prepare. The system gives it back when the process ends, however it ends.

    Raises:
        UserError: another process holds it.
    """
    path = private_folder(folder) / "lock"
    path.touch(mode=0o600)
    with path.open("r+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{folder} is being prepared by another process: wait for it, or choose another --out"
            ) from None
        yield
