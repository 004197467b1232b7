"""The only LightningModule: drives any task, in pretraining and in fine-tuning."""

from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from ssl_med import sharding
from ssl_med.errors import UserError
from ssl_med.ops import ranks
from ssl_med.ops.norm import over_all_processes
from ssl_med.optim import adamw, clip_all, clip_each, hold_still, norm_of_all, parameter_groups
from ssl_med.schedules import cosine
from ssl_med.tasks.base import Choice, Task
from ssl_med.types import Batch

_REMEMBERED = "remembered_by_tasks"
"""In a checkpoint."""
_WARMUP, _LEAST_WARMUP, _MOST_WARMUP = 0.05, 40, 0.5
"""MAE's share of the steps; the least number of them; the largest share."""


def fitting_warmup(steps: int) -> Choice:
    """A share of the training that warms up: MAE's 0.05, but 40 steps at least, and half of the training at most.

    Adam divides by a mean of squared gradients that looks back over 1 / (1 - beta2) steps. Its first steps are of no
    known size until twice as many have passed (Ma and Yarats, arXiv 1910.04209): 40 with MAE's beta2 of 0.95. From 800
    steps on the published share has as many.

    Args:
        steps: of the training.
    """
    if _WARMUP * steps >= _LEAST_WARMUP:
        return Choice(_WARMUP, f"MAE's share, {round(_WARMUP * steps)} of {steps} steps")
    share = min(_LEAST_WARMUP / steps, _MOST_WARMUP)
    bound = "half of the training at most" if share == _MOST_WARMUP else "twice as many as Adam's mean of squares spans"
    why = f"{round(share * steps)} of {steps} steps, {bound}; MAE's {_WARMUP} would be too few"
    return Choice(round(share, 4), why)


