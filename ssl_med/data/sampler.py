"""Which image and which crop at which place of the training: pure functions of (seed, position), no state.

Positions count samples globally: step k of a global batch of g takes positions k*g .. k*g + g - 1. So the order is the
same at any world size, with any number of workers, and after any resume.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from ssl_med.errors import UserError


class GlobalOrder:
    """position -> row: a new permutation of all rows for every pass over them.

    Args:
        count: number of rows.
        seed: of the run.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch, self._permutation = -1, np.empty(0, int)

    def __call__(self, position: int) -> int:
        """The row that stands at a position."""
        epoch, place = divmod(position, self.count)
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng((self.seed, 3, epoch)).permutation(self.count)
        return int(self._permutation[place])


class StepBatches(Sampler[list[int]]):
    """Endless batches of positions for one rank, beginning at any step.

    Args:
        batch_size: samples per step over all ranks.
        start_step: first step; the step to resume at.
        rank: this process.
        world_size: number of processes; each takes an equal slice of every global batch.

    Raises:
        UserError: the batch does not divide by the number of processes.
    """

    def __init__(self, batch_size: int, start_step: int = 0, rank: int = 0, world_size: int = 1) -> None:
        if batch_size % world_size:
            raise UserError(
                f"data.batch_size: {batch_size} does not divide over {world_size} processes (trainer.devices)"
            )
        self.batch_size, self.start_step, self.rank, self.share = batch_size, start_step, rank, batch_size // world_size

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            first = step * self.batch_size + self.rank * self.share
            yield list(range(first, first + self.share))
            step += 1


def crop_corner(
    rng: np.random.Generator, space: list[int], crop: list[int], around: list[int] | None = None
) -> list[int]:
    """Corner of a crop inside an image: uniform, or uniform among the crops that contain the voxel ``around``.

    An axis shorter than the crop starts at 0 and is padded by the reader.
    """
    corner = []
    for axis, (size, length) in enumerate(zip(space, crop, strict=True)):
        low, high = 0, max(size - length, 0)
        if around is not None:
            low, high = max(low, min(around[axis] - length + 1, high)), min(high, around[axis])
        corner.append(int(rng.integers(low, high + 1)))
    return corner
