"""From stored scans to steps of a 3D MAE, beside MONAI's cache with Lightning: ``python -m benchmarks.end_to_end``.

A ViT-Ti, 96^3 crops with rotation and scale, batches of 2, on the cores at hand; wall time of the steps after the first
five, and the rate of the step alone on a batch that is there.
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from benchmarks.loading import CROP, make_store, monai_cache
from benchmarks.measure import machine, table
from ssl_med.backbones import ViT
from ssl_med.data.crops import CropAffine
from ssl_med.data.module import StoreData
from ssl_med.learner import Learner
from ssl_med.tasks import MAE
from ssl_med.transforms import SingleView

BATCH, WARM = 2, 5


def task() -> MAE:
    """The same network on both sides."""
    backbone = ViT(3, patch=16, size="tiny", class_token=True)
    return MAE(backbone, SingleView([]), decoder_dim=192, decoder_depth=4, decoder_heads=6)


class Clock(pl.Callback):
    """Seconds between the end of the warm-up and the last step."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.ended = time.perf_counter()
        if trainer.global_step == WARM:
            self.began = self.ended


class Theirs(pl.LightningModule):
    """MAE as a plain Lightning module on MONAI's batches."""

    def __init__(self) -> None:
        super().__init__()
        self.task = task()

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = self.task({"image": batch["image"].as_tensor()}, 0.5)["loss"]
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4, weight_decay=0.05)


def trainer(steps: int, clock: Clock) -> pl.Trainer:
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        enable_checkpointing=False,
        callbacks=[clock],
        use_distributed_sampler=False,
        **quiet,
    )


def ours(store: Path, steps: int, workers: int) -> float:
    turned = CropAffine(28.6, (0.8, 1.25))
    data = StoreData(str(store), CROP, BATCH, num_workers=workers, affine=turned, intensity="window:lung")
    clock = Clock()
    trainer(steps, clock).fit(Learner(task()), datamodule=data)
    return (steps - WARM) * BATCH / (clock.ended - clock.began)


def monai(folder: Path, steps: int, workers: int) -> float:
    from monai.data.dataloader import DataLoader

    cached, clock = monai_cache(folder, turned=True), Clock()
    repeated = torch.utils.data.Subset(cached, [n % len(cached) for n in range(steps * BATCH)])
    loader = DataLoader(repeated, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0)
    trainer(steps, clock).fit(Theirs(), loader)
    return (steps - WARM) * BATCH / (clock.ended - clock.began)


def step_only(steps: int) -> float:
    """Samples a second on one batch that is there."""
    learned, batch = task(), {"image": torch.rand(BATCH, 1, CROP, CROP, CROP)}
    optimizer = torch.optim.AdamW(learned.parameters(), lr=1e-4, fused=True)
    began = 0.0
    for step in range(steps):
        if step == WARM:
            began = time.perf_counter()
        learned(batch, 0.5)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return (steps - WARM) * BATCH / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--scans", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder, arguments.scans)
        rates: dict[str, list[float]] = {"ssl_med": [], "MONAI CacheDataset + Lightning": [], "the step alone": []}
        for _ in range(arguments.rounds):
            rates["ssl_med"].append(ours(store.folder, arguments.steps, arguments.workers))
            rates["MONAI CacheDataset + Lightning"].append(monai(folder / "in", arguments.steps, arguments.workers))
            rates["the step alone"].append(step_only(arguments.steps))
    lines = []
    for side, found in rates.items():
        found = sorted(found)
        middle = found[len(found) // 2]
        share = middle / sorted(rates["ssl_med"])[len(found) // 2]
        lines.append([side, middle, f"{found[0]:.3g} to {found[-1]:.3g}", share])
    print(f"{machine()}; torch on {torch.get_num_threads()} threads, {arguments.workers} loader process(es)\n")
    print(table(["side", "samples a second, median", "spread", "times ssl_med"], lines))


if __name__ == "__main__":
    main()
