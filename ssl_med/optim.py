"""Parameter groups and the optimiser: no decay on vectors, smaller rates for earlier layers."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def parameter_groups(
    module: nn.Module, layers: Sequence[Sequence[nn.Parameter]], weight_decay: float, layer_decay: float = 1.0
) -> list[dict]:
    """Groups for AdamW, with ``scale`` as the factor on the learning rate.

    Layer ``i`` of ``n`` gets ``layer_decay ** (n - i)``; parameters outside all layers (heads, decoders) get 1
    (BEiT, arXiv 2106.08254, and MAE's fine-tuning have the same rule with the final norm among the heads; here the norm
    is a layer, so that each layer of a ViT stands one power lower). Biases, norms and single tokens are not decayed.

    Args:
        module: whose trainable parameters are grouped.
        layers: parameters from the input side to the output side.
        weight_decay: decay of matrices.
        layer_decay: factor per layer; 1 for the same rate everywhere.
    """
    depth = {id(p): i for i, layer in enumerate(layers) for p in layer}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = layer_decay ** (len(layers) - depth.get(id(parameter), len(layers)))
        vector = parameter.ndim < 2 or name.endswith(("_token", "pos_embed", "bias"))
        groups.setdefault((scale, 0.0 if vector else weight_decay), []).append(parameter)
    return [{"params": ps, "scale": scale, "weight_decay": wd} for (scale, wd), ps in groups.items()]


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
    norms = torch._foreach_norm(gradients)
    torch._foreach_mul_(gradients, [(limit / (norm + 1e-6)).clamp(max=1.0) for norm in norms])
    return torch.stack(list(norms)).norm()
