"""The images that a run leaves out, in a file that all its processes write and read: its limit holds for all of them.

A line is one JSON object: an image with its reason, or the start of a run, from which on the images count anew.
"""

import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOG = logging.getLogger("ssl_med")


class Ledger:
    """What has been left out so far, by any process.

    Args:
        path: of the file; None to note nothing but what this process meets.
        store: number of the store among those of the run, whose lines are the ones that count here.
    """

    def __init__(self, path: Path | None = None, store: int = 0) -> None:
        self.path, self.store = path, store
        self.left_out: dict[str, str] = {}
        """Id of each image that was left out since the run was started last, and why."""
        self.stalled: set[tuple[int, int]] = set()
        """Positions, and how many images were left out there before, that this run could not read in time so far."""
        self._read = 0

    def note(self, image: str, reason: str, position: int | None = None, attempt: int = 0, counts: bool = True) -> None:
        """Write down an image.

        Args:
            image: its id.
            reason: why it is left out.
            position: where alone it is left out, since it was not read in time; None where it is damaged.
            attempt: how many images were left out at that position before.
            counts: it is one of the training; an evaluation notes the images that have ended it.
        """
        line: dict[str, Any] = {"id": image, "reason": reason}
        if position is not None:
            line |= {"position": position, "attempt": attempt}
        if not counts:
            line["counts"] = False
        if self.store:
            line["store"] = self.store
        self._take(line)
        if self.path is not None:
            append(self.path, line)

    def refresh(self) -> None:
        """Read what other processes have added; one look at the length of the file where that is nothing."""
        if self.path is None or not self.path.is_file() or self.path.stat().st_size == self._read:
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]  # another process may be at work on the last line
        self._read += len(whole)
        for line in _lines(whole):
            self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        if "start" in line:
            self.left_out.clear()
        elif line.get("store", 0) == self.store and line.get("counts", True):
            self.left_out[line["id"]] = line["reason"]
            if "position" in line:
                self.stalled.add((line["position"], line["attempt"]))


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line; short ones of several processes do not mix.

    Where the disk is full, a training goes on without the line, after one warning.
    """
    text = json.dumps(line).encode() + b"\n"
    try:
        with path.open("ab", buffering=0) as file:
            text = text if _ends_a_line(path) else b"\n" + text  # after half a line that a full disk has left
            if file.write(text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        if path not in _TOLD:
            _TOLD.add(path)
            LOG.warning("%s cannot be written (%s); the run goes on without these lines", path.name, error.strerror)


_TOLD: set[Path] = set()


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _lines(content: bytes) -> Iterator[dict[str, Any]]:
    """The whole lines; half of one, left by a disk that was full, has been told of when it was written."""
    for line in content.splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def mark_start(path: Path, step: int) -> None:
    """Let the limit on damaged images begin anew: what was damaged may have been repaired since.

    Args:
        path: of the file; a run that has left out nothing has none, and needs no mark.
        step: at which the run goes on.
    """
    if path.is_file():
        append(path, {"start": step})


def images_left_out(path: Path) -> dict[str, str]:
    """Id and reason of every image that was left out in the whole run."""
    lines = _lines(path.read_bytes()) if path.is_file() else ()
    return {line["id"]: line["reason"] for line in lines if "id" in line}
