"""Batch norm whose batch is the global one."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast

import torch
from jaxtyping import Float
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_med.ops import ranks

LOG = logging.getLogger("ssl_med")
_AGAIN: ContextVar[bool] = ContextVar("again", default=False)


@contextmanager
def once_more() -> Iterator[None]:
    """Inside, what was computed before is computed again: batch norms do not remember the same batch twice."""
    token = _AGAIN.set(True)
    try:
        yield
    finally:
        _AGAIN.reset(token)


class BatchNorm(nn.BatchNorm1d):
    """Batch norm of vectors or maps over all processes (Ioffe and Szegedy, arXiv 1502.03167).

    torch's SyncBatchNorm runs on GPUs only and so could not be tested against one process on a CPU.
    """

    def forward(self, input: Float[Tensor, "b d *space"]) -> Float[Tensor, "b d *space"]:
        """Normalise by the moments of the global batch in training, by the running ones otherwise."""
        if not self.training:
            return super().forward(input)
        if ranks.world_size() == 1:
            return self._repeat(input) if _AGAIN.get() else super().forward(input)
        x = input.float()
        rest, wide = [0, *range(2, x.ndim)], (-1, *[1] * (x.ndim - 2))
        count = x.numel() // x.shape[1] * ranks.world_size()
        average = ranks.total(x.sum(rest)) / count
        variance = ranks.total(((x - average.view(wide)) ** 2).sum(rest)) / count
        if not _AGAIN.get():
            self._remember(average.detach(), variance.detach() * count / max(count - 1, 1))
        x = (x - average.view(wide)) * (variance + self.eps).rsqrt().view(wide)
        return (x * self.weight.view(wide) + self.bias.view(wide) if self.affine else x).to(input.dtype)

    def _repeat(self, input: Tensor) -> Tensor:
        """What the first computation gave, and saved; copies of the moments take what it would remember."""
        mean, variance = (None if kept is None else kept.clone() for kept in (self.running_mean, self.running_var))
        return functional.batch_norm(input, mean, variance, self.weight, self.bias, training=True, eps=self.eps)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes of space, other than in torch's classes."""

    @torch.no_grad()
    def _remember(self, average: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(average.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


class _BatchNormAct(BatchNorm):
    """timm's batch norm with dropout and an activation behind it."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Float[Tensor, "b d *space"]) -> Float[Tensor, "b d *space"]:
        """Normalise, drop, activate."""
        return self.act(self.drop(super().forward(input)))


_SHARED = {nn.BatchNorm1d: BatchNorm, nn.BatchNorm2d: BatchNorm, nn.BatchNorm3d: BatchNorm}
_SHARED |= {BatchNormAct2d: _BatchNormAct}


def over_all_processes(module: nn.Module) -> None:
    """Let the batch norms of backbones that others wrote see the global batch; weights, buffers and names stay.

    Args:
        module: changed in place.
    """
    for parent in list(module.modules()):
        for name, norm in parent._modules.items():
            if type(norm) in _SHARED:
                twin = _SHARED[type(norm)](cast(_BatchNorm, norm).num_features)
                twin.__dict__.update(norm.__dict__)
                parent._modules[name] = twin
            elif isinstance(norm, _BatchNorm) and not isinstance(norm, BatchNorm | nn.SyncBatchNorm):
                LOG.warning("%s normalises by the batch of its own process, not by the global one", type(norm).__name__)
