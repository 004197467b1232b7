"""A step that does not end: the stacks of all threads are written down, and the process ends instead of waiting."""

import faulthandler
from pathlib import Path
from typing import Any, TextIO

import pytorch_lightning as pl

_FIRST = 10.0
"""The first step may take so many times longer: it compiles, starts loader processes and meets the other machines."""


class Watchdog(pl.Callback):
    """Ends the process with code 1 when a step takes too long; ``stacks-rank=N.txt`` says where each thread was.

    The clock is the system's own: it runs while Python waits in a collective or in a read that never returns. It also
    runs while the process is paused. Looks at the run (probes, validation) count as part of a step.

    Args:
        seconds: that a step may take.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._file: TextIO | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to watch."""
        self._file = (Path(trainer.default_root_dir) / f"stacks-rank={trainer.global_rank}.txt").open("w")
        self._wind(self.seconds * _FIRST)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """The step is done: the next one has its own time."""
        self._wind(self.seconds)

    def _wind(self, seconds: float) -> None:
        if self._file is not None:
            faulthandler.dump_traceback_later(seconds, exit=True, file=self._file)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last save takes as long as it takes."""
        self._stop(remove=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The run is over; where it was is in the traceback, and for a collective that timed out here too."""
        if self._file is not None:
            faulthandler.dump_traceback(self._file)
        self._stop(remove=False)

    def _stop(self, remove: bool) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self._file is not None:
            self._file.close()
            if remove:
                Path(self._file.name).unlink(missing_ok=True)
            self._file = None
