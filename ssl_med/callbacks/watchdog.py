"""A step that does not end: the stacks of all threads are written down, and the process ends instead of waiting."""

import faulthandler
import threading
import time
from pathlib import Path
from typing import Any, TextIO

import pytorch_lightning as pl

_FIRST = 10.0
"""The first step may take so many times longer: it compiles, starts loader processes and meets the other machines."""

_LOOKS = 5
"""Times that the stacks are written while a collective waits: it gives up within a fifth of its time of the last."""


class Watchdog(pl.Callback):
    """Writes to ``stacks-rank=N.txt`` where each thread is when a step does not end, or a collective is about to fail.

    A step that takes too long ends the process with code 1. Its clock is the system's own: it runs while Python waits
    in a collective or in a read that never returns. It also runs while the process is paused. Looks at the run (probes,
    validation) count as part of a step.

    A collective that is out of time fails by itself, and then it is too late to see where it was. So the stacks are
    written several times while it waits, by a thread; those of a step that ends after all are dropped.

    Args:
        seconds: that a step may take; None for as long as it likes.
        collective: seconds that a process waits in a collective for the others; None to write nothing before.
    """

    def __init__(self, seconds: float | None, collective: float | None = None) -> None:
        self.seconds, self.collective = seconds, collective
        self._file: TextIO | None = None
        self._began = 0.0
        self._over = threading.Event()
        self._onlooker: threading.Thread | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to watch."""
        self._file = (Path(trainer.default_root_dir) / f"stacks-rank={trainer.global_rank}.txt").open("w")
        self._wind(_FIRST)
        if self.collective and trainer.world_size > 1:
            self._over.clear()
            self._onlooker = threading.Thread(target=self._look, args=(self.collective / _LOOKS,), daemon=True)
            self._onlooker.start()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """The step is done: the next one has its own time."""
        if self._file is not None and self._file.tell():
            self._file.seek(0)
            self._file.truncate()
        self._wind()

    def _wind(self, times: float = 1.0) -> None:
        self._began = time.monotonic()
        if self._file is not None and self.seconds:
            faulthandler.dump_traceback_later(self.seconds * times, exit=True, file=self._file)

    def _look(self, pause: float) -> None:
        """Every ``pause`` seconds of a step that is as old as that, say how old it is and where each thread is."""
        began = self._began
        while not self._over.wait(began + pause - time.monotonic()):
            file, age = self._file, time.monotonic() - self._began
            if file is not None and age >= pause:
                file.write(f"{age:.1f} s after the end of the step before:\n")
                file.flush()
                faulthandler.dump_traceback(file)
                file.seek(0, 2)
            began = time.monotonic() if age >= pause else self._began

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last save takes as long as it takes."""
        self._stop(keep=False)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The run is over; stacks that were written in this step stay."""
        self._stop(keep=True)

    def _stop(self, keep: bool) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._over.set()
        if self._onlooker is not None:
            self._onlooker.join()
            self._onlooker = None
        if self._file is not None:
            keep = keep and self._file.tell() > 0
            self._file.close()
            if not keep:
                Path(self._file.name).unlink(missing_ok=True)
            self._file = None
