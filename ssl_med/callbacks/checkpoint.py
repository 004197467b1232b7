"""Checkpoints that a kill, a full disk or a flipped bit cannot take away."""

import hashlib
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import CheckpointIO

from ssl_med.errors import UserError


class AtomicCheckpointIO(CheckpointIO):
    """Write beside the target, flush to disk, record the hash, rename; the file that was there stays until then.

    Lightning stages in the system's temporary folder and moves from there, which on another file system is a plain copy
    that a kill leaves truncated.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save one checkpoint; raises OSError with the old files untouched when the disk is full."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            _hash_file(path).write_text(sha256_of(temporary))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)  # there only if the save failed
        _sync_folder(path.parent)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load tensors and plain values only, never objects; the hash is compared first."""
        path = Path(path)
        if not is_whole(path):
            raise UserError(f"{path} is damaged: its content is not what was saved; resume from another checkpoint")
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint and its hash."""
        Path(path).unlink(missing_ok=True)
        _hash_file(Path(path)).unlink(missing_ok=True)


class Checkpoints(pl.Callback):
    """Save by wall clock, at the end, and before a Ctrl+C takes effect; keep the newest two.

    Args:
        minutes: between saves (a quarter of an hour costs under 1 % even at a thousand GPUs).
        every_steps: save also each so many steps; None for by the clock only.
        keep: number of checkpoints that stay, at least two.
    """

    def __init__(self, minutes: float = 15.0, every_steps: int | None = None, keep: int = 2) -> None:
        if keep < 2:
            raise ValueError(f"keep at least two checkpoints, so that one is whole at any moment; got {keep}")
        self.minutes, self.every_steps, self.keep = minutes, every_steps, keep
        self._saved_at = time.monotonic()
        self._saved_step = -1
        self._asked_to_stop = False
        self._handler: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on the first Ctrl+C waits for the end of the step."""
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._ask_to_stop)

    def _ask_to_stop(self, number: int, frame: Any) -> None:
        if self._asked_to_stop:
            raise KeyboardInterrupt
        self._asked_to_stop = True
        print("\nstopping after this step, with a checkpoint; once more stops at once", file=sys.stderr, flush=True)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Save if it is time; only at the end of an optimiser step."""
        step = trainer.global_step
        if trainer.fit_loop._should_accumulate():
            return
        if self._asked_to_stop:
            trainer.should_stop = True  # ends the loop once this step is logged; the end saves
            return
        if step == self._saved_step:
            return
        due = trainer.strategy.broadcast(time.monotonic() - self._saved_at > 60 * self.minutes)
        if due or (self.every_steps and step % self.every_steps == 0):
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last state."""
        if trainer.global_step != self._saved_step:
            self._save(trainer)
        self._give_back_handler()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The run is over: Ctrl+C means what it meant before."""
        self._give_back_handler()

    def _give_back_handler(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    def _save(self, trainer: pl.Trainer) -> None:
        folder = Path(trainer.default_root_dir) / "checkpoints"
        path = folder / f"step={trainer.global_step:07d}.ckpt"
        trainer.save_checkpoint(path)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero:
            point_to(path)
            for old in sorted(folder.glob("step=*.ckpt"))[: -self.keep]:
                trainer.strategy.checkpoint_io.remove_checkpoint(old)


def point_to(path: Path) -> None:
    """Make ``last.ckpt`` another name of a checkpoint, in one step; a copy where the file system has no hard links."""
    shutil.copyfile(_hash_file(path), _hash_file(path.with_name("last.ckpt")))
    temporary = path.with_name(".last.ckpt.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    temporary.replace(path.with_name("last.ckpt"))


def remove_leftovers(folder: Path) -> None:
    """Remove what killed saves left; only for the process that holds the run's lock."""
    orphans = [record for record in folder.glob("*.sha256") if not record.with_suffix("").exists()]
    for leftover in [*folder.glob(".*.tmp"), *orphans]:
        leftover.unlink(missing_ok=True)


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint of a run whose content is what was saved; only reads, so the run may be going on."""
    for path in sorted(folder.glob("step=*.ckpt"), reverse=True):
        if is_whole(path):
            return path
    return None


def is_whole(path: Path) -> bool:
    """The file's hash is the one that was recorded."""
    record = _hash_file(path)
    return record.exists() and record.read_text() == sha256_of(path)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
