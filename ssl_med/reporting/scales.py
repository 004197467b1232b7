"""From numbers to places in a drawing, and the round numbers that stand at an axis."""

import math
from dataclasses import dataclass

_LOG_FROM = 100.0  # a larger ratio of the largest to the smallest value is drawn on a logarithmic axis


@dataclass(frozen=True)
class Scale:
    """An axis: values ``low .. high`` lie at places ``start .. end``."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high, value = (self._bent(number) for number in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def _bent(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the axis."""
        return powers_of_ten(self.low, self.high) if self.logarithmic else round_values(self.low, self.high, count)


def fitted(values: list[float], start: float, end: float, may_bend: bool = False) -> Scale:
    """A scale that holds all values with a little air; logarithmic for a wide range of positive values, if allowed."""
    low, high = min(values), max(values)
    if may_bend and low > 0 and high / low > _LOG_FROM:
        return Scale(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)), start, end, True)
    air = 0.06 * (high - low) or max(abs(high) * 0.1, 1e-9)
    return Scale(low - air if low < 0 or low - air > 0 else 0.0, high + air, start, end)


def round_values(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` multiples of 1, 2 or 5 times a power of ten between two numbers."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    stride = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / stride - 1e-9), math.floor(high / stride + 1e-9)
    return [float(f"{index * stride:.12g}") for index in range(first, last + 1)]


def powers_of_ten(low: float, high: float) -> list[float]:
    """Powers of ten between two positive numbers, at most six of them."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return [10.0**power for power in range(first, last + 1, math.ceil((last - first + 1) / 6))]
