"""Whole images of a store, for evaluation: in order, nothing left out and nothing replaced."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ssl_med.data.crops import straight_region, whole_region
from ssl_med.data.dataset import Sample, Target, make_sample, most_boxes, refused
from ssl_med.data.intensity import Policy, channels_of
from ssl_med.data.ledger import Ledger
from ssl_med.data.patience import Desk, RememberingLoader, explain
from ssl_med.data.rows import Row, Rows
from ssl_med.data.store import Damaged, Store
from ssl_med.errors import UserError


class WholeDataset(Dataset[Sample]):
    """Whole images in order, padded behind to at least ``least`` and to a multiple of ``multiple`` along each axis.

    Args:
        store: where the images lie.
        rows: which.
        policy: of the intensities.
        least, multiple: voxels along each axis.
        targets: what to give besides the image.
        spacing: mm per voxel along each axis; that of each image if absent.
    """

    def __init__(
        self,
        store: Store,
        rows: Rows | Sequence[Row],
        policy: Policy,
        least: list[int],
        multiple: list[int],
        targets: Target | None = None,
        spacing: list[float] | None = None,
    ) -> None:
        self.store, self.least, self.multiple = store, least, multiple
        self.rows = rows if isinstance(rows, Rows) else Rows.of(rows)
        self.policy: Policy = policy
        self.targets: Target | None = targets
        self.spacing = spacing
        self.most_boxes = most_boxes(self.rows, targets)
        self.ledger, self.desk = Ledger(), Desk(0)
        """Where a damaged image is noted, and what loader processes are reading; set by who makes the loader."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """The whole image of a row.

        Raises:
            DamagedImage: it is not what was stored.
        """
        row = self.rows[index]
        self.desk.begin(index)
        size = [int(n) for n in self.sizes(np.array([row.shape[1:]]), np.array([row.spacing]))[0]]
        if self.spacing is None:
            region = straight_region(row.shape[1:], row.spacing, [0] * len(size), size)
        else:
            region = whole_region(row.shape[1:], row.spacing, size, self.spacing)
        try:
            return make_sample(self.store, row, region, self.policy, True, self.targets, self.most_boxes)
        except Damaged as error:
            raise refused(self.store, row, error, self.ledger) from None

    def at_work(self, worker: int) -> str:
        """What a loader process was reading last, in words; empty for nothing."""
        index = self.desk.position(worker)
        return f"image {self.rows[index].id}" if index >= 0 else ""

    def sizes(self, space: np.ndarray, spacing: np.ndarray) -> np.ndarray:
        """Voxels along each axis of the samples of images (n, axes)."""
        if self.spacing is not None:
            space = np.ceil(space * spacing / np.array(self.spacing) - 1e-6).astype(int)
        return -(-np.maximum(space, self.least) // np.array(self.multiple)) * np.array(self.multiple)

    def one_size(self) -> bool:
        """All samples have the same shape, so that they can be batched."""
        return len(np.unique(self._all_sizes(), axis=0)) <= 1

    def largest(self) -> int:
        """Bytes of the largest sample."""
        voxels = int(self._all_sizes().prod(1).max(initial=0))
        own = 4 * channels_of(self.policy, self.store.channels) + 1  # float32, and which voxels are valid
        return voxels * (own + (8 if self.targets == "mask" else 0))

    def _all_sizes(self) -> np.ndarray:
        return self.sizes(self.rows.lengths("shape")[:, 1:], self.rows.lengths("spacing"))


class WholeLoader(RememberingLoader):
    """Batches of a :class:`WholeDataset`; what goes wrong in a loader process is said in its own words."""

    def __iter__(self) -> Iterator[Any]:
        """The batches.

        Raises:
            DamagedImage: an image is not what was stored.
            Interrupted: a loader process died.
        """
        try:
            yield from super().__iter__()
        except UserError as error:  # one from a loader process comes with the traceback of that process around it
            last = str(error).strip().splitlines()[-1]
            raise type(error)(re.sub(rf"^[\w.]*{type(error).__name__}: ", "", last)) from error
        except RuntimeError as error:
            raise explain(error, self) or error from error
