"""Trainings of seconds: batches, steps, golden losses, and what the health check would see."""

import json
from pathlib import Path

import torch
from torch import nn

from ssl_med.ops.collapse import effective_rank, feature_spread
from ssl_med.ops.random import sample_keys


def train(task: nn.Module, batches: list[dict], lr: float) -> list[float]:
    optimiser, losses = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=lr), []
    for number, batch in enumerate(batches):
        optimiser.zero_grad()
        loss = task(batch, number / len(batches))["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimiser.step()
        task.after_step((number + 1) / len(batches))
        losses.append(loss.item())
    return losses


@torch.no_grad()
def signs_of(task: nn.Module, batch: dict) -> dict[str, float]:
    task.eval()
    features = task.exports()["backbone"](batch["image"]).pooled
    health = {"feature_spread": feature_spread(features), "effective_rank": effective_rank(features)}
    signs = {name: float(value) for name, value in {**health, **task.vital_signs(batch)}.items()}
    task.train()
    return signs


def many(space: tuple[int, ...], steps: int, count: int = 8) -> list[dict]:
    """The same few images in every batch, each a coarse pattern of its own, under fresh noise and keys."""
    generator, batches = torch.Generator().manual_seed(0), []
    pattern = torch.randn(count, 1, *[length // 4 for length in space], generator=generator)
    for axis in range(2, 2 + len(space)):
        pattern = pattern.repeat_interleave(4, axis)
    for step in range(steps):
        image = pattern + 0.1 * torch.randn(pattern.shape, generator=generator)
        batches.append({"image": image, "key": sample_keys(step, torch.arange(count))})
    return batches


def golden(name: str) -> list[float]:
    """Losses of the first steps that were written down once, see ``golden.json``."""
    return json.loads((Path(__file__).parent / "golden.json").read_text())[name]
