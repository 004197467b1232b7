"""``python -m benchmarks.plan_check``: what ``ssl-med plan`` says of a step, beside what a step does.

FLOPs by torch's counter; memory as the storage of all that autograd keeps for the backward pass, under bf16 autocast.
Both are differences between batches of two and of four, so that what does not grow with the batch drops out. The time
of a step is predicted as ``plan --measure`` does it, from two batches of one crop, for other batches and crops: seconds
of the process on one thread, so that what else runs counts little; steps of all sizes take turns; medians.
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.measure import machine, table
from ssl_med.backbones import UNetEncoder, ViT
from ssl_med.learner import Learner
from ssl_med.tasks import BYOL, DINO, MAE, ModelsGenesis, SimCLR, Task
from ssl_med.verbs.plan import assemble
from ssl_med.verbs.plan_measure import fitted
from ssl_med.verbs.plan_model import Work
from ssl_med.verbs.plan_step import Stepper
from ssl_med.verbs.plan_time import Size, per_sample

WIDTH, DEPTH, DECODER, PATCH = 192, 4, 96, 8
CASES = {"mae": (64, 64, 64), "simclr": (32, 32, 32), "byol": (32, 32, 32), "dino": (64, 64, 64)}


def task_of(name: str, crop: tuple[int, ...]) -> Task:
    """A small task as the plan knows it; heads, which it leaves out, are tiny."""
    torch.manual_seed(0)
    vit = ViT(len(crop), PATCH, embed_dim=WIDTH, depth=DEPTH, heads=3)
    if name == "mae":
        return MAE(vit, decoder_dim=DECODER, decoder_depth=2, decoder_heads=4)
    if name == "dino":
        return DINO(vit, prototypes=64, hidden_dim=64, bottleneck_dim=32)
    return {"simclr": SimCLR, "byol": BYOL}[name](vit, hidden_dim=64, out_dim=32)


def planned(name: str, crop: tuple[int, ...]) -> Work:
    """What the plan says of one sample."""
    return assemble(
        size="vit_tiny", spatial_dims=len(crop), crop=crop, patch=PATCH, channels=1, mask_ratio=0.75, task=name,
        decoder_dim=DECODER, decoder_depth=2, class_token=True, embed_dim=WIDTH, depth=DEPTH,
    ).work()  # fmt: skip


def measured(task: Task, crop: tuple[int, ...]) -> tuple[float, float]:
    """FLOPs and kept bytes of one sample."""
    stepper = Stepper(Learner(task), 1, torch.device("cpu"), torch.bfloat16)
    few, many = ((count, stepper.count(Size(count, crop))) for count in (2, 4))
    sample = per_sample(few, many)
    return sample.flops, sample.kept


class Trial(NamedTuple):
    """Steps to predict: the task, the steps that the law is fitted to, and those that are held out."""

    build: Callable[[], Task]
    fitted: tuple[Size, ...]
    held_out: tuple[Size, ...]


def _square(edge: int, *batches: int) -> tuple[Size, ...]:
    return tuple(Size(batch, (edge, edge)) for batch in batches)


def _cube(edge: int, *batches: int) -> tuple[Size, ...]:
    return tuple(Size(batch, (edge, edge, edge)) for batch in batches)


def _slab(edge: int, *batches: int) -> tuple[Size, ...]:
    return tuple(Size(batch, (edge // 2, edge, edge)) for batch in batches)


TRIALS = {
    "MAE 2D, ViT 384 x 6, patch 16": Trial(
        lambda: MAE(ViT(2, 16, size="small", depth=6), decoder_dim=256, decoder_depth=4, decoder_heads=8),
        _square(160, 2, 8),
        _square(96, 4, 16) + _square(128, 2, 8) + _square(160, 4, 16) + _square(224, 2, 8),
    ),
    "MAE 3D, ViT 384 x 6, patch 8": Trial(
        lambda: MAE(ViT(3, 8, size="small", depth=6), decoder_dim=192, decoder_depth=2, decoder_heads=6),
        _cube(48, 2, 8),
        _cube(32, 4, 16) + _cube(48, 4) + _cube(64, 2, 4) + _cube(80, 2),
    ),
    "DINO 2D, ViT 192 x 6, patch 8": Trial(
        lambda: DINO(ViT(2, 8, size="tiny", depth=6), prototypes=4096, hidden_dim=512, bottleneck_dim=128),
        _square(96, 2, 6),
        _square(64, 4, 8) + _square(96, 4) + _square(128, 2, 4),
    ),
    "Models Genesis, U-Net 16, 32": Trial(
        lambda: ModelsGenesis(UNetEncoder(3, widths=(16, 32)), widths=(16, 32)),
        _slab(32, 2, 4),
        _slab(16, 8, 16) + _slab(32, 3, 6) + _slab(48, 2),
    ),
}


def timed(trial: Trial, rounds: int) -> list[tuple[Size, float, float]]:
    """Predicted and measured seconds of every step, the fitted ones first."""
    torch.manual_seed(0)
    stepper = Stepper(Learner(trial.build()), 1, torch.device("cpu"), None, time.process_time)
    counts = {size: stepper.count(size) for size in trial.fitted}
    times = stepper.seconds(trial.fitted + trial.held_out, rounds)
    law = fitted(counts, times, stepper.state_bytes())
    return [(size, law.seconds(size), seconds) for size, seconds in times.items()]


def main() -> None:
    """Print both checks as tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each size, of which the median counts")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(machine(), flush=True)
    ratios = []
    for name, crop in CASES.items():
        (flops, kept), work = measured(task_of(name, crop), crop), planned(name, crop)
        ratios.append((name, _text(crop), flops / work.flops, kept / work.activations))
    print(table(("task", "crop", "FLOPs, counted / planned", "memory, counted / planned"), ratios), flush=True)
    for name, trial in TRIALS.items():
        lines = []
        for (batch, crop), predicted, seconds in timed(trial, rounds):
            use = "fitted" if Size(batch, crop) in trial.fitted else f"{predicted / seconds - 1:+.1%}"
            lines.append((name, _text(crop), batch, predicted * 1e3, seconds * 1e3, use))
        print(table(("step", "crop", "batch", "predicted ms", "measured ms", "error"), lines), flush=True)


def _text(crop: tuple[int, ...]) -> str:
    return " x ".join(map(str, crop))


if __name__ == "__main__":
    main()
