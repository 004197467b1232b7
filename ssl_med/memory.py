"""What to do when a step does not fit into memory: the cheapest remedies first, in the run's own numbers."""

import pytorch_lightning as pl
import torch

from ssl_med.data.module import StoreData
from ssl_med.errors import UserError
from ssl_med.learner import Learner


def out_of_memory(error: BaseException, learner: Learner, module: StoreData, trainer: pl.Trainer) -> UserError | None:
    """A sentence with three remedies for an error that means too little memory; None for any other error.

    Args:
        error: what ended the training.
        learner, module, trainer: of the run; their settings decide which remedies are left.
    """
    on_device = isinstance(error, torch.OutOfMemoryError)
    if not on_device and not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
        return None
    where = "the accelerator" if on_device else "this machine"
    chosen = "; ".join(f"({i}) {remedy}" for i, remedy in enumerate(remedies(learner, module, trainer)[:3], 1))
    return UserError(
        f"step {trainer.global_step + 1} needs more memory than {where} has. The last checkpoint is whole. "
        f"Cheapest first: {chosen}"
    )


def remedies(learner: Learner, module: StoreData, trainer: pl.Trainer) -> list[str]:
    """Ways to need less memory that these settings leave open, the cheapest in time and in change of result first."""
    found, batch, parts = [], module.batch_size, trainer.accumulate_grad_batches
    if trainer.precision == "32-true" and trainer.strategy.root_device.type == "cuda":
        found.append("trainer.precision: bf16-mixed instead of 32-true, half the activations and faster")
    if not learner.recompute:
        found.append("learner.recompute: true, about a fifth of the activations for a third more work, same gradients")
    if batch % 2 == 0 and batch // 2 % trainer.world_size == 0:
        coupled = "; losses that compare images then see half as many at once"
        found.append(
            f"data.batch_size: {batch // 2} with trainer.accumulate_grad_batches: {2 * parts} instead of {batch} with "
            f"{parts}, the same images per step{coupled}"
        )
    if trainer.world_size > 1 and not hasattr(trainer.strategy, "device_mesh"):
        found.append(f"trainer.strategy: fsdp, weights and optimiser in {trainer.world_size} parts")
    smaller = [max(1, size // 2) for size in module.crop]
    found.append(f"data.crop: {smaller} instead of {module.crop}, at most 1/{2 ** len(smaller)} of the activations")
    found.append("a smaller backbone, see `ssl-med plan`")
    return found
