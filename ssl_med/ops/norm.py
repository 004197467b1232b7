"""Batch norm whose batch is the global one."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_med.ops import ranks


class BatchNorm(nn.BatchNorm1d):
    """Batch norm of vectors or maps over all processes (Ioffe and Szegedy, arXiv 1502.03167).

    torch's SyncBatchNorm runs on GPUs only and so could not be tested against one process on a CPU.
    """

    def forward(self, input: Float[Tensor, "b d *space"]) -> Float[Tensor, "b d *space"]:
        """Normalise by the moments of the global batch in training, by the running ones otherwise."""
        if not self.training or ranks.world_size() == 1:
            return super().forward(input)
        x = input.float()
        rest, wide = [0, *range(2, x.ndim)], (-1, *[1] * (x.ndim - 2))
        count = x.numel() // x.shape[1] * ranks.world_size()
        average = ranks.total(x.sum(rest)) / count
        variance = ranks.total(((x - average.view(wide)) ** 2).sum(rest)) / count
        self._remember(average.detach(), variance.detach() * count / max(count - 1, 1))
        x = (x - average.view(wide)) * (variance + self.eps).rsqrt().view(wide)
        return (x * self.weight.view(wide) + self.bias.view(wide) if self.affine else x).to(input.dtype)

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
