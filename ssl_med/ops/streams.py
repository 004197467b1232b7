"""Random numbers by key and counter: tensors here and compiled loops in ``corruption_kernels`` give the same bits."""

from importlib.util import find_spec

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssl_med.ops.random import mix

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
"""Step of splitmix64, as a signed number."""

LCG_FACTOR, LCG_TERM = 6364136223846793005, 1442695040888963407
"""Knuth's congruential generator modulo 2**64 (MMIX), of which the upper 32 bits are used."""

HASH_FACTORS = (0x9E3779B9, 0x7FEB352D, 0x846CA68B, 0x2C1B3C6D, 0x297A2D39)
"""Weyl step and odd factors of 32-bit hashes of low bias (C. Wellons, hash-prospector, public domain)."""

_WORD = 0xFFFFFFFF


def logical_shift(x: Int[Tensor, "*shape"], bits: int) -> Int[Tensor, "*shape"]:
    """Shift to the right that brings in zeros, of 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def number(key: Int[Tensor, "..."], counter: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Number ``counter`` of the stream of ``key``, 64 random bits; the two broadcast."""
    return mix(key + (counter + 1) * GOLDEN)


def below(bits: Int[Tensor, "..."], high: Int[Tensor, "..."] | int) -> Int[Tensor, "..."]:
    """0 .. high - 1 from the upper 32 of 64 random bits; the bias is below high / 2**32."""
    return logical_shift(logical_shift(bits, 32) * high, 32)


def noise(keys: Int[Tensor, " b"], voxels: int) -> Float[Tensor, "b v"]:
    """Uniform numbers in [0, 1) for each voxel of each image, with 24 random bits.

    A 32-bit hash of the voxel's number and both halves of the key: compiled loops make eight at a time of it.
    """
    weyl, *factors = HASH_FACTORS
    first, second = keys[:, None] & _WORD, logical_shift(keys[:, None], 32)
    h = (torch.arange(voxels, device=keys.device) * weyl + first) & _WORD
    h = ((h ^ (h >> 16)) * factors[0]) & _WORD
    h = ((h ^ (h >> 15)) * factors[1]) & _WORD
    h = h ^ (h >> 16) ^ second
    h = ((h ^ (h >> 15)) * factors[2]) & _WORD
    h = ((h ^ (h >> 12)) * factors[3]) & _WORD
    return ((h ^ (h >> 15)) >> 8).float() * 2.0**-24


def compiled_for(x: Tensor) -> bool:
    """Whether the compiled loops can take this tensor: it is on the CPU, and numba is installed."""
    return x.device.type == "cpu" and find_spec("numba") is not None
