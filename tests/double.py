"""What is computed in double precision, where a law that holds is seen to 1e-13 and a rounding error is not."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def in_double() -> Iterator[None]:
    """What the tasks do in full precision, ``x.float()``, is done in double, and so is what is made anew."""
    single = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.Tensor.float = single
        torch.set_default_dtype(torch.float32)
