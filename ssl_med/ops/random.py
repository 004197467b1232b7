"""Random numbers as a function, not a state: (seed, global position of a sample, place of use) -> number.

A sample therefore gets the same crop, views and masks at any world size, with any number of loader workers and after
any resume. The generator is the splitmix64 finaliser (Steele, Lea, Flood, OOPSLA 2014) run as a counter, in integer
arithmetic only, so that every device gives the same bits.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed 64 bit; torch has no uint64 arithmetic
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


_LONG = 1024
"""Numbers an image from which a compiled loop pays."""


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical, not arithmetic


def mix(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Bijective scrambling of 64-bit integers (splitmix64's finaliser)."""
    if type(x) is Tensor and x.device.type == "cpu":  # one loop in place of eleven passes; the same bits
        from ssl_med.ops.random_kernels import mix as compiled

        mixed = torch.empty(x.shape, dtype=torch.int64)
        compiled(x.contiguous().numpy().reshape(-1), mixed.numpy().reshape(-1))
        return mixed
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def fold(key: Int[Tensor, "*shape"], number: int) -> Int[Tensor, "*shape"]:
    """A new key from a key and a number; different numbers give unrelated keys."""
    step = ((number + 1) * 2 * _GOLDEN + (1 << 63)) % (1 << 64) - (1 << 63)  # wrapped to signed 64 bit
    return mix(mix(key) + step)


def sample_keys(seed: int, positions: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """One key per sample from the run's seed and the sample's place in the global order."""
    root = mix(torch.tensor([seed], dtype=torch.int64, device=positions.device) + _GOLDEN)
    return mix(root + mix(positions.to(torch.int64)))


class Draws:
    """Random tensors for a batch: row i is a function of ``keys[i]`` alone.

    Every call moves a counter, so two calls of one object differ; ``child`` opens an independent stream, so that adding
    a transform does not change the draws of the one beside it.

    Args:
        keys: one 64-bit key per sample, see :func:`sample_keys`.
    """

    def __init__(self, keys: Int[Tensor, " b"]) -> None:
        self.keys = keys
        self._calls = 0

    def child(self, number: int) -> "Draws":
        """An independent stream; negative numbers are kept for internal use."""
        return Draws(fold(self.keys, number))

    def bits(self, *shape: int) -> Int[Tensor, "..."]:
        """Signed 64-bit integers (b, \\*shape), all values equally likely."""
        base = self._next()
        counter = torch.arange(math.prod(shape), device=base.device, dtype=torch.int64)
        return mix(base[:, None] + (counter + 1)[None] * _GOLDEN).reshape(len(base), *shape)

    def _next(self) -> Int[Tensor, " b"]:
        """The key of this call."""
        self._calls += 1
        return fold(self.keys, -1 - self._calls)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Float[Tensor, "..."]:
        """Uniform floats in [low, high), (b, \\*shape), with 24 random bits each."""
        if self._is_long(shape):
            from ssl_med.ops.random_kernels import uniform

            unit = torch.empty(len(self.keys), math.prod(shape))
            uniform(self._next().numpy(), unit.numpy())
            return low + (high - low) * unit.reshape(-1, *shape)
        return low + (high - low) * (_shift(self.bits(*shape), 40).to(torch.float32) * 2.0**-24)

    def normal(self, *shape: int) -> Float[Tensor, "..."]:
        """Standard normal floats (b, \\*shape) by the Box-Muller transform."""
        radius, angle = self._polar(shape)
        return (-2.0 * radius.log()).sqrt() * (2.0 * math.pi * angle).cos()

    def _polar(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Radius in (0, 1], so that its logarithm is finite, and angle in [0, 1) turns."""
        if self._is_long(shape):
            from ssl_med.ops.random_kernels import polar

            radius, angle = torch.empty(2, len(self.keys), math.prod(shape))
            polar(self._next().numpy(), radius.numpy(), angle.numpy())
            return radius.reshape(-1, *shape), angle.reshape(-1, *shape)
        bits = self.bits(*shape)
        radius = (_shift(bits, 40).to(torch.float32) + 1.0) * 2.0**-24
        return radius, (_shift(bits, 8) & 0xFFFFFF).to(torch.float32) * 2.0**-24

    def _is_long(self, shape: tuple[int, ...]) -> bool:
        """So many numbers an image that a compiled loop pays; it gives the same ones."""
        return self.keys.device.type == "cpu" and len(self.keys) > 0 and math.prod(shape) >= _LONG

    def integers(self, high: int, *shape: int) -> Int[Tensor, "..."]:
        """Integers 0 .. high - 1, (b, \\*shape); the bias is below high / 2**40."""
        return ((_shift(self.bits(*shape), 24)).to(torch.float64) * (high * 2.0**-40)).long()

    def bernoulli(self, probability: float, *shape: int) -> Tensor:
        """Booleans (b, \\*shape), True with the given probability."""
        return self.uniform(*shape) < probability
