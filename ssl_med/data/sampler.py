"""Which image and which crop at which place of the training: pure functions of (seed, position), no state.

Positions count samples globally: step k of a global batch of g takes positions k*g .. k*g + g - 1. So the order is the
same at any world size, with any number of workers, and after any resume. Nothing is stored per image: a billion images
cost what ten do.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch.utils.data import Sampler

from ssl_med.errors import UserError

_ALL = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 8
_IMAGES, _WINDOWS = 3, 5
"""Streams of random numbers; 4 is that of the crops."""


def mix(x: int) -> int:
    """Scramble an integer of 64 bits, as :func:`ssl_med.ops.random.mix` scrambles tensors."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _ALL
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _ALL
    return x ^ (x >> 31)


class Permutation:
    """A random permutation of 0 .. count - 1 that is computed place by place and stored nowhere.

    A Feistel network over pairs of digits permutes a few more numbers than there are; a number that is too large is
    permuted again until it is not (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002).

    Args:
        count: of the numbers.
        key: whole numbers that choose the permutation.
    """

    def __init__(self, count: int, *key: int) -> None:
        self.count = count
        base = math.isqrt(count) + 1  # its square is above count
        self._base = base + base % 2  # even: the rounds of an odd one cannot make an odd permutation
        state = _GOLDEN
        for number in key:
            state = mix((state + mix(number + _GOLDEN & _ALL)) * _GOLDEN & _ALL)
        self._keys = [mix(state + turn * _GOLDEN & _ALL) for turn in range(1, _ROUNDS + 1)]

    def __call__(self, place: int) -> int:
        """The number that stands at a place."""
        while True:
            left, right = divmod(place, self._base)
            for key in self._keys:
                left, right = right, (left + mix(right + key & _ALL)) % self._base
            place = left * self._base + right
            if place < self.count:
                return place


class GlobalOrder:
    """position -> row: a new permutation of all rows for every pass over them.

    With ``crops`` above 1 an image is visited for so many crops: they are spread at random over the crops of ``window``
    visits, so that a batch mixes images while only ``window`` of them are in use at a time. With groups, visits go
    round the groups in proportion to their weights as evenly as possible, and each group is permuted by itself.

    Args:
        rows: their number, or groups of row numbers.
        seed: of the run.
        weights: how often each group is visited, one number a group.
        crops: per visit of an image.
        window: visits whose crops are mixed, where there are several crops or groups.
    """

    def __init__(
        self,
        rows: int | Sequence[np.ndarray],
        seed: int,
        weights: Sequence[float] = (1.0,),
        crops: int = 1,
        window: int = 64,
    ) -> None:
        self.groups: Sequence[Sequence[int] | np.ndarray] = [range(rows)] if isinstance(rows, int) else rows
        self.seed, self.crops, self.window = seed, crops, window
        self._cycle = even_cycle(weights)
        self._slots = [self._cycle.count(group) for group in range(len(self.groups))]
        self._before = [self._cycle[:place].count(group) for place, group in enumerate(self._cycle)]

    def __call__(self, position: int, attempt: int = 0) -> int:
        """The row that stands at a position.

        Args:
            position: of the sample.
            attempt: how many rows of this position have turned out to be damaged: the rows behind it in the
                permutation take its place.
        """
        turn, slot = divmod(self.visit(position), len(self._cycle))
        group = self._cycle[slot]
        rows = self.groups[group]
        epoch, place = divmod(turn * self._slots[group] + self._before[slot], len(rows))
        permutation = Permutation(len(rows), self.seed, _IMAGES, group, epoch)
        return int(rows[permutation((place + attempt) % len(rows))])

    def visit(self, position: int) -> int:
        """Which visit of an image, counted from the start of the training, a position's crop belongs to."""
        if self.crops == 1 and len(self.groups) == 1:
            return position
        block, place = divmod(position, self.crops * self.window)
        mixed = Permutation(self.crops * self.window, self.seed, _WINDOWS, block)(place)
        return block * self.window + mixed // self.crops


def even_cycle(weights: Sequence[float], longest: int = 1000) -> list[int]:
    """Group numbers in proportion to weights, each group evenly spaced: ``even_cycle([1, 2]) == [1, 0, 1]``.

    Weights that are no small whole numbers are rounded to thousandths of their sum, but never to nothing.
    """
    slots = [int(weight) for weight in weights]
    if slots != list(weights) or sum(slots) > longest:
        slots = [max(1, round(longest * weight / sum(weights))) for weight in weights]
    common = math.gcd(*slots)
    counts = [number // common for number in slots]
    places = [((turn + 0.5) / count, group) for group, count in enumerate(counts) for turn in range(count)]
    return [group for _, group in sorted(places)]


def groups_of(values: Sequence[str] | np.ndarray, weights: Mapping[str, float], what: str) -> list[np.ndarray]:
    """Row numbers of each weighted value, in the order of the weights.

    Args:
        values: of each row.
        weights: how often each value is to be seen, relative to the others and whatever its number of rows.
        what: the values are, for errors.

    Raises:
        UserError: a value without weight, a weight without rows, or a weight that is not positive.
    """
    values = np.asarray(values)
    found = {str(value) for value in np.unique(values)}
    if found != set(weights) or min(weights.values()) <= 0:
        raise UserError(
            f"data.weights: {dict(weights)} must give a positive number for every {what} of the training images: "
            f"{', '.join(repr(value) for value in sorted(found))}"
        )
    return [np.flatnonzero(values == value) for value in weights]


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
