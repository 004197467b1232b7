"""Steps that must not count: losses and gradients that are no numbers, and losses that leap."""

import json
import logging
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ssl_med.errors import UserError
from ssl_med.ops import ranks
from ssl_med.optim import local
from ssl_med.types import Batch

LOG = logging.getLogger("ssl_med")
MEMORY, KNOWN = 101, 30
"""Losses that the rule for leaps looks back on, and how many it needs before it speaks."""
FLOOR = 0.05
"""Least spread of the losses, so that one that stands still does not make every tremor a leap."""
MOST_SAVED = 5
"""Steps of a run whose batches are kept."""


class Guard(pl.Callback):
    """Skip a step, on all processes together, whose loss or gradient is not finite on any of them.

    A skipped step leaves weights, optimiser, teachers, centres and queues as they were; the schedules and the order of
    the data go on. Its batches are kept for :mod:`ssl_med.verbs.replay`. The price of a step without faults: one
    all-reduce of three numbers, one norm of the gradients, one copy of the task's buffers, and one wait for the device
    between the backward pass and the optimiser's step, since the host must know whether to step.

    Args:
        patience: steps in a row that may be skipped before the run ends.
        spike: a loss this many spreads above the median of the last 101 steps is a leap: it is told. The spread is 1.48
            times the median distance to the median, of logarithms where all losses are positive; 0 for never.
        skip_spikes: skip such steps too.
    """

    def __init__(self, patience: int = 10, spike: float = 8.0, skip_spikes: bool = False) -> None:
        if patience < 1 or spike < 0:
            raise UserError(f"watch: skip_patience ({patience}) must be 1 or more and spike ({spike}) not below 0")
        self.patience, self.spike, self.skip_spikes = patience, spike, skip_spikes
        self.in_a_row = self.skipped = self.spikes = 0
        self.history: list[float] = []
        self._parts: list[tuple[Batch, Tensor]] = []
        self._before: dict[str, Tensor] = {}
        self._told = False

    def state_dict(self) -> dict[str, Any]:
        """What the next steps are judged by, so that a resumed run judges them alike."""
        counts = {"in_a_row": self.in_a_row, "skipped": self.skipped, "spikes": self.spikes}
        return {**counts, "history": list(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self.in_a_row, self.skipped = state_dict["in_a_row"], state_dict["skipped"]
        self.spikes, self.history = state_dict["spikes"], list(state_dict["history"])

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Remember the buffers before the first part of a step, and the batch."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._parts = []
            self._remember(pl_module.task)
        self._parts.append((batch, torch.empty(0)))

    def _remember(self, task: torch.nn.Module) -> None:
        now = dict(task.named_buffers())
        if now.keys() != self._before.keys() or any(now[n].shape != b.shape for n, b in self._before.items()):
            self._before = {name: buffer.detach().clone() for name, buffer in now.items()}
        else:
            for name, copy in self._before.items():
                copy.copy_(now[name])

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        """Keep the loss of this part."""
        self._parts[-1] = (self._parts[-1][0], loss.detach())

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        """Judge the step; all processes come to the same judgement."""
        bad_loss, bad_gradient, loss = self._look(pl_module.task)
        loss *= trainer.accumulate_grad_batches  # the trainer has divided it
        reason = "the loss" if bad_loss else "a gradient" if bad_gradient else ""
        if trainer.precision == "16-mixed" and not bad_loss:  # how float16 finds its scale: the scaler skips
            pl_module.skipping = bad_gradient
            return
        leaps = not reason and self._leaps(loss)
        if leaps:
            self.spikes += 1
            median = statistics.median(self.history)
            LOG.warning("step %d: the loss leaps to %.4g from about %.4g", trainer.global_step + 1, loss, median)
        pl_module.skipping = bool(reason) or (leaps and self.skip_spikes)
        if pl_module.skipping:
            self._skip(trainer, pl_module, reason)
        else:
            self.in_a_row = 0
            self.history = [*self.history, loss][-MEMORY:]
        self._parts = []

    def _look(self, task: torch.nn.Module) -> tuple[bool, bool, float]:
        """A loss is bad, a gradient is, on any process, and the mean loss: the one time the device is waited for."""
        losses = torch.stack([loss.double() for _, loss in self._parts])
        shares = [local(p.grad) for p in task.parameters() if p.grad is not None]
        gradients = [share for share in shares if share.numel()]  # of a small tensor some processes hold nothing
        norm = torch.stack(list(torch._foreach_norm(gradients, math.inf))).sum() if gradients else losses.new_zeros(())
        told = ranks.means(
            {
                "bad loss": (~losses.isfinite().all()).double(),
                "bad gradient": (~norm.isfinite()).double(),
                "loss": losses.nan_to_num(0, 0, 0).mean(),
            }
        )
        bad_loss, bad_gradient, loss = torch.stack(list(told.values())).tolist()
        return bad_loss > 0, bad_gradient > 0, loss

    def _leaps(self, loss: float) -> bool:
        if not self.spike or len(self.history) < KNOWN:
            return False
        positive = min(loss, *self.history) > 0
        seen = [math.log(x) for x in self.history] if positive else self.history
        median = statistics.median(seen)
        spread = max(1.4826 * statistics.median(abs(x - median) for x in seen), FLOOR if positive else 0.0)
        return spread > 0 and ((math.log(loss) if positive else loss) - median) / spread > self.spike

    def _skip(self, trainer: pl.Trainer, pl_module: Any, reason: str) -> None:
        """Put back what the forward pass has changed, and leave nothing for the optimiser to do.

        Raises:
            UserError: too many in a row.
        """
        for parameter in pl_module.task.parameters():
            parameter.grad = None
        for name, buffer in pl_module.task.named_buffers():
            buffer.copy_(self._before[name])
        self.in_a_row += 1
        self.skipped += 1
        step = trainer.global_step + 1
        if reason:
            LOG.warning("step %d is skipped: %s is not finite (%d so far)", step, reason, self.skipped)
        if self.skipped <= MOST_SAVED:
            self._save(trainer, pl_module, step, everything=reason != "the loss")
        for logger in trainer.loggers:
            logger.log_metrics({"skipped_steps": self.skipped}, step)
        if self.in_a_row >= self.patience:
            raise UserError(
                f"step {step}: {self.in_a_row} steps in a row were skipped, the last because "
                f"{reason or 'the loss'} {'is not finite' if reason else 'leaps'}: the training has diverged; lower "
                "learner.lr, set learner.clip, or look at the batches in faults/ of the run's folder"
            )

    def _save(self, trainer: pl.Trainer, pl_module: Any, step: int, everything: bool) -> None:
        """Write the parts whose own loss is not finite, or all where no loss says which it was.

        Where that fails it is told once: the other processes go on and would wait for this one for ever.
        """
        folder, rank = Path(trainer.default_root_dir) / "faults", trainer.global_rank
        for part, (batch, loss) in enumerate(self._parts):
            if loss.isfinite() and not everything:
                continue
            facts = {"step": step, "part": part, "progress": pl_module.progress, "rank": rank}
            facts["seed"] = pl_module.part_seed(part)
            try:
                folder.mkdir(mode=0o700, exist_ok=True)
                save_batch(folder / f"step={step:07d}_part={part}_rank={rank}.safetensors", batch, facts)
            except (OSError, SafetensorError) as error:
                self._tell(step, error)

    def _tell(self, step: int, error: Exception) -> None:
        if not self._told:
            reason = getattr(error, "strerror", None) or error
            LOG.warning("the batch of step %d is not kept for a replay (%s); the run goes on", step, reason)
        self._told = True


def save_batch(path: Path, batch: Batch, facts: dict[str, Any]) -> None:
    """Write a batch as tensors, with its keyed ids and ``facts`` as text; only its owner may read it.

    Raises:
        OSError, SafetensorError: it cannot be written; nothing is left of it.
    """
    values: dict[str, Any] = dict(batch)
    tensors = {name: v.detach().cpu().contiguous() for name, v in values.items() if isinstance(v, Tensor)}
    ids: Sequence[str] = batch.get("id", [])
    path.touch(mode=0o600)
    try:
        save_file(tensors, path, {"facts": json.dumps(facts), "ids": json.dumps(list(ids))})
        path.chmod(0o600)
    except (OSError, SafetensorError):
        path.unlink(missing_ok=True)  # half a batch is none
        raise
