"""Samples from a store: random crops for training; see :mod:`ssl_med.data.whole` for evaluation."""

import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ssl_med.data.buffers import Buffers
from ssl_med.data.crops import CropAffine, Region, boxes_inside, random_region
from ssl_med.data.filling import fill_image, fill_labels
from ssl_med.data.intensity import Policy, channels_of
from ssl_med.data.ledger import Ledger
from ssl_med.data.maps import STORED
from ssl_med.data.patience import Desk, Stalled, in_time
from ssl_med.data.rows import Row, Rows
from ssl_med.data.sampler import GlobalOrder
from ssl_med.data.store import Damaged, Store
from ssl_med.errors import UserError
from ssl_med.ops.random import sample_keys
from ssl_med.types import Batch, modality_code

Sample = dict[str, Any]
Target = Literal["mask", "label", "labels", "value", "boxes"]
"""What is learned of an image: voxel labels, one class (or a grade), several findings, a number, or boxes."""

_log = logging.getLogger(__name__)


def make_sample(
    store: Store,
    row: Row,
    region: Region,
    policy: Policy,
    padded: bool,
    targets: Target | None,
    most_boxes: int = 0,
    out: Tensor | None = None,
    saliency: bool = False,
) -> Sample:
    """Read, scale, pad and, where the region says so, turn one region of an image.

    Args:
        store: where it lies.
        row: which image.
        region: which voxels of it.
        policy: of the intensities. What lies outside the image looks like air.
        padded: give the map of valid voxels (all samples of a batch must agree).
        targets: what to give besides the image; the class of the image and its modality are always there.
        most_boxes: lines of the boxes.
        out: (c, \\*size) float32 to write the image into.
        saliency: give the stored map.

    Raises:
        Damaged: what is stored is not what was written.
    """
    image = torch.empty(channels_of(policy, store.channels), *region.size) if out is None else out
    voxels = store.read(row, "images", region.corner, region.read, lent=True)
    valid = fill_image(image.numpy(), voxels, region, row.scale(policy))
    spacing = torch.tensor(region.spacing, dtype=torch.float32)
    sample: Sample = {"image": image, "spacing": spacing, "label": row.label, "id": row.id}
    sample["modality"] = modality_code(row.modality)
    if targets == "mask" and row.has_mask:
        labels = store.read(row, "masks", region.corner, region.read, lent=True)
        sample["mask"] = torch.from_numpy(fill_labels(labels, region))
    elif targets == "labels":
        sample["labels"] = torch.tensor(row.labels)
    elif targets == "value":
        sample["value"] = torch.tensor(math.nan if row.value is None else row.value, dtype=torch.float32)
    elif targets == "boxes":
        sample["boxes"], sample["box_labels"] = boxes_inside(boxes_of(row), region, most_boxes)
    if saliency:
        sample["saliency"] = torch.empty(1, *region.size)
        seen = store.read(row, "saliency", region.corner, region.read, lent=True)
        fill_image(sample["saliency"].numpy(), seen, region, STORED)
    if padded:
        sample["valid"] = torch.ones(1, *region.size, dtype=torch.bool) if valid is None else torch.from_numpy(valid)
    return sample


def boxes_of(row: Row) -> np.ndarray:
    """(m, 2 * axes + 1): lowest and highest corners in voxels, then the class."""
    return np.asarray(row.boxes, np.float64).reshape(-1, 2 * len(row.spacing) + 1)


def most_boxes(rows: Rows, targets: Target | None) -> int:
    """Lines that the boxes of any of these images need; 0 where boxes are not asked for."""
    if targets != "boxes":
        return 0
    return int(rows.counts("boxes").max(initial=0)) // (2 * rows.lengths("spacing").shape[1] + 1)


class DamagedImage(UserError):
    """An image of an evaluation that is not what was stored: nothing may stand in for it."""


def refused(store: Store, row: Row, error: Damaged, ledger: Ledger) -> DamagedImage:
    """Note a damaged image, and say what to do about it.

    Args:
        store: where it lies.
        row: which image.
        error: what is wrong with it.
        ledger: where it is noted; it does not count among those that a training leaves out.
    """
    ledger.note(row.id, str(error), counts=False)
    return DamagedImage(
        f"{store.folder}: image {row.id} is damaged ({error}), and no other may stand in for it where scores or "
        f"features are wanted; run `ssl-med prepare --check` again with the same folders, which makes it anew"
    )


