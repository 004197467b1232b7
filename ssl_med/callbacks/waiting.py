"""Does loading keep up: the share of the time that training waits for its next batch."""

import time
from typing import Any

import pytorch_lightning as pl


class Waiting(pl.Callback):
    """Logs ``data_wait``: of the time since the last log, the per cent between one step's end and the next one's start.

    It should be the last callback but the checkpoints, so that what the others do after a step does not count as
    waiting. On a GPU steps are handed over without waiting for them, so that the share is an upper bound there.
    """

    def __init__(self) -> None:
        self._waited = self._worked = 0.0
        self._last: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first batch is not counted: it starts the loader processes."""
        self._waited, self._worked, self._last = 0.0, 0.0, None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The batch is there: the wait is over."""
        now = time.perf_counter()
        if self._last is not None:
            self._waited += now - self._last
        self._last = now

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """The step is done; log where the trainer does."""
        now = time.perf_counter()
        if self._last is not None:
            self._worked += now - self._last
        self._last = now
        if trainer._logger_connector.should_update_logs and self._waited:
            pl_module.log("data_wait", 100 * self._waited / (self._waited + self._worked), batch_size=1)
            self._waited = self._worked = 0.0
