"""The images that a run leaves out, in a file that all its processes write and read: its limit holds for all of them.

A line is one JSON object: an image with its reason, or the start of a run, from which on the images count anew.
"""

import json
from pathlib import Path
from typing import Any


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

    def note(self, image: str, reason: str, position: int | None = None, attempt: int = 0) -> None:
        """Write down an image.

        Args:
            image: its id.
            reason: why it is left out.
            position: where alone it is left out, since it was not read in time; None where it is damaged.
            attempt: how many images were left out at that position before.
        """
        line: dict[str, Any] = {"id": image, "reason": reason}
        if position is not None:
            line |= {"position": position, "attempt": attempt}
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
        for line in whole.splitlines():
            self._take(json.loads(line))

    def _take(self, line: dict[str, Any]) -> None:
        if "start" in line:
            self.left_out.clear()
        elif line.get("store", 0) == self.store:
            self.left_out[line["id"]] = line["reason"]
            if "position" in line:
                self.stalled.add((line["position"], line["attempt"]))


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line; short ones of several processes do not mix."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


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
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {line["id"]: line["reason"] for line in lines if "id" in line}
