"""Validation of a fine-tuning: scores on the validation split, and the weights with the best one."""

import logging
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ssl_med.callbacks.checkpoint import in_parts
from ssl_med.callbacks.checkpoint_io import is_whole
from ssl_med.callbacks.watch import Watch
from ssl_med.data.module import StoreData
from ssl_med.errors import UserError
from ssl_med.evaluate import evaluate
from ssl_med.tasks import SupervisedTask

LOG = logging.getLogger("ssl_med")
BEST = "best-val.ckpt"


class Validate(Watch):
    """Scores on the validation split; the weights with the best ``metric`` so far are those the run ends with.

    They stay as ``checkpoints/best-val.ckpt`` and are put back when the training has ended, so that they are what is
    exported and tested (early stopping, with the schedule run to its end). Of equal scores the earlier one stays. The
    test split is not touched. Nothing happens where the store has no labelled validation images. Weights that are
    sharded over processes are looked at but not chosen.

    Args:
        times: how often; with 1 the end alone is looked at, and chosen.
        patience: looks in a row without a better score after which the run ends before its last step; None for never.

    Raises:
        UserError: a patience below 1.
    """

    def __init__(self, times: int = 5, patience: int | None = None) -> None:
        super().__init__(times)
        if patience is not None and patience < 1:
            raise UserError(f"watch.patience: {patience} must be 1 or more looks, or null for a run to its last step")
        self.patience = patience
        self._best, self._step, self._improved, self._worse = -math.inf, -1, False, 0

    def state_dict(self) -> dict[str, Any]:
        """The best score, its step and the looks since, so that a resumed run chooses as an uninterrupted one."""
        return {"best": self._best, "step": self._step, "worse": self._worse}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self._best, self._step = state_dict["best"], state_dict["step"]
        self._worse = state_dict.get("worse", 0)  # checkpoints from before there was a patience

    @property
    def ended(self) -> bool:
        """The patience is at its end: no step is to follow."""
        return self.patience is not None and self._worse >= self.patience

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A head that has not been trained has no score worth a look; a run that had ended does not go on."""
        trainer.should_stop = trainer.should_stop or self.ended

    def look(self, trainer: pl.Trainer, task: SupervisedTask) -> None:
        """Log ``val/...`` and see whether it is the best so far."""
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if not has_validation(data):
            return
        backbone: Any = task.backbone
        scores, _ = evaluate(task, data.whole("val", backbone.multiple()))
        for logger in trainer.loggers:
            logger.log_metrics({f"val/{name}": value for name, value in scores.items()}, trainer.global_step)
        if scores[task.metric] > self._best:  # a score that is not a number never is
            self._best, self._step, self._improved = scores[task.metric], trainer.global_step, True

    def after_look(self, trainer: pl.Trainer) -> None:
        """Keep the weights of the best score; every process learns what the first one found."""
        self._best, self._step, improved = trainer.strategy.broadcast((self._best, self._step, self._improved))
        self._improved, self._worse = False, 0 if improved else self._worse + 1
        if improved and not in_parts(trainer):
            trainer.save_checkpoint(self._path(trainer))
        if self.ended and trainer.global_step < trainer.max_steps:
            LOG.info("step %d: %d looks without a better score, the run ends here", trainer.global_step, self._worse)
            trainer.should_stop = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the best weights back, once the last checkpoint has been written."""
        if self._step < 0 or (trainer.global_step < trainer.max_steps and not self.ended):
            return
        if self._step == trainer.global_step:
            LOG.info("kept are the weights of step %d, the best on validation: %.4f", self._step, self._best)
            return
        path = self._path(trainer)
        if in_parts(trainer) or not is_whole(path):
            LOG.warning("the last weights are kept: those of step %d, better on validation, are lost", self._step)
            return
        saved = trainer.strategy.checkpoint_io.load_checkpoint(path)
        pl_module.load_state_dict(saved["state_dict"])
        self._tell(saved["global_step"])

    def _tell(self, step: int) -> None:
        """Say which weights the run ends with: a save that failed leaves those of an earlier best look."""
        if step == self._step:
            LOG.info("kept are the weights of step %d, the best on validation: %.4f", step, self._best)
            return
        LOG.warning(
            "kept are the weights of step %d: those of step %d, the best on validation (%.4f), could not be saved",
            step,
            self._step,
            self._best,
        )

    def _path(self, trainer: pl.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints" / BEST


def has_validation(data: StoreData) -> bool:
    """The store has validation images with what the fine-tuning learns."""
    try:
        return len(data.rows("val")) > 0
    except UserError:  # how a data module says that there are none
        return False


def ended_early(trainer: pl.Trainer) -> bool:
    """The patience of the validation ended the run before its last step."""
    return any(isinstance(callback, Validate) and callback.ended for callback in trainer.callbacks)  # pyright: ignore