class CropDataset(Dataset[Sample]):
    """position -> a random crop; what position it is decides image, crop and the key of all later randomness.

    An image that turns out to be damaged is replaced by the next one of the order, by every process alike; in an
    evaluation nothing is replaced.

    Args:
        store: where the images lie.
        rows: the images of this training.
        crop: voxels along each axis.
        policy: of the intensities.
        seed: of the run.
        foreground: share of the crops that must contain a labelled voxel (nnU-Net: one third), or the middle of a box.
        targets: what to give besides the image.
        order: which row stands at which position; every image once before any comes again, if absent.
        spacing: mm per voxel of the crops along each axis; that of each image if absent.
        affine: turn and zoom the crops while they are read.
        most_damaged: share of images that may be damaged before the training stops, counted over all processes of the
            run; one always may.
        patience: seconds that reading one sample may take; then the next image of the order takes its place.
        workers: loader processes.
        replaces: take the next image for one that is damaged; False: refuse it, as an evaluation must.
    """

    def __init__(
        self,
        store: Store,
        rows: Rows | Sequence[Row],
        crop: list[int],
        policy: Policy,
        seed: int,
        foreground: float = 0.0,
        targets: Target | None = None,
        order: GlobalOrder | None = None,
        spacing: list[float] | None = None,
        affine: CropAffine | None = None,
        most_damaged: float = 0.01,
        patience: float = 120.0,
        workers: int = 0,
        replaces: bool = True,
    ) -> None:
        self.replaces = replaces
        self.store, self.crop, self.seed = store, crop, seed
        self.rows = rows if isinstance(rows, Rows) else Rows.of(rows)
        self.policy: Policy = policy
        self.targets: Target | None = targets
        self.foreground = foreground
        self.order = order or GlobalOrder(len(rows), seed)
        self.spacing, self.affine, self.most_damaged = spacing, affine, most_damaged
        self.padded = affine is not None or spacing is not None or self._smaller()
        self.most_boxes = most_boxes(self.rows, targets)
        self.saliency = targets is None and bool(store.facts.get("saliency"))
        """Give the saliency maps of the store, where it has them; in pretraining only."""
        self.damaged: set[str] = set()  # met by this process
        self.ledger = Ledger()
        """Where images that are left out are noted; set by who knows the folder of the run."""
        self._buffers = Buffers((channels_of(policy, store.channels), *crop))
        self.patience, self.desk = patience, Desk(workers)
        self._at_work = (-1, 0)

    def _smaller(self) -> bool:
        """Some image is smaller than the crop."""
        return bool((self.rows.lengths("shape")[:, 1:] < np.array(self.crop)).any())

    def __getitem__(self, position: int) -> Sample:
        self.ledger.refresh()
        return self._sample(position)

    def __getitems__(self, positions: list[int]) -> Batch:
        """The batch of these positions: what a loader asks for at once, written into one buffer without a copy.

        Raises:
            UserError: too many images are damaged, whichever process has met them.
        """
        self.ledger.refresh()
        self._check_share()
        while True:
            images = self._buffers.take(len(positions))  # a fresh one each time: a thread left behind may write in it
            try:
                return in_time(partial(self._batch, positions, images), self.desk, self.patience)
            except Stalled as error:
                self._put_off(error)

    def _batch(self, positions: list[int], images: Tensor) -> Batch:
        samples = [self._sample(position, image) for position, image in zip(positions, images, strict=True)]
        self.desk.begin(-1)
        for sample in samples:
            del sample["image"]
        return cast(Batch, {"image": images, **self.collate(samples)})

    def collate(self, samples: list[Sample]) -> Batch:
        """Stack samples; positions become keys."""
        batch = default_collate(samples)
        batch["key"] = sample_keys(self.seed, batch.pop("position"))
        return cast(Batch, batch)

    def _sample(self, position: int, out: Tensor | None = None) -> Sample:
        for attempt in range(len(self.rows)):
            if (position, attempt) in self.ledger.stalled:
                continue
            row = self.rows[self.order(position, attempt)]
            self.desk.begin(position)
            self._at_work = (position, attempt)
            try:  # read again even if it was damaged before: what a position gives must not depend on other positions
                region = self._region(row, position)
                sample = make_sample(
                    self.store, row, region, self.policy, self.padded, self.targets, self.most_boxes, out, self.saliency
                )
            except Damaged as error:
                if not self.replaces:
                    raise refused(self.store, row, error, self.ledger) from None
                self._leave_out(row, error)
            else:
                return {**sample, "position": position}
        raise UserError(
            f"{self.store.folder}: no image of this training can be read; run `ssl-med prepare --check` again"
        )

    def _put_off(self, error: Stalled) -> None:
        """Let the next image of the order take the place of one that is not read in time, now and when resumed."""
        position, attempt = self._at_work
        row = self.rows[self.order(position, attempt)]
        self.ledger.note(row.id, str(error), position, attempt)
        self._leave_out(row, error)

    def at_work(self, worker: int) -> str:
        """What a loader process was reading last, in words; empty for nothing."""
        position = self.desk.position(worker)
        return f"image {self.rows[self.order(position)].id} (position {position})" if position >= 0 else ""

    def _region(self, row: Row, position: int) -> Region:
        rng = np.random.default_rng((self.seed, 4, position))
        around, space = None, row.shape[1:]
        if rng.random() < self.foreground:
            around = self._labelled_voxel(row, rng)
        turn = None if self.affine is None else self.affine.matrix(rng, len(space))
        return random_region(rng, space, row.spacing, self.crop, self.spacing, turn, around)

    def _labelled_voxel(self, row: Row, rng: np.random.Generator) -> list[int] | None:
        """A voxel that the crop must show; None where the image has none."""
        boxes, axes = boxes_of(row), len(row.spacing)
        boxes = boxes[boxes[:, -1] >= 0]
        if self.targets == "boxes" and len(boxes):
            box = boxes[int(rng.integers(len(boxes)))]
            return [int(i) for i in (box[:axes] + box[axes : 2 * axes]) / 2]
        voxels = self.store.foreground(row)
        if not len(voxels):
            return None
        return [int(i) for i in np.unravel_index(voxels[int(rng.integers(len(voxels)))], row.shape[1:])]

    def _leave_out(self, row: Row, error: Damaged | Stalled) -> None:
        """Note a damaged image, once.

        Raises:
            UserError: there are too many.
        """
        if row.id in self.damaged:
            return
        self.damaged.add(row.id)
        self.ledger.note(row.id, str(error))
        self.ledger.refresh()
        _log.warning("image %s is left out: %s (%d so far)", row.id, error, len(self.ledger.left_out))
        self._check_share()

    def _check_share(self) -> None:
        found = self.ledger.left_out
        if len(found) > max(1, self.most_damaged * len(self.rows)):
            last, reason = list(found.items())[-1]
            raise UserError(
                f"{self.store.folder}: {len(found)} of {len(self.rows)} images are damaged, the last one is {last} "
                f"({reason}); run `ssl-med prepare --check` again with the same folders, or check the disk"
            )
