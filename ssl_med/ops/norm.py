"""Batch norm whose batch is the global one."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_med.ops import ranks


class BatchNorm(nn.BatchNorm1d):
    """Batch norm of vectors over all processes (Ioffe and Szegedy, arXiv 1502.03167).

    torch's SyncBatchNorm runs on GPUs only and so could not be tested against one process on a CPU.
    """

    def forward(self, input: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Normalise by the moments of the global batch in training, by the running ones otherwise."""
        if not self.training or ranks.world_size() == 1:
            return super().forward(input)
        x = input.float()
        count = len(x) * ranks.world_size()
        average = ranks.total(x.sum(0)) / count
        variance = ranks.total(((x - average) ** 2).sum(0)) / count
        self._remember(average.detach(), variance.detach() * count / max(count - 1, 1))
        x = (x - average) * (variance + self.eps).rsqrt()
        return (x if not self.affine else x * self.weight + self.bias).to(input.dtype)

    @torch.no_grad()
    def _remember(self, average: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(average.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)
