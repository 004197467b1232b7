"""The only LightningModule: drives any task, in pretraining and in fine-tuning."""

import pytorch_lightning as pl
import torch
from torch import Tensor

from ssl_med.optim import adamw, clip_each, parameter_groups
from ssl_med.schedules import cosine, warmup_cosine
from ssl_med.tasks.base import Task
from ssl_med.types import Batch


class Learner(pl.LightningModule):
    """AdamW with warm-up and cosine decay around a task; every schedule is a function of the step.

    Args:
        task: what is learned.
        lr: peak learning rate.
        weight_decay: of matrices; vectors are not decayed.
        weight_decay_end: where the decay ends after half a cosine (DINO: 0.04 to 0.4); constant if None.
        betas: of AdamW.
        warmup: share of the steps that warm up.
        layer_decay: factor on the rate per layer towards the input (fine-tuning: 0.65 to 0.75); 1 for none.
        clip: largest gradient norm; None for no clipping (MAE).
        clip_each: clip every tensor by its own norm (DINO) instead of all by their common one.
        seed: of the run; what is random inside the model is a function of (seed, step, rank).
    """

    def __init__(
        self,
        task: Task,
        lr: float = 1.5e-4,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup: float = 0.05,
        layer_decay: float = 1.0,
        clip: float | None = None,
        clip_each: bool = False,
        weight_decay_end: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.task = task
        self.lr, self.weight_decay, self.betas, self.warmup = lr, weight_decay, betas, warmup
        self.layer_decay, self.clip, self.seed = layer_decay, clip, seed
        self.clip_each, self.weight_decay_end = clip_each, weight_decay_end

    @property
    def progress(self) -> float:
        """Share of the training done."""
        return self.trainer.global_step / self.trainer.max_steps

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Groups by layer and decay; not fused with float16, whose gradients are unscaled before they are clipped."""
        groups = parameter_groups(self.task, self.task.layers(), self.weight_decay, self.layer_decay)
        return adamw(groups, self.lr, self.betas, fused=self.trainer.precision != "16-mixed")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One forward pass; dropout and the like are seeded by the step, so that a resumed run repeats it."""
        parts = self.trainer.accumulate_grad_batches
        part = self.trainer.global_step * parts + batch_idx % parts
        torch.manual_seed((self.seed * 1_000_003 + part) * 4099 + self.global_rank)
        losses = self.task(batch, self.progress)
        self.log_dict({name: value.detach() for name, value in losses.items()}, batch_size=len(batch["image"]))
        self.log("step", float(self.trainer.global_step + 1))  # steps done, as in checkpoints; Lightning counts from 0
        return losses["loss"]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the rate of this step and clip."""
        rate = self.lr * warmup_cosine(self.progress, self.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
            if self.weight_decay_end is not None and group["weight_decay"]:
                group["weight_decay"] = cosine(self.progress, self.weight_decay, self.weight_decay_end)
        self.log("lr", rate, batch_size=1)
        if self.clip is not None:
            clip = clip_each if self.clip_each else torch.nn.utils.clip_grad_norm_
            self.log("grad_norm", clip(self.task.parameters(), self.clip), batch_size=1)

    def optimizer_step(self, *args, **kwargs) -> None:
        """Step, then what the task does after a step."""
        super().optimizer_step(*args, **kwargs)
        self.task.after_step(self.progress)
