"""Parameter groups and the optimiser: no decay on vectors, smaller rates for earlier layers."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def parameter_groups(
    module: nn.Module, layers: Sequence[Sequence[nn.Parameter]], weight_decay: float, layer_decay: float = 1.0
) -> list[dict]:
    """Groups for AdamW, with ``scale`` as the factor on the learning rate and ``trunk`` for what is in a layer.

    Layer ``i`` of ``n`` gets ``layer_decay ** (n - i)``; parameters outside all layers (heads, decoders) get 1, and so
    does a last layer without matrices (a final norm), as in BEiT (arXiv 2106.08254) and in MAE's fine-tuning. Biases,
    norms and single tokens are not decayed.

    Args:
        module: whose trainable parameters are grouped.
        layers: parameters from the input side to the output side.
        weight_decay: decay of matrices.
        layer_decay: factor per layer; 1 for the same rate everywhere.
    """
    trunk = {id(p) for layer in layers for p in layer}
    if layers and all(p.ndim < 2 for p in layers[-1]):
        layers = layers[:-1]
    depth = {id(p): i for i, layer in enumerate(layers) for p in layer}
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = layer_decay ** (len(layers) - depth.get(id(parameter), len(layers)))
        vector = parameter.ndim < 2 or name.endswith(("_token", "pos_embed", "bias"))
        key = (scale, 0.0 if vector else weight_decay, id(parameter) in trunk)
        groups.setdefault(key, []).append(parameter)
    return [{"params": ps, "scale": s, "weight_decay": wd, "trunk": inside} for (s, wd, inside), ps in groups.items()]


def hold_still(groups: Iterable[dict]) -> None:
    """Drop the gradients of the trunk: neither moments nor clipping see what its rate of 0 will not use.

    Args:
        groups: of the optimiser, see :func:`parameter_groups`.
    """
    for group in groups:
        for parameter in group["params"] if group["trunk"] else ():
            if parameter.grad is not None:
                parameter.grad.zero_()


def adamw(groups: list[dict], lr: float, betas: tuple[float, float], fused: bool = True) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101).

    Args:
        groups: see :func:`parameter_groups`.
        lr: learning rate.
        betas: decay of the moments.
        fused: one pass over the parameters instead of a dozen. A fused step also undoes the scaling of float16
            gradients, so that they are still scaled when they are clipped.
    """
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


def norm_of_all(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The common norm of all gradients, of wholes where they are sharded."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clip_all(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Clip all gradients together by their common norm; returns the norm before."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@torch.no_grad()
def clip_each(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Clip the gradient of every tensor by its own norm (DINO, arXiv 2104.14294, official code).

    Args:
        parameters: those without a gradient are passed over.
        limit: largest norm of each.

    Returns:
        The norm of all gradients together, before clipping.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm([local(gradient) for gradient in gradients])
    if any(isinstance(gradient, DTensor) for gradient in gradients):
        norms = _norms_of_wholes(norms, cast(DTensor, gradients[0]))
    torch._foreach_mul_(
        [local(gradient) for gradient in gradients], [(limit / (n + 1e-6)).clamp(max=1.0) for n in norms]
    )
    return torch.stack(list(norms)).norm()


def local(x: Tensor) -> Tensor:
    """What lies in this process of a tensor, as a view of it; all of it unless it is sharded."""
    return x.to_local() if isinstance(x, DTensor) else x


def _norms_of_wholes(norms: Sequence[Tensor], one: DTensor) -> Sequence[Tensor]:
    """Norms of tensors from those of their shards; the last axis of the mesh is the one that is sharded over."""
    squares = torch.stack(list(norms)).square()
    mesh = one.device_mesh
    dist.all_reduce(squares, group=mesh.get_group(mesh.ndim - 1))
    return squares.sqrt().unbind()