class Learner(pl.LightningModule):
    """AdamW with warm-up and cosine decay around a task; every schedule is a function of the step.

    Args:
        task: what is learned.
        lr: peak learning rate.
        weight_decay: of matrices; vectors are not decayed.
        weight_decay_end: where the decay ends after half a cosine (DINO: 0.04 to 0.4); constant if None.
        betas: of AdamW.
        warmup: share of the steps that warm up; chosen from their number if left open, see :func:`fitting_warmup`.
        layer_decay: factor on the rate per layer towards the input (fine-tuning: 0.65 to 0.75); 1 for none.
        clip: largest gradient norm; None for no clipping (MAE).
        clip_each: clip every tensor by its own norm (DINO) instead of all by their common one.
        recompute: keep only the inputs of the blocks and compute them again in the backward pass: a fraction of the
            memory for a third more work, and the same gradients.
        compile_blocks: compile every block by itself; where that is not possible, the run goes on without and says so.
        freeze_backbone: share of the steps, at the beginning, in which only what is in no layer of the task learns: the
            new heads of a backbone that is good already. None is 0; ``--init_from`` chooses.
        seed: of the run; what is random inside the model is a function of (seed, step, rank).

    Raises:
        ValueError: ``freeze_backbone`` is no share of the steps.

    Attributes:
        skipping: the step that is being done must leave everything as it is, see :class:`ssl_med.callbacks.Guard`.
    """

    def __init__(
        self,
        task: Task,
        lr: float = 1.5e-4,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup: float | None = None,
        layer_decay: float = 1.0,
        clip: float | None = None,
        clip_each: bool = False,
        weight_decay_end: float | None = None,
        recompute: bool = False,
        compile_blocks: bool = False,
        freeze_backbone: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.task = task
        self.lr, self.weight_decay, self.betas, self.warmup = lr, weight_decay, betas, warmup
        self.layer_decay, self.clip, self.seed = layer_decay, clip, seed
        self.clip_each, self.weight_decay_end = clip_each, weight_decay_end
        self.recompute, self.compile_blocks = recompute, compile_blocks
        if not 0 <= (freeze_backbone or 0) < 1:
            raise ValueError(f"freeze_backbone: {freeze_backbone} is no share of the steps, 0 to 1")
        self.freeze_backbone = freeze_backbone
        self.skipping = False
        self._prepared, self._blueprint = False, {}

    def configure_model(self) -> None:
        """Do with the blocks what was asked for, and leave in this process its share; once."""
        if self._prepared:
            return
        self._prepared = True
        if self.trainer.world_size > 1:
            over_all_processes(self.task)
        if self.recompute:
            sharding.recompute(self.task)
        if self.compile_blocks:
            sharding.compile_units(self.task)
        if self.device_mesh is not None:
            self._blueprint = sharding.shard(self.task, self.device_mesh)

    def whole(self) -> Task | None:
        """The task with all its weights, to look at and to export; None on all processes but the first if sharded.

        All processes call it together.
        """
        return sharding.whole(self.task, self._blueprint) if sharding.is_sharded(self.task) else self.task

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What the task and its parts remember beside their weights."""
        parts = [(name, part) for name, part in self.task.named_modules() if isinstance(part, Task)]
        checkpoint[_REMEMBERED] = {name: {key: getattr(part, key) for key in part.remembered} for name, part in parts}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give it back; checkpoints of older versions have none of it."""
        for name, values in checkpoint.get(_REMEMBERED, {}).items():
            part = self.task.get_submodule(name)
            for key in set(values) & set(cast(Task, part).remembered):
                setattr(part, key, values[key])

    @property
    def progress(self) -> float:
        """Share of the training done."""
        return self.trainer.global_step / self.trainer.max_steps

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Groups by layer and decay; not fused with float16, whose gradients are unscaled before they are clipped."""
        layers = self.task.layers()
        if self.freeze_backbone and not layers:
            raise UserError(f"learner.freeze_backbone: {type(self.task).__name__} does not say what its layers are")
        groups = parameter_groups(self.task, layers, self.weight_decay, self.layer_decay)
        return adamw(groups, self.lr, self.betas, fused=self.trainer.precision != "16-mixed")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One forward pass; dropout and the like are seeded by the step, so that a resumed run repeats it."""
        torch.manual_seed(self.part_seed(batch_idx % self.trainer.accumulate_grad_batches))
        losses = self.task(batch, self.progress)
        self.log_dict(ranks.means(losses), batch_size=len(batch["image"]))
        self.log("step", float(self.trainer.global_step + 1))  # steps done, as in checkpoints; Lightning counts from 0
        return losses["loss"]

    def part_seed(self, part: int) -> int:
        """What dropout and the like are seeded by in a part of the step that is being done."""
        place = self.trainer.global_step * self.trainer.accumulate_grad_batches + part
        return (self.seed * 1_000_003 + place) * 4099 + self.global_rank

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the rate of this step, clip, and log how large the gradient was."""
        warmup = fitting_warmup(self.trainer.max_steps).value if self.warmup is None else self.warmup
        rates = self.task.rates(self.progress, warmup)
        if self.progress < (self.freeze_backbone or 0):
            rates = rates._replace(trunk=0.0)
            hold_still(optimizer.param_groups)
        for group in optimizer.param_groups:
            group["lr"] = self.lr * group["scale"] * (rates.trunk if group["trunk"] else rates.head)
            if self.weight_decay_end is not None and group["weight_decay"]:
                group["weight_decay"] = cosine(self.progress, self.weight_decay, self.weight_decay_end)
        self.log("lr", self.lr * rates.head, batch_size=1)
        if not self.skipping:
            self._clip_or_measure()

    def _clip_or_measure(self) -> None:
        """Without clipping the norm is taken only in steps whose numbers are written: it reads every gradient."""
        if self.clip is not None:
            clip = clip_each if self.clip_each else clip_all
            self.log("grad_norm", clip(self.task.parameters(), self.clip), batch_size=1)
        elif self.trainer._logger_connector.should_update_logs:
            self.log("grad_norm", norm_of_all(self.task.parameters()), batch_size=1)

    def optimizer_step(self, *args, **kwargs) -> None:
        """Step, then what the task does after a step."""
        super().optimizer_step(*args, **kwargs)
        if not self.skipping:
            self.task.after_step(self.progress)
