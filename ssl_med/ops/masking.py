"""Choosing which patches are hidden."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssl_med.errors import UserError
from ssl_med.ops.random import Draws


def random_order(
    draws: Draws, count: int, last: Bool[Tensor, "b n"] | None = None
) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:
    """A random order of ``count`` tokens per sample, and its inverse; tokens marked in ``last`` come at the end.

    Returns:
        ``order`` and ``inverse``, both (b, count) integers with ``order.gather(1, inverse) == arange``.
    """
    return _ordered(draws.uniform(count), last)


def tube_order(
    draws: Draws, grid: tuple[int, ...], last: Bool[Tensor, "b n"] | None = None
) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:
    """Tokens that differ only along the first axis (time, slices) stand together, so that they are hidden together.

    Neighbouring frames or slices show what is hidden in one of them; a tube hides it in all (VideoMAE, 2203.12602).
    """
    noise = draws.uniform(math.prod(grid[1:])).repeat(1, grid[0])
    if last is not None:  # a tube is padding only if all of it is
        tubes = last.reshape(len(last), grid[0], -1).all(1).repeat(1, grid[0])
        return _ordered(noise, tubes)
    return _ordered(noise)


def weighted_order(
    draws: Draws, weight: Float[Tensor, "b n"], last: Bool[Tensor, "b n"] | None = None
) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:
    """Tokens in an order in which the end is drawn without replacement in proportion to ``weight``.

    The hidden ones, which are taken from the end, so favour high weights; tokens of weight 0 are hidden only when no
    others are left (Gumbel top-k, Efraimidis and Spirakis 2006).
    """
    uniform = draws.uniform(weight.shape[1]).clamp(2.0**-24, 1 - 2.0**-24)
    key = weight.clamp(min=1e-30).log() - (-uniform.log()).log()
    return _ordered(key - key.amin(), last, key.amax() - key.amin() + 1)


def tissue_order(
    draws: Draws, tissue: Bool[Tensor, "b n"], mask_ratio: float, last: Bool[Tensor, "b n"] | None = None
) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:
    """Random tokens with tissue that stay, then those without, then the other tissue.

    However many are hidden from the end, an image with little tissue still shows its share of it.

    Args:
        draws: one row per image.
        tissue: which tokens have some.
        mask_ratio: share of the tissue that is hidden; what stays is rounded up.
        last: tokens that come at the end whatever they hold.
    """
    if last is not None:
        tissue = tissue & ~last
    chance = draws.uniform(tissue.shape[1])
    rank = (chance + (~tissue).to(chance.dtype)).argsort(stable=True, dim=1).argsort(stable=True, dim=1)
    stays = (tissue.sum(1, keepdim=True) * (1 - mask_ratio) - 1e-4).ceil()  # less what 1 - ratio is rounded by
    group = torch.where(tissue, torch.where(rank < stays, 0.0, 2.0), 1.0)
    return _ordered(chance + group, last, 3.0)


def _ordered(
    score: Float[Tensor, "b n"], last: Bool[Tensor, "b n"] | None = None, span: float | Tensor = 1.0
) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:
    """Ascending order of ``score`` (within ``span``) and its inverse; those in ``last`` after all others."""
    if last is not None:
        score = score + last.to(score.dtype) * span
    order = score.argsort(stable=True, dim=1)
    return order, order.argsort(stable=True, dim=1)


def hidden_blocks(
    draws: Draws, space: tuple[int, ...], block: tuple[int, ...], mask_ratio: float, cell: tuple[int, ...]
) -> Bool[Tensor, "b 1 *cells"]:
    """Blocks of the image chosen at random, as a map of cells: True where hidden.

    Args:
        draws: one row per image.
        space: voxels of the image along each axis.
        block: voxels hidden at once.
        mask_ratio: share of the blocks that is hidden.
        cell: voxels per entry of the map.

    Raises:
        UserError: the block is no multiple of the cell, or does not divide the image.
    """
    if any(b % c or s % b for s, b, c in zip(space, block, cell, strict=True)):
        raise UserError(f"mask_block {block} must be a multiple of {cell} and divide the image {space}")
    grid = tuple(s // b for s, b in zip(space, block, strict=True))
    order, _ = random_order(draws, math.prod(grid))
    hidden = order[:, visible_count(math.prod(grid), mask_ratio) :]
    field = torch.zeros_like(order, dtype=torch.bool).scatter(1, hidden, True).view(len(order), 1, *grid)
    for axis, (side, step) in enumerate(zip(block, cell, strict=True), 2):
        field = field.repeat_interleave(side // step, axis)
    return field


def visible_count(count: int, mask_ratio: float) -> int:
    """Tokens that stay: int(count * (1 - ratio)), as in MAE's code, and at least one.

    Example:
        196 tokens at 0.75 leave 49.

    Raises:
        ValueError: the ratio is not in [0, 1).
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio must be at least 0 and below 1, got {mask_ratio}")
    return max(1, int(count * (1 - mask_ratio)))
