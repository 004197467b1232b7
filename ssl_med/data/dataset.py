"""Samples from a store: random crops for training, whole images for evaluation."""

from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from ssl_med.data.intensity import Policy
from ssl_med.data.sampler import GlobalOrder, crop_corner
from ssl_med.data.store import Row, Store
from ssl_med.ops.random import sample_keys
from ssl_med.types import Batch

Sample = dict[str, Any]


def make_sample(
    store: Store, row: Row, corner: list[int], size: list[int], policy: Policy, padded: bool, masks: bool
) -> Sample:
    """Read, scale and pad one window of an image.

    Args:
        store: where it lies.
        row: which image.
        corner: first voxel along each axis.
        size: voxels along each axis of the sample; what the image lacks is padded behind it.
        policy: of the intensities.
        padded: give the map of valid voxels (all samples of a batch must agree).
        masks: read the voxel labels too, where there are any.
    """
    inside = [min(s, n - c) for s, n, c in zip(size, row.shape[1:], corner, strict=True)]
    rest = [(0, 0), *[(0, s - i) for s, i in zip(size, inside, strict=True)]]
    image = row.scale(policy)(store.read(row, "images", corner, inside))
    sample: Sample = {
        "image": torch.from_numpy(np.pad(image, rest)),
        "spacing": torch.tensor(row.spacing, dtype=torch.float32),
        "label": row.label,
        "id": row.id,
    }
    if masks and row.has_mask:
        mask = store.read(row, "masks", corner, inside).astype(np.int64)
        sample["mask"] = torch.from_numpy(np.pad(mask, rest, constant_values=-1))
    if padded:
        sample["valid"] = torch.from_numpy(np.pad(np.ones((1, *inside), bool), rest))
    return sample


class CropDataset(Dataset[Sample]):
    """position -> a random crop; what position it is decides image, crop and the key of all later randomness.

    Args:
        store: where the images lie.
        rows: the images of this training.
        crop: voxels along each axis.
        policy: of the intensities.
        seed: of the run.
        foreground: share of the crops that must contain a labelled voxel (nnU-Net: one third).
        masks: read the voxel labels too.
    """

    def __init__(
        self,
        store: Store,
        rows: list[Row],
        crop: list[int],
        policy: Policy,
        seed: int,
        foreground: float = 0.0,
        masks: bool = False,
    ) -> None:
        self.store, self.rows, self.crop, self.seed = store, rows, crop, seed
        self.policy: Policy = policy
        self.foreground, self.masks = foreground, masks
        self.order = GlobalOrder(len(rows), seed)
        self.padded = any(n < c for row in rows for n, c in zip(row.shape[1:], crop, strict=True))

    def __getitem__(self, position: int) -> Sample:
        row = self.rows[self.order(position)]
        rng = np.random.default_rng((self.seed, 4, position))
        around = None
        if rng.random() < self.foreground and row.foreground:
            voxel = row.foreground[int(rng.integers(len(row.foreground)))]
            around = [int(i) for i in np.unravel_index(voxel, row.shape[1:])]
        corner = crop_corner(rng, row.shape[1:], self.crop, around)
        sample = make_sample(self.store, row, corner, self.crop, self.policy, self.padded, self.masks)
        return {**sample, "position": position}

    def collate(self, samples: list[Sample]) -> Batch:
        """Stack samples; positions become keys."""
        batch = default_collate(samples)
        batch["key"] = sample_keys(self.seed, batch.pop("position"))
        return cast(Batch, batch)


class WholeDataset(Dataset[Sample]):
    """Whole images in order, padded behind to at least ``least`` and to a multiple of ``multiple`` along each axis."""

    def __init__(
        self, store: Store, rows: list[Row], policy: Policy, least: list[int], multiple: list[int], masks: bool = False
    ) -> None:
        self.store, self.rows, self.least, self.multiple = store, rows, least, multiple
        self.policy: Policy = policy
        self.masks = masks

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        return make_sample(self.store, row, [0] * len(self.least), self.size(row), self.policy, True, self.masks)

    def size(self, row: Row) -> list[int]:
        """Voxels along each axis of an image's sample."""
        sizes = zip(row.shape[1:], self.least, self.multiple, strict=True)
        return [-(-max(n, low) // multiple) * multiple for n, low, multiple in sizes]

    def one_size(self) -> bool:
        """All samples have the same shape, so that they can be batched."""
        return len({tuple(self.size(row)) for row in self.rows}) <= 1
