"""Drills on checkpoints alone: kills inside a save, a full disk, files changed afterwards."""

import os
import signal
import time
from pathlib import Path

import torch
from jobs import code_of

from benchmarks.faults.drill import Place, Row, _mount, _unmount, may_mount
from ssl_med.callbacks import Saving, newest_whole, remove_leftovers
from ssl_med.callbacks.checkpoint_io import is_whole
from ssl_med.errors import UserError


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step={step:07d}.ckpt"


def state(step: int, megabytes: int) -> dict:
    return {"step": step, "weights": torch.full((megabytes * 2**18,), float(step))}


def holds(path: Path | None, least: int) -> bool:
    """A checkpoint is there, not older than it must be, and holds what was saved."""
    return path is not None and Saving().load_checkpoint(path)["weights"][-1] == int(path.stem[5:]) >= least


def kills_inside(place: Place, full: bool) -> Row:
    """F2 and F6: kill -9 while a save is under way, at any moment of it."""
    kills, megabytes, bad, left, during = (200, 400, 0, 0, 0) if full else (20, 20, 0, 0, 0)
    folder = place.new("kills")
    folder.mkdir()
    began = time.perf_counter()
    Saving().save_checkpoint(state(1, megabytes), path_of(folder, 1))
    seconds, reached = time.perf_counter() - began, 1
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            Saving().save_checkpoint(state(reached + 1, megabytes), path_of(folder, reached + 1))
            os._exit(0)
        time.sleep(place.draw.uniform(0, 1.5 * seconds))
        os.kill(child, signal.SIGKILL)
        during += code_of(child) != 0
        bad += not holds(newest_whole(folder), reached)
        reached = int(newest_whole(folder).stem[5:])
        remove_leftovers(folder)
        left += len(list(folder.glob(".*")))
    figure = f"{megabytes} MiB a save; {during} of the kills came before its end; {left} leftover files"
    return Row("F2, F6 kill -9 inside a save", kills, bad + left, figure)


def full_disk(place: Place, full: bool) -> Row:
    """F3: a real file system without room, filled to a random level before each save."""
    rounds, folder = (50 if full else 5), place.folder / "small"
    if not may_mount(folder):
        return Row("F3 disk full during a save", 0, 0, "not held: needs the right to mount a file system")
    _mount(folder, 16)
    try:
        Saving().save_checkpoint(state(1, 4), path_of(folder, 1))
        lost, failed = 0, 0
        for step in range(2, rounds + 2):
            (folder / "filler").write_bytes(bytes(place.draw.randrange(9, 12) * 2**20))
            saving = _unchecked() if step % 2 else Saving()
            saving.save_checkpoint(state(step, 4), path_of(folder, step))
            failed += saving.failures
            lost += not holds(newest_whole(folder), 1)
            (folder / "filler").unlink()
    finally:
        _unmount(folder)
    return Row("F3 disk full during a save", rounds, lost, f"{failed} saves refused or failed half-way, all told")


def _unchecked() -> Saving:
    """Without the look at the free space: the write itself fails half-way."""
    from ssl_med.callbacks import checkpoint_io

    class Blind(Saving):
        def save_checkpoint(self, *arguments, **more) -> None:
            look, checkpoint_io.check_room = checkpoint_io.check_room, lambda folder, needed: None
            try:
                super().save_checkpoint(*arguments, **more)
            finally:
                checkpoint_io.check_room = look

    return Blind()


def edits(place: Place, full: bool) -> Row:
    """F5: a checkpoint is cut, or one bit of it flipped, after it was saved."""
    count, wrong, folder = (100 if full else 25), 0, place.new("edits")
    folder.mkdir()
    for step in (1, 2):
        Saving().save_checkpoint(state(step, 1), path_of(folder, step))
    path = path_of(folder, 2)
    content = path.read_bytes()
    for number in range(count):
        place_of = place.draw.randrange(len(content))
        flipped = (
            content[:place_of] + bytes([content[place_of] ^ 1 << place.draw.randrange(8)]) + content[place_of + 1 :]
        )
        path.write_bytes(flipped if number % 2 else content[:place_of])
        try:
            Saving().load_checkpoint(path)
            wrong += 1
        except UserError:
            wrong += newest_whole(folder) != path_of(folder, 1) or is_whole(path)
    return Row("F5 cut or flipped afterwards", count, wrong, "each refused; the one before is used")
