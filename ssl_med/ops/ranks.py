"""What several processes must compute together; with one process every function returns what it was given."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process counts as the only one: what the others do not compute would wait for them for ever."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def world_size() -> int:
    """Processes that train together."""
    if _ALONE.get():
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if world_size() > 1 else 0


class _Sum(torch.autograd.Function):
    """Sum over the processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The same sum in every process."""
        summed = x.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """What every process asks of the sum."""
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed


class _Gather(torch.autograd.Function):
    """Rows of all processes; the gradient of a row is the sum of what the processes ask of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """(b, ...) -> (world * b, ...)."""
        rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, x)
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """This process's rows of the sum."""
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed.chunk(dist.get_world_size())[dist.get_rank()]


def gather(x: Tensor) -> Tensor:
    """Rows of all processes, in the order of their ranks, (b, ...) -> (world * b, ...); gradients flow back to each.

    The gradient that comes back is the sum over the processes. Trainers average gradients over processes, so a loss
    that every process computes over *all* rows gets the gradient of one process that has all rows.
    """
    if world_size() == 1:
        return x
    return _Gather.apply(x.contiguous())  # pyright: ignore[reportReturnType]


def total(x: Tensor) -> Tensor:
    """Sum over all processes; gradients flow back to each, see :func:`gather`."""
    if world_size() == 1:
        return x
    return _Sum.apply(x.contiguous())  # pyright: ignore[reportReturnType]


def mean(x: Tensor) -> Tensor:
    """Mean over all processes, which hold equally many rows."""
    return total(x) / world_size()


@torch.no_grad()
def means(numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean of each number over all processes, by one all-reduce, without gradient; what all agree on stays."""
    if world_size() == 1:
        return {name: value.detach() for name, value in numbers.items()}
    row = torch.stack([value.detach().double() for value in numbers.values()])
    dist.all_reduce(row)
    average = row / world_size()
    return {name: average[i].to(value.dtype) for i, (name, value) in enumerate(numbers.items())}


@torch.no_grad()
def least(x: Tensor) -> Tensor:
    """Smallest value over all processes, element by element; no gradient."""
    if world_size() == 1:
        return x
    smallest = x.detach().clone()
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return smallest
