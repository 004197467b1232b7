"""When a run is saved: by the clock, by the step, at the end, and when it is asked to stop."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from torch.distributed.checkpoint.api import CheckpointException

from ssl_med.callbacks.checkpoint_io import check_room, hashes_of, seal_folder, size_of
from ssl_med.callbacks.saving import Saving
from ssl_med.callbacks.signals import Agreement, Signals
from ssl_med.errors import UserError


class Checkpoints(pl.Callback):
    """Save while a run goes on; at the end of a step all processes agree on what to do.

    Args:
        minutes: between saves (a quarter of an hour costs under 1 % even at a thousand GPUs).
        every_steps: save also each so many steps; None for by the clock only.
        patience: saves in a row that may fail before the run is stopped.
        signals: where a signal is noted; own ones if None.
    """

    def __init__(
        self,
        minutes: float = 15.0,
        every_steps: int | None = None,
        patience: int = 5,
        signals: Signals | None = None,
    ) -> None:
        self.minutes, self.every_steps, self.patience = minutes, every_steps, patience
        self.signals = signals or Signals()
        self._together = Agreement()
        self._saved_at = time.monotonic()
        self._saved_step = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a signal waits for the end of the step."""
        self._together.begin(trainer.strategy)
        self.signals.listen()
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Stop if asked to, save if it is time; only at the end of an optimiser step."""
        step = trainer.global_step
        if trainer.fit_loop._should_accumulate() or step == self._saved_step:
            return
        saving = _saving(trainer)
        saving.check()
        late = time.monotonic() - self._saved_at > 60 * self.minutes
        asked, due, failures = self._together.most(self.signals.asked, int(late), saving.failures)
        if failures >= self.patience:
            raise UserError(
                f"checkpoints: {failures} saves in a row failed, see train.log; make room, then repeat the command"
            )
        if asked:
            self.signals.agreed = asked
            trainer.should_stop = True  # ends the loop once this step is logged; the end saves
        elif due or (self.every_steps and step % self.every_steps == 0):
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last state; what is written in the background is finished first."""
        if trainer.global_step != self._saved_step:
            self._save(trainer)
        _saving(trainer).wait()

    def _save(self, trainer: pl.Trainer) -> None:
        path = Path(trainer.default_root_dir) / "checkpoints" / f"step={trainer.global_step:07d}.ckpt"
        if in_parts(trainer):
            self._save_folder(trainer, path)
        else:
            trainer.save_checkpoint(path)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def _save_folder(self, trainer: pl.Trainer, path: Path) -> None:
        """Every process writes its part and hashes it; the first one gives the whole its name."""
        temporary = path.with_name(f".{path.name}.tmp")
        if trainer.is_global_zero:
            shutil.rmtree(temporary, ignore_errors=True)
        trainer.strategy.barrier("clean")
        failures: list[BaseException] = []
        state: dict[str, Any] = {}
        hashes: dict[str, str] = {}
        with _noted(failures):
            temporary.mkdir(parents=True, exist_ok=True)
            state = trainer._checkpoint_connector.dump_checkpoint(False)
            check_room(temporary, size_of(state))
        if not self._together.most(len(failures))[0]:  # to write is done together: one that fails before joins nobody
            with _noted(failures):
                hashes = _write_part(trainer, state, temporary)
        failed = self._together.most(len(failures))[0]
        hashes = self._together.collect(hashes)
        if trainer.is_global_zero:
            if failed and not failures:
                failures.append(OSError("another process could not write its part"))
            _conclude(_saving(trainer), temporary, path, hashes, failures)


def in_parts(trainer: pl.Trainer) -> bool:
    """Each process writes its part of a checkpoint, which is a folder; the parts are not put together."""
    return getattr(trainer.strategy, "_save_distributed_checkpoint", False)


@contextmanager
def _noted(failures: list[BaseException]) -> Iterator[None]:
    """What a disk does to a save is noted, not raised: the others would wait for this process for ever."""
    try:
        yield
    except (OSError, RuntimeError, CheckpointException) as error:
        failures.append(error)


def _write_part(trainer: pl.Trainer, state: dict[str, Any], temporary: Path) -> dict[str, str]:
    """Write what this process holds; the hashes of its files."""
    trainer.strategy.save_checkpoint(state, temporary)  # the trainer's own ends in a barrier that a failure skips
    hashes = hashes_of(temporary, f"__{trainer.global_rank}_")
    if trainer.is_global_zero:
        hashes |= hashes_of(temporary, ".metadata") | hashes_of(temporary, "meta.pt")
    return hashes


def _conclude(
    saving: Saving, temporary: Path, path: Path, hashes: dict[str, str], failures: list[BaseException]
) -> None:
    """Give what has been written its name, or take it away and say why."""
    if not failures:
        with _noted(failures):
            seal_folder(temporary, path, hashes)
            saving.saved(path)
    if failures:
        shutil.rmtree(temporary, ignore_errors=True)
        saving.failed(path, failures[0])


def _saving(trainer: pl.Trainer) -> Saving:
    return cast(Saving, trainer.strategy.checkpoint_io)
