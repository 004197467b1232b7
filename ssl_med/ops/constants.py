"""Numbers of the host on a device, without waiting for it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def constant(values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A small table of numbers, as ``torch.tensor`` makes it.

    ``torch.tensor(values, device="cuda")`` copies from ordinary memory, for which the host waits until the GPU has done
    all that was asked of it before, and the next kernels come late. From pinned memory the copy takes its turn.

    Args:
        values: numbers, or rows of numbers.
        device: where the table is needed.
        dtype: as for ``torch.tensor``.
    """
    if device.type != "cuda":
        return torch.tensor(values, device=device, dtype=dtype)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
