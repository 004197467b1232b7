"""What is written while a run goes on: metrics as JSON lines, and a line or a bar for the person who waits."""

import json
import logging
import math
import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

LOG = logging.getLogger("ssl_med")


class JsonLines(Logger):
    """``metrics.jsonl``: one object a line, the exact numbers; ``step`` is the number of steps done.

    Args:
        folder: of the run.
        resume_step: lines of later steps are dropped, since these steps are run again; all of them at step 0.
        leads: this process writes the run's folder; only it drops lines.
    """

    def __init__(self, folder: Path, resume_step: int = 0, leads: bool = True) -> None:
        super().__init__()
        self.path = folder / "metrics.jsonl"
        if leads:
            self._drop_after(resume_step)

    def _drop_after(self, step: int) -> None:
        lines = self.path.read_text().splitlines() if self.path.exists() and step else []
        temporary = self.path.with_name(f".{self.path.name}")
        temporary.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= step))
        temporary.replace(self.path)

    @property
    def name(self) -> str:
        """Not used."""
        return "jsonl"

    @property
    def version(self) -> str:
        """Not used."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line; numbers that are not finite become strings, since JSON has none."""
        values = {k: v if math.isfinite(v) else str(v) for k, v in metrics.items() if k != "epoch"}
        append_line(self.path, json.dumps({"step": step, **values}))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The config is saved elsewhere."""


def append_line(path: Path, line: str) -> None:
    """Add a whole line or nothing: where the disk is full, a training goes on without its log, after one warning."""
    length = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a") as file:
            file.write(line + "\n")
    except OSError as error:
        if path.exists():
            os.truncate(path, length)
        if path not in _TOLD:
            _TOLD.add(path)
            LOG.warning("%s cannot be written (%s); the run goes on without these lines", path.name, error.strerror)


_TOLD: set[Path] = set()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return math.inf  # cut off by a kill


class Progress(pl.Callback):
    """A bar with the time left and the samples per second on a terminal; one line every so often elsewhere.

    Args:
        every_seconds: between lines where nobody watches.
    """

    def __init__(self, every_seconds: float = 30.0) -> None:
        self.every_seconds = every_seconds
        self._began, self._first, self._shown, self._noted = 0.0, 0, 0.0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._began = self._shown = self._noted = time.monotonic()
        self._first = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Say how far it is; the rate is logged too."""
        now, step, last = time.monotonic(), trainer.global_step, trainer.max_steps
        done, terminal = step - self._first, sys.stderr.isatty()
        noted = now - self._noted >= self.every_seconds or step >= last
        shown = noted or (terminal and now - self._shown >= 0.2)
        if not trainer.is_global_zero or not done or not shown:
            return
        self._shown = now
        rate = done / (now - self._began)
        samples = rate * len(batch["image"]) * trainer.world_size * trainer.accumulate_grad_batches
        pl_module.log("samples_per_second", samples, batch_size=1)
        loss = float(trainer.callback_metrics.get("loss", math.nan))
        text = f"step {step}/{last}  loss {loss:.4f}  {samples:.1f} samples/s  {clock((last - step) / rate)} left"
        if noted:
            self._noted = now
            LOG.info(text, extra={"quiet": True})
        filled = round(20 * step / last)
        print(
            f"\r[{'#' * filled:<20}] {text}   " if terminal else text,
            end="" if terminal and step < last else "\n",
            file=sys.stderr,
            flush=True,
        )


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
