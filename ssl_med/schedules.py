"""Schedules as pure functions of progress in [0, 1], so that a task can be tested without a trainer."""

import math


def linear(progress: float, start: float, end: float) -> float:
    """Straight line from ``start`` at progress 0 to ``end`` at progress 1."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def cosine(progress: float, start: float, end: float) -> float:
    """Half a cosine wave from ``start`` to ``end`` (SGDR, arXiv 1608.03983, eq. 5 without restarts)."""
    progress = min(max(progress, 0.0), 1.0)
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_cosine(progress: float, warmup: float, peak: float = 1.0, end: float = 0.0) -> float:
    """Linear rise from 0 to ``peak`` during the first ``warmup`` share of progress, then a cosine fall to ``end``.

    Args:
        progress: share of the training done, 0 to 1.
        warmup: share of the training that warms up, 0 to below 1 (MAE: 40 of 800 epochs = 0.05).
        peak: value reached at the end of the warm-up.
        end: value at progress 1.
    """
    if progress < warmup:
        return linear(progress / warmup, 0.0, peak)
    return cosine((progress - warmup) / (1.0 - warmup), peak, end)
