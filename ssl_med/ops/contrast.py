"""Contrastive losses over the samples of all processes."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ssl_med.ops import ranks


def info_nce(q: Float[Tensor, "b d"], k: Float[Tensor, "b d"], temperature: float) -> Float[Tensor, ""]:
    """Cross-entropy of each query to find its own key among the keys of all processes (CPC, arXiv 1807.03748).

    ``mean_i -log(exp(cos(q_i, k_i) / t) / sum_j exp(cos(q_i, k_j) / t))``; ln(N) for keys that tell nothing.

    Args:
        q: queries, of any length: they are normalised here.
        k: row i belongs to query i.
        temperature: t.
    """
    with torch.autocast(q.device.type, enabled=False):
        keys = ranks.gather(_unit(k))
        own = torch.arange(len(q), device=q.device) + ranks.rank() * len(q)
        return ranks.mean(functional.cross_entropy(_unit(q) @ keys.T / temperature, own))


def nt_xent(
    z1: Float[Tensor, "b d"], z2: Float[Tensor, "b d"], temperature: float, weight: Float[Tensor, " b"] | None = None
) -> Float[Tensor, ""]:
    """Each of 2N views finds its partner among the other 2N - 1 (SimCLR, arXiv 2002.05709, eq. 1).

    ln(2N - 1) for views that tell nothing.

    Args:
        z1: first views, of any length: they are normalised here.
        z2: second views; row i is the partner of row i of ``z1``.
        temperature: t.
        weight: 0 leaves a sample out, as anchor and as negative, as if it were not in the batch; 1 by default.
    """
    with torch.autocast(z1.device.type, enabled=False):
        b, total = len(z1), len(z1) * ranks.world_size()
        if weight is None:
            weight = torch.ones(b, device=z1.device)
        weight = weight.float()
        everyone = torch.cat([ranks.gather(_unit(z1)), ranks.gather(_unit(z2))])
        anchors = torch.cat([_unit(z1), _unit(z2)])
        place = torch.arange(b, device=z1.device) + ranks.rank() * b
        itself, partner = torch.cat([place, place + total]), torch.cat([place + total, place])
        column = torch.arange(2 * total, device=z1.device)
        absent = ranks.gather(weight).repeat(2)[None] == 0
        hidden = (column[None] == itself[:, None]) | (absent & (column[None] != partner[:, None]))
        logits = (anchors @ everyone.T / temperature).masked_fill(hidden, -torch.inf)
        losses = functional.cross_entropy(logits, partner, reduction="none") * weight.repeat(2)
        return ranks.total(losses.sum()) / ranks.total(2 * weight.sum()).clamp(min=1)


def _unit(x: Tensor) -> Tensor:
    return functional.normalize(x.float(), dim=1)
