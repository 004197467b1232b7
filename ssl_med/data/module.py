"""The data module: a store in, batches out, for pretraining and for fine-tuning on a labelled subset."""

from collections.abc import Sequence
from typing import Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ssl_med.data.dataset import CropDataset, WholeDataset
from ssl_med.data.intensity import Policy
from ssl_med.data.sampler import StepBatches
from ssl_med.data.store import Row, Store
from ssl_med.data.subsets import labelled_subset
from ssl_med.errors import UserError


class StoreData(pl.LightningDataModule):
    """Batches of crops from a store.

    Args:
        folder: the store.
        crop: voxels along each axis, or one number for all.
        batch_size: samples per step, over all processes.
        intensity: how voxels are scaled, see :func:`ssl_med.data.intensity.scale_of`.
        targets: what fine-tuning learns, ``mask`` or ``label``: images without it are left out; None for pretraining.
        labels: labelled patients to train on: a number, a share below 1, or all.
        labels_seed: of the draw of these patients.
        foreground: share of crops that must contain a labelled voxel.
        num_workers: loader processes; 0 is fastest where cores are few, since training itself uses them.
        seed: of order and crops.
    """

    def __init__(
        self,
        folder: str,
        crop: int | Sequence[int] = 96,
        batch_size: int = 8,
        intensity: Policy = "auto",
        targets: Literal["mask", "label"] | None = None,
        labels: int | float | None = None,
        labels_seed: int = 0,
        foreground: float = 0.0,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.folder, self.batch_size = folder, batch_size
        self.intensity: Policy = intensity
        self.targets, self.labels, self.labels_seed = targets, labels, labels_seed
        self.foreground, self.num_workers, self.seed = foreground, num_workers, seed
        self.store = Store(folder)
        axes = self.store.spatial_dims
        self.crop = [crop] * axes if isinstance(crop, int) else list(crop)
        if len(self.crop) != axes:
            raise UserError(f"data.crop: {self.crop} needs one size for each of the {axes} axes of {folder}")

    def rows(self, split: str) -> list[Row]:
        """The images of a split; for fine-tuning only labelled ones, in training only the labelled subset.

        Raises:
            UserError: there are none.
        """
        rows = [row for row in self.store.rows if row.split == split]
        if self.targets == "mask":
            rows = [row for row in rows if row.has_mask]
        elif self.targets == "label":
            rows = [row for row in rows if row.label >= 0]
        if not rows:
            wanted = f" with a {self.targets}" if self.targets else ""
            found = sorted({row.split for row in self.store.rows})
            raise UserError(f"{self.folder} has no image{wanted} in split {split!r}; its splits: {', '.join(found)}")
        if self.targets and split == "train":
            return labelled_subset(rows, self.labels, self.labels_seed)
        return rows

    def crops(self, split: str = "train") -> CropDataset:
        """Random crops of a split."""
        masks = self.targets == "mask"
        return CropDataset(self.store, self.rows(split), self.crop, self.intensity, self.seed, self.foreground, masks)

    def train_dataloader(self) -> DataLoader:
        """Endless batches, beginning at the trainer's step."""
        trainer, dataset = self.trainer, self.crops()
        start, rank, world = 0, 0, 1
        if trainer is not None:
            start = trainer.global_step * trainer.accumulate_grad_batches
            rank, world = trainer.global_rank, trainer.world_size
        return DataLoader(
            dataset,
            batch_sampler=StepBatches(self.batch_size, start, rank, world),
            collate_fn=dataset.collate,
            num_workers=self.num_workers,
            worker_init_fn=single_thread,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def whole(self, split: str, multiple: Sequence[int], rows: list[Row] | None = None) -> DataLoader:
        """Whole images of a split in order, one by one where their sizes differ."""
        chosen = self.rows(split) if rows is None else rows
        masks = self.targets == "mask"
        dataset = WholeDataset(self.store, chosen, self.intensity, self.crop, list(multiple), masks)
        return DataLoader(dataset, batch_size=self.batch_size if dataset.one_size() else 1)


def single_thread(worker: int) -> None:
    """Loader processes work on one thread each: more would take the cores from training."""
    torch.set_num_threads(1)
