"""Being asked to stop: handlers set a number, the processes agree at the end of a step, and all leave alike."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist

LOG = logging.getLogger("ssl_med")
REQUEUE = signal.SIGUSR1 if hasattr(signal, "SIGUSR1") else None
"""What a generated batch file lets SLURM send before the time is over."""

_PATIENCE = 30.0
"""Seconds that the first process waits for the others to leave."""


class Signals:
    """Notes SIGINT, SIGTERM and SIGUSR1; nothing is done inside a handler.

    The first signal counts. A second Ctrl+C stops at once; any other further signal changes nothing, so that a save
    that is under way is finished.
    """

    def __init__(self) -> None:
        self.asked = 0
        """Number of the signal that came, 0 for none."""
        self.agreed = 0
        """The same, once all processes know."""
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """From here on signals are noted; only the main thread can do this."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM, REQUEUE):
            if number is not None and number not in self._before:
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked and number == signal.SIGINT:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _PROMISE)  # print is not safe in a handler
        self.asked = self.asked or number

    def close(self) -> None:
        """Signals mean what they meant before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


_PROMISE = b"\nstopping after this step, with a checkpoint; once more stops at once\n"


class Agreement:
    """Numbers on which all processes agree, through a group of their own on the CPU, so that no device is waited for.

    The cost is one all-reduce of a few integers per step: a round trip of the network, beside that of the gradients.
    """

    def __init__(self) -> None:
        self._group: Any = None

    def begin(self, strategy: Any) -> None:
        """Make the group; all processes call this together."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=getattr(strategy, "_timeout", None))

    def most(self, *values: int) -> list[int]:
        """The largest of each number over the processes."""
        if self._group is None:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self._group)
        return numbers.tolist()

    def collect(self, part: dict[str, str]) -> dict[str, str]:
        """The parts of all processes in one dictionary."""
        if self._group is None:
            return part
        parts: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(parts, part, group=self._group)
        return {name: value for each in parts for name, value in each.items()}


def quiet_lightning(trainer: pl.Trainer) -> None:
    """Take Lightning's own handlers out: they save, requeue and call collectives inside a handler.

    Its broadcast of a flag at every step goes too: it waits for the device, and nobody sets the flag.
    """
    trainer._signal_connector.register_signal_handlers = _nothing
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing


def _nothing() -> None:
    """What is left of it."""


def set_timeout(trainer: pl.Trainer, seconds: float | None) -> None:
    """How long a process waits in a collective for the others before it fails; None for what the strategy says."""
    if seconds is not None and hasattr(trainer.strategy, "_timeout"):
        trainer.strategy._timeout = timedelta(seconds=seconds)  # pyright: ignore[reportAttributeAccessIssue]


def leave_together(trainer: pl.Trainer, number: int, worked: bool) -> None:
    """All processes are about to end after a signal: requeue the job if SLURM is to go on with it, then part.

    Args:
        trainer: whose run ends.
        number: of the signal.
        worked: this start has done at least one step; a job that has not would be requeued for ever.
    """
    if number == REQUEUE and trainer.is_global_zero and "SLURM_JOB_ID" in os.environ:
        requeue() if worked else LOG.error("not requeued: no step was done in the time that this job had")
    if dist.is_available() and dist.is_initialized():
        trainer.strategy.barrier("leave")
    for child in release_children(trainer):
        child.wait(_PATIENCE)


def requeue() -> None:
    """``scontrol requeue``, once the checkpoint is written; a failure is told, since the run can be resumed by hand."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        LOG.error("job %s is not requeued (%s); submit it again to go on", job, said)
    else:
        LOG.info("job %s is requeued and will go on", job)


def release_children(trainer: pl.Trainer) -> Sequence[subprocess.Popen]:
    """The processes that Lightning started, which its observer no longer watches.

    It would kill this process as soon as one of them ends with a code that is not 0, and with it the exit code.
    """
    started = getattr(trainer.strategy.launcher, "procs", [])
    children = list(started)
    started.clear()
    return children
