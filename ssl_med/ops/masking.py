"""Choosing which patches are hidden."""

from jaxtyping import Bool, Int
from torch import Tensor

from ssl_med.ops.random import Draws


def random_order(
    draws: Draws, count: int, last: Bool[Tensor, "b n"] | None = None
) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:
    """A random order of ``count`` tokens per sample, and its inverse; tokens marked in ``last`` come at the end.

    Returns:
        ``order`` and ``inverse``, both (b, count) integers with ``order.gather(1, inverse) == arange``.
    """
    noise = draws.uniform(count)
    if last is not None:
        noise = noise + last.to(noise.dtype)
    order = noise.argsort(stable=True, dim=1)
    return order, order.argsort(stable=True, dim=1)


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
