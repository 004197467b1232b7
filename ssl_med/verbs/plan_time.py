"""The time of a step as a law: a constant, and seconds per FLOP, fitted to a few steps that were timed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ssl_med.errors import UserError


class Size(NamedTuple):
    """Samples of a step, and voxels of a crop along each axis."""

    batch: int
    crop: tuple[int, ...]


class Count(NamedTuple):
    """FLOPs of layers and of attention, and bytes kept for the backward pass, of one step or of one sample."""

    dense: float
    attention: float
    kept: float

    @property
    def flops(self) -> float:
        """All of them."""
        return self.dense + self.attention

    def at(self, ratio: float) -> "Count":
        """The same for ``ratio`` times as many voxels: layers and memory grow with them, attention with their square.

        Fused attention keeps no matrix of tokens by tokens; where one is kept (bf16 on a CPU) the memory is too low.
        """
        return Count(self.dense * ratio, self.attention * ratio**2, self.kept * ratio)


def per_sample(small: tuple[int, Count], large: tuple[int, Count]) -> Count:
    """What one more sample adds, from the counts of two batches: what does not grow with the batch drops out."""
    (few, fewer), (many, more) = small, large
    return Count(*((y - x) / (many - few) for x, y in zip(fewer, more, strict=True)))


class StepTime(NamedTuple):
    """Seconds of a step: ``fixed`` (optimiser, teacher, launching kernels), ``per_flop`` of forward and backward."""

    fixed: float
    per_flop: float

    def seconds(self, flops: float) -> float:
        """Of a step with so many FLOPs."""
        return self.fixed + self.per_flop * flops


def fit_step_time(points: Sequence[tuple[float, float]]) -> StepTime:
    """The law that is nearest to steps that were timed, by least squares of the relative errors; nothing is negative.

    Args:
        points: FLOPs and seconds of each, two at least with different FLOPs.

    Raises:
        UserError: steps with more work took no longer, which says that something else held the machine.
    """
    weights = [1 / seconds**2 for _, seconds in points]

    def mean(numbers: Sequence[float]) -> float:
        return math.fsum(w * x for w, x in zip(weights, numbers, strict=True)) / math.fsum(weights)

    work, times = [flops for flops, _ in points], [seconds for _, seconds in points]
    middle, centre = mean(work), mean(times)
    spread = mean([(flops - middle) ** 2 for flops in work])
    slope = mean([(flops - middle) * (seconds - centre) for flops, seconds in points]) / spread
    if slope <= 0:
        listed = "; ".join(f"{flops / 1e9:.3g} GFLOP in {seconds:.3g} s" for flops, seconds in points)
        raise UserError(f"steps with more work took no longer ({listed}): the machine is busy with something; repeat")
    if centre < slope * middle:  # a constant below 0: the law goes through the origin
        return StepTime(0.0, mean([x * t for x, t in points]) / mean([x * x for x in work]))
    return StepTime(centre - slope * middle, slope)


def worst_error(law: StepTime, points: Sequence[tuple[float, float]]) -> float:
    """Largest relative error of the law over timed steps."""
    return max(abs(law.seconds(flops) / seconds - 1) for flops, seconds in points)
