"""Is the representation alive? Two numbers that fall when it collapses."""

import torch
from jaxtyping import Float
from torch import Tensor


def feature_spread(features: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Mean over dimensions of the standard deviation of the L2-normalised rows, times sqrt(d) (SimSiam, 2011.10566).

    About 1 for isotropic features, 0 for constant ones.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    return unit.std(0).mean() * features.shape[1] ** 0.5


def effective_rank(features: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """exp of the entropy of the normalised singular values of the centred features (RankMe, arXiv 2210.02885).

    At most min(b, d); 1 for features on a line; 0 for constant features; nan for features that are not finite.
    """
    if not torch.isfinite(features).all():
        return torch.full((), torch.nan, device=features.device)
    centred = features.double() - features.double().mean(0)
    values = torch.linalg.svdvals(centred)
    if values.sum() <= 1e-9 * max(1.0, float(features.abs().max())):
        return torch.zeros((), device=features.device)
    share = values / values.sum()
    return (-(share * (share + 1e-12).log()).sum()).exp().float()
