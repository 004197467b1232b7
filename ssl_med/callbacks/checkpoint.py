"""When a run is saved: by the clock, by the step, at the end, and when it is asked to stop."""

import shutil
import time
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from torch.distributed.checkpoint.api import CheckpointException

from ssl_med.callbacks.checkpoint_io import hashes_of, seal_folder
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
        if getattr(trainer.strategy, "_save_distributed_checkpoint", False):
            self._save_folder(trainer, path)
        else:
            trainer.save_checkpoint(path)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def _save_folder(self, trainer: pl.Trainer, path: Path) -> None:
        """Every process writes its part and hashes it; the first one gives the whole its name."""
        temporary, saving = path.with_name(f".{path.name}.tmp"), _saving(trainer)
        if trainer.is_global_zero:
            shutil.rmtree(temporary, ignore_errors=True)
        trainer.strategy.barrier("clean")
        failure: BaseException | None = None
        part: dict[str, str] = {}
        try:
            state = trainer._checkpoint_connector.dump_checkpoint(False)
            trainer.strategy.save_checkpoint(
                state, temporary
            )  # the trainer's own ends in a barrier that a failure skips
            part = hashes_of(temporary, f"__{trainer.global_rank}_")
            if trainer.is_global_zero:
                part |= hashes_of(temporary, ".metadata") | hashes_of(temporary, "meta.pt")
        except (OSError, RuntimeError, CheckpointException) as error:  # told to the others, who may have written theirs
            failure = error
        failed = self._together.most(int(failure is not None))[0]
        hashes = self._together.collect(part)
        if not trainer.is_global_zero:
            return
        if failed:
            shutil.rmtree(temporary, ignore_errors=True)
            saving.failed(path, failure or OSError("another process could not write its part"))
        else:
            seal_folder(temporary, path, hashes)
            saving.saved(path)


def _saving(trainer: pl.Trainer) -> Saving:
    return cast(Saving, trainer.strategy.checkpoint_io)
