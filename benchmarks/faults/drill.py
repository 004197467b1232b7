"""What every drill needs: a store, an undisturbed run to compare with, and a row for the table."""

import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from jobs import code_of, command, losses, start
from stores import store_of, volumes

STEPS = 24


@dataclass
class Row:
    """One line of the table; what was lost must be 0.

    Args:
        fault: number and name.
        injected, lost: counts.
        figure: what else was measured, in words.
    """

    fault: str
    injected: int = 0
    lost: int = 0
    figure: str = ""

    def cells(self) -> list[object]:
        return [self.fault, self.injected, self.injected - self.lost, self.lost, self.figure]


@dataclass
class Place:
    """Where drills are held.

    Args:
        folder: emptied at the end.
        draw: of moments and bytes; seeded.
    """

    folder: Path
    draw: random.Random = field(default_factory=lambda: random.Random(0))
    _whole: dict[tuple[str, ...], Path] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        """A store of six small volumes."""
        if not (self.folder / "store").exists():
            store_of(volumes(self.folder / "in", 6, masks=False), self.folder / "store")
        return self.folder / "store"

    def new(self, name: str) -> Path:
        """A folder that is not there yet."""
        return Path(tempfile.mkdtemp(prefix=name, dir=self.folder)) / "run"

    def words(self, run: Path, *more: str, steps: int = STEPS) -> list[str]:
        return command(self.store, run, steps, *more)

    def whole(self, *more: str, steps: int = STEPS) -> Path:
        """The run that nobody disturbed."""
        key = (str(steps), *more)
        if key not in self._whole:
            run = self.new("whole")
            finish(self.words(run, *more, steps=steps))
            self._whole[key] = run
        return self._whole[key]

    def differs(self, run: Path, *more: str, steps: int = STEPS) -> int:
        """Losses that are not those of the undisturbed run, missing ones included, and weights likewise."""
        whole = self.whole(*more, steps=steps)
        first, second = losses(whole), losses(run)
        wrong = sum(first.get(step) != second.get(step) for step in first.keys() | second.keys())
        files = [r / "exports" / "backbone" / "backbone.safetensors" for r in (whole, run)]
        return wrong + (files[0].read_bytes() != files[1].read_bytes())


def finish(words: list[str], before: Callable = lambda: None) -> None:
    """Run a command to its end.

    Raises:
        SystemExit: it failed, with what it said.
    """
    log = Path(tempfile.mkstemp(suffix=".log")[1])
    if code_of(start(words, log, before), 600):
        raise SystemExit(log.read_text())
    log.unlink()


def newest_step(run: Path) -> int:
    """Of the newest whole checkpoint; 0 for none."""
    from ssl_med.callbacks import newest_whole

    found = newest_whole(run / "checkpoints")
    return int(found.stem.removeprefix("step=")) if found else 0


def may_mount(folder: Path) -> bool:
    """File systems of a given size need the right to mount one."""
    return os.geteuid() == 0 and _mount(folder, 1) and _unmount(folder)


def _mount(folder: Path, megabytes: int) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    return os.system(f"mount -t tmpfs -o size={megabytes}m none '{folder}' 2>/dev/null") == 0


def _unmount(folder: Path) -> bool:
    return os.system(f"umount '{folder}'") == 0
