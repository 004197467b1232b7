"""Memory for batches that is used again as soon as nobody holds the batch that was in it.

Fresh memory costs as much as reading a crop does: the system has to hand it out page by page.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

_ONLY_OURS = 2
"""References to an array that nobody else holds: that of the list, and that of the count itself."""

SHARED_MEMORY = Path("/dev/shm")


def free_shared_memory() -> int | None:
    """Bytes that loader processes may hand over batches in; None where the system does not say."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.exists() else None


class Buffers:
    """Tensors (b, \\*shape) float32 to write batches into.

    Args:
        shape: of one sample.
        kept: largest number of buffers held for use again.
    """

    def __init__(self, shape: tuple[int, ...], kept: int = 4) -> None:
        self.shape, self.kept = shape, kept
        self._arrays: list[np.ndarray] = []

    def take(self, count: int) -> Tensor:
        """A tensor (count, \\*shape) of arbitrary content; in a loader process, one that training can map."""
        if get_worker_info() is not None:
            return torch.empty(count, *self.shape).share_memory_()
        for place in range(len(self._arrays)):
            if len(self._arrays[place]) == count and sys.getrefcount(self._arrays[place]) == _ONLY_OURS:
                return torch.from_numpy(self._arrays[place])
        self._arrays = [*self._arrays[-self.kept + 1 :], np.empty((count, *self.shape), np.float32)]
        return torch.from_numpy(self._arrays[-1])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_arrays": []}
