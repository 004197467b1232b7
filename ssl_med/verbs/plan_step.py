"""Training steps of a task on made-up voxels: what they compute, what they keep, how long they take on this device."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ssl_med import sharding
from ssl_med.learner import Learner
from ssl_med.ops.random import sample_keys
from ssl_med.optim import adamw, clip_all, clip_each, parameter_groups
from ssl_med.tasks import Task
from ssl_med.types import Batch
from ssl_med.verbs.plan_time import Count, Size

PROGRESS = 0.5  # of the training: after warm-up and frozen starts


class Stepper:
    """Does what a step of a run does, without reading, logging and saving.

    Args:
        learner: task and optimiser settings of the run.
        channels: of the image.
        device: where to train.
        dtype: of autocast; None for fp32.
        clock: seconds; the time of the process ignores what else runs, but also what a GPU does.
    """

    def __init__(
        self,
        learner: Learner,
        channels: int,
        device: torch.device,
        dtype: torch.dtype | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.learner, self.channels, self.device, self.dtype, self.clock = learner, channels, device, dtype, clock
        self.task: Task = learner.task.to(device).train()
        if learner.recompute:
            sharding.recompute(self.task)
        if learner.compile_blocks:
            sharding.compile_units(self.task)
        groups = parameter_groups(self.task, self.task.layers(), learner.weight_decay, learner.layer_decay)
        self.optimizer = adamw(groups, learner.lr, learner.betas, fused=dtype != torch.float16)

    def batch(self, size: Size) -> Batch:
        """Noise: z-scored voxels, 1 mm apart."""
        count, crop = size
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(count, self.channels, *crop, generator=generator).to(self.device)
        spacing = torch.ones(count, len(crop), device=self.device)
        return {"image": image, "spacing": spacing, "key": sample_keys(0, torch.arange(count)).to(self.device)}

    def step(self, batch: Batch) -> None:
        """Forward, backward, clipping, optimiser, teacher."""
        self.optimizer.zero_grad(set_to_none=True)
        self._loss(batch).backward()
        if self.learner.clip is not None:
            (clip_each if self.learner.clip_each else clip_all)(self.task.parameters(), self.learner.clip)
        self.optimizer.step()
        self.task.after_step(PROGRESS)

    def count(self, size: Size) -> Count:
        """FLOPs of forward and backward by torch's counter, and the storage that autograd keeps between them."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.task.parameters()}
        kept: dict[int, Tensor] = {}  # holds them too: freed memory would be counted again under another tensor

        def keep(x: Tensor) -> Tensor:
            if x.untyped_storage().data_ptr() not in weights:
                kept[x.untyped_storage().data_ptr()] = x
            return x

        batch = self.batch(size)
        with FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                loss = self._loss(batch)
            stored = sum(x.untyped_storage().nbytes() for x in kept.values())
            loss.backward()
        done: dict[Any, int] = counter.get_flop_counts()["Global"]
        attention = sum(flops for operator, flops in done.items() if _is_attention(operator))
        return Count(sum(done.values()) - attention, attention, stored)

    def seconds(self, sizes: Sequence[Size], rounds: int) -> dict[Size, float]:
        """Median time of a step of each size; the sizes take turns, and one step of each warms up."""
        batches = {size: self.batch(size) for size in sizes}
        found: dict[Size, list[float]] = {size: [] for size in sizes}
        for turn in range(rounds + 1):
            for size, batch in batches.items():
                begun = self._now()
                self.step(batch)
                if turn:
                    found[size].append(self._now() - begun)
        return {size: statistics.median(times) for size, times in found.items()}

    def state_bytes(self) -> int:
        """Weights, gradients and moments of what is trained, weights alone of what is not (teachers), in fp32."""
        return sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in self.task.parameters())

    def _loss(self, batch: Batch) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return self.task(batch, PROGRESS)["loss"]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()


def _is_attention(operator: object) -> bool:
    """Products of two activations: fused attention, or batched products."""
    return any(word in str(operator) for word in ("attention", "bmm"))
