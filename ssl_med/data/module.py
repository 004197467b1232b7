"""The data module: a store in, batches out, for pretraining and for fine-tuning on a labelled subset."""

import logging
import math
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ssl_med.data.buffers import free_shared_memory
from ssl_med.data.crops import CropAffine
from ssl_med.data.dataset import CropDataset, Target
from ssl_med.data.intensity import NO_WINDOW, Policy, channels_of, check_policy
from ssl_med.data.ledger import Ledger
from ssl_med.data.patience import Desk, RememberingLoader, explain
from ssl_med.data.rows import Row, Rows
from ssl_med.data.sampler import GlobalOrder, StepBatches, groups_of
from ssl_med.data.store import Store
from ssl_med.data.subsets import labelled_subset
from ssl_med.data.whole import WholeDataset, WholeLoader
from ssl_med.errors import UserError

LOG = logging.getLogger("ssl_med")


class StoreData(pl.LightningDataModule):
    """Batches of crops from a store.

    Args:
        folder: the store.
        crop: voxels along each axis, or one number for all.
        batch_size: samples per step, over all processes.
        intensity: how voxels are scaled, see :func:`ssl_med.data.intensity.scale_of`.
        targets: what fine-tuning learns: ``mask``, ``label`` (a class or a grade), ``labels`` (several findings),
            ``value`` (a number) or ``boxes``; images without it are left out, those known to have no box are
            not. None for pretraining.
        labels: labelled patients to train on: a number, a share below 1, or all.
        labels_seed: of the draw of these patients.
        foreground: share of crops that must contain a labelled voxel or the middle of a box, or tissue where there are
            no labels.
        num_workers: loader processes; 0 is fastest where cores are few, since training itself uses them. None are
            started where ``/dev/shm`` has no room for the batches that they hand over.
        seed: of order and crops.
        crop_mm: mm along each axis of a crop, or one number for all: every image is then shown at a spacing of
            crop_mm / crop, interpolated on the CPU while it is read, without smoothing before a reduction. Without it
            an image keeps its spacing, anisotropic or not.
        affine: turn and zoom crops while they are read, see :class:`ssl_med.data.crops.CropAffine`; without it
            geometry is left to the transforms of the task, on its device.
        weights: how often images of each kind are shown, relative to each other and however many there are, e.g.
            ``{CT: 1, MR: 2}``; every kind of the training images must be named. Without it every image once a pass.
        weights_by: what the names in ``weights`` are.
        crops_per_image: crops taken while an image is in use; more read less from slow disks.
        window: images in use at a time, over which these crops are mixed.
        prefetch: batches that each loader process keeps ready.
        verify: check the hash of every chunk that is read; without it a flipped bit on the disk is trained on.
        sample_timeout: seconds that reading one sample may take, for instance from a file server that hangs; then the
            next image of the order takes its place, which is noted and done again alike when the run is resumed.
    """

    def __init__(
        self,
        folder: str,
        crop: int | Sequence[int] = 96,
        batch_size: int = 8,
        intensity: Policy = "auto",
        targets: Target | None = None,
        labels: int | float | None = None,
        labels_seed: int = 0,
        foreground: float = 0.0,
        num_workers: int = 0,
        seed: int = 0,
        crop_mm: float | Sequence[float] | None = None,
        affine: CropAffine | dict[str, Any] | None = None,
        weights: dict[str, float] | None = None,
        weights_by: Literal["modality", "site", "dataset"] = "modality",
        crops_per_image: int = 1,
        window: int = 16,
        prefetch: int = 2,
        verify: bool = True,
        sample_timeout: float = 120.0,
    ) -> None:
        super().__init__()
        check_policy(intensity)
        self.folder, self.batch_size = folder, batch_size
        self.intensity: Policy = intensity
        self.targets: Target | None = targets
        self.labels, self.labels_seed = labels, labels_seed
        self.foreground, self.num_workers, self.seed = foreground, num_workers, seed
        self.weights, self.weights_by = weights, weights_by
        self.crops_per_image, self.window, self.prefetch = crops_per_image, window, prefetch
        self.sample_timeout = sample_timeout
        self._loader: RememberingLoader | None = None
        self.affine = CropAffine.of(affine) if isinstance(affine, Mapping) else affine
        self.ledger: Path | None = None  # where images that are left out are noted
        self.number = 0  # among the stores of a run
        self.verify, self.store = verify, Store(folder, verify)
        self.crop: list[int] = self._per_axis("crop", crop)
        self.crop_mm: list[float] | None = None if crop_mm is None else self._per_axis("crop_mm", crop_mm)
        least = min(*self.crop, *(self.crop_mm or [1]), crops_per_image, window, prefetch, sample_timeout)
        if least <= 0:
            raise UserError(
                "data: crop, crop_mm, crops_per_image, window, prefetch and sample_timeout must be positive"
            )

    @property
    def parts(self) -> "list[StoreData]":
        """The stores that a run trains on: this one; see :class:`ssl_med.data.several.SeveralStores`."""
        return [self]

    @property
    def channels(self) -> int:
        """Channels of an image in a batch: those of the store, times the windows that each is shown in."""
        return channels_of(self.intensity, self.store.channels)

    def _per_axis(self, name: str, value: Any) -> list[Any]:
        axes = self.store.spatial_dims
        values = [value] * axes if isinstance(value, int | float) else list(value)
        if len(values) != axes:
            raise UserError(f"data.{name}: {values} needs one size for each of the {axes} axes of {self.folder}")
        return values

    @property
    def spacing(self) -> list[float] | None:
        """Mm per voxel of every crop; None where images keep theirs."""
        if self.crop_mm is None:
            return None
        return [mm / voxels for mm, voxels in zip(self.crop_mm, self.crop, strict=True)]

    def rows(self, split: str) -> Rows:
        """The images of a split; for fine-tuning only labelled ones, in training only the labelled subset.

        Raises:
            UserError: there are none.
        """
        has_mask, labelled, valued = (True if self.targets == kind else None for kind in ("mask", "label", "value"))
        rows = self.store.rows.where(split=split, has_mask=has_mask, labelled=labelled, valued=valued)
        if self.targets == "labels":
            rows = rows.take(rows.known("labels"))
        if self.targets == "boxes":
            any_box = rows.counts("boxes").any() or split != "train"  # nothing is learned of images without boxes alone
            rows = rows.take(rows.boxed() if any_box else np.empty(0, np.int64))
        if not rows:
            wanted = f" with a {self.targets}" if self.targets else ""
            found = self.store.rows.distinct("split")
            raise UserError(f"{self.folder} has no image{wanted} in split {split!r}; its splits: {', '.join(found)}")
        if self.intensity == "voi" and (bare := rows.distinct("window").get("", 0)):
            raise UserError(f"{self.folder}: {bare} of {len(rows)} images in split {split!r} have {NO_WINDOW}")
        if self.targets and split == "train":
            chosen = labelled_subset(rows, self.labels, self.labels_seed)
            return chosen if isinstance(chosen, Rows) else Rows.of(chosen)
        return rows

    def crops(self, split: str = "train") -> CropDataset:
        """Random crops of a split; the weights are those of training, which alone takes another for a damaged image."""
        rows = self.rows(split)
        dataset = CropDataset(
            self.store,
            rows,
            self.crop,
            self.intensity,
            self.seed,
            self.foreground,
            self.targets,
            self._order(rows, self.weights if split == "train" else None),
            self.spacing,
            self.affine,
            patience=self.sample_timeout,
            workers=self.num_workers,
            replaces=split == "train",
        )
        dataset.ledger = Ledger(self.ledger, self.number)
        return dataset

    def _order(self, rows: Rows, weights: Mapping[str, float] | None) -> GlobalOrder:
        if not weights:
            return GlobalOrder(len(rows), self.seed, crops=self.crops_per_image, window=self.window)
        if self.weights_by not in rows.table.column_names:
            raise UserError(f"data.weights_by: the index of {self.folder} says nothing about {self.weights_by}")
        groups = groups_of(rows.column(self.weights_by), weights, self.weights_by)
        return GlobalOrder(groups, self.seed, list(weights.values()), self.crops_per_image, self.window)

    def train_dataloader(self) -> DataLoader:
        """Endless batches, beginning at the trainer's step."""
        if self.trainer is None:
            return self.loader()
        start = self.trainer.global_step * self.trainer.accumulate_grad_batches
        return self.loader(start, self.trainer.global_rank, self.trainer.world_size)

    def loader(self, start: int = 0, rank: int = 0, world: int = 1, dataset: Any = None) -> DataLoader:
        """Endless batches of one process, beginning at batch ``start``.

        Args:
            start: number of the first batch.
            rank: number of the process.
            world: number of processes.
            dataset: what answers positions, if it is not this store alone.
        """
        workers = self._workers(self._handed_over(world))
        self._loader = RememberingLoader(
            self.crops() if dataset is None else dataset,
            batch_sampler=StepBatches(self.batch_size, start, rank, world),
            collate_fn=as_made,
            num_workers=workers,
            worker_init_fn=single_thread,
            persistent_workers=workers > 0,
            prefetch_factor=self.prefetch if workers else None,
            pin_memory=torch.cuda.is_available(),
        )
        return self._loader

    def _handed_over(self, world: int) -> int:
        """Bytes of the batches that the loader processes of a training hold in shared memory."""
        processes = math.ceil(world / (self.trainer.num_nodes if self.trainer else 1))  # that share it
        samples = math.ceil(self.batch_size / world) * (self.prefetch + 1) * self.num_workers * processes
        return samples * self.channels * math.prod(self.crop) * 4

    def _workers(self, needed: int) -> int:
        """Loader processes; none, with a warning, where the system would kill them for want of shared memory."""
        free = free_shared_memory()
        if free is None or needed <= free:
            return self.num_workers
        LOG.warning(
            "no loader processes: their batches need about %.0f MB of shared memory, /dev/shm has %.0f MB free; the "
            "results are the same, loading is slower; make it larger (--shm-size) or lower data.num_workers or "
            "data.prefetch",
            needed / 1e6,
            free / 1e6,
        )
        return 0

    def explain(self, error: Exception) -> UserError | None:
        """A sentence for an error that means the death of a loader process; None for any other."""
        return explain(error, self._loader)

    def whole(self, split: str, multiple: Sequence[int], rows: Sequence[Row] | None = None) -> DataLoader:
        """Whole images of a split in order, one by one where their sizes differ.

        Loader processes keep one batch ready each, since whole volumes are large, and end with the pass.

        Args:
            split: whose images.
            multiple: voxels along each axis that sizes are a multiple of.
            rows: these images instead of a split.
        """
        chosen = self.rows(split) if rows is None else rows
        dataset = WholeDataset(
            self.store, chosen, self.intensity, self.crop, list(multiple), self.targets, self.spacing
        )
        size = self.batch_size if dataset.one_size() else 1
        workers = self._workers(2 * self.num_workers * size * dataset.largest())
        workers = min(workers, math.ceil(len(dataset) / size))
        dataset.ledger, dataset.desk = Ledger(self.ledger, self.number), Desk(workers)
        return WholeLoader(
            dataset,
            batch_size=size,
            num_workers=workers,
            worker_init_fn=single_thread,
            prefetch_factor=1 if workers else None,
            pin_memory=torch.cuda.is_available(),
        )


def as_made(batch: Any) -> Any:
    """A batch that the dataset has put together already."""
    return batch


def single_thread(worker: int) -> None:
    """Loader processes work on one thread each, since more would take the cores from training, and outlast a signal."""
    torch.set_num_threads(1)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _outlast)


def _outlast(number: int, frame: Any) -> None:
    """A signal to the whole job is for the training, whose step needs its loaders; the second one ends this process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(60)  # where the training ended without a word
