"""Losses of joint embeddings: two views of an image shall agree, and the embedding shall not collapse.

All of them are computed over the rows of all processes, so that training on several devices is training on one, and in
full precision, also under autocast.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, relu

from ssl_med.ops import ranks


def cosine_distance(x: Float[Tensor, "b d"], y: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """``2 - 2 cos(x, y)``, mean over rows: 0 for equal directions, 2 for unrelated ones (BYOL, arXiv 2006.07733)."""
    cosine = (normalize(x.float(), dim=1) * normalize(y.float(), dim=1)).sum(1)
    return ranks.mean((2 - 2 * cosine).mean())


def vicreg(x: Float[Tensor, "b d"], y: Float[Tensor, "b d"]) -> dict[str, Tensor]:
    """Invariance, variance and covariance of two views' embeddings (VICReg, arXiv 2105.04906, eqs. 1 to 5).

    Returns:
        ``invariance``: mean squared difference; ``variance``: mean over both views of the hinge ``1 - sd``;
        ``covariance``: squared off-diagonal covariances per dimension, summed over both views.
    """
    invariance = ranks.mean((x.float() - y.float()).square().mean())
    x, y = ranks.gather(x.float()), ranks.gather(y.float())
    return {
        "invariance": invariance,
        "variance": 0.5 * (_hinge(x) + _hinge(y)),
        "covariance": _covariance(x) + _covariance(y),
    }


def _hinge(x: Tensor) -> Tensor:
    return relu(1 - (x.var(0) + 1e-4).sqrt()).mean()


def _covariance(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    with torch.autocast(x.device.type, enabled=False):
        matrix = x.T @ x / (len(x) - 1)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / x.shape[1]


def barlow_twins(x: Float[Tensor, "b d"], y: Float[Tensor, "b d"]) -> dict[str, Tensor]:
    """How far the cross-correlation of two views is from the identity (Barlow Twins, arXiv 2103.03230, eq. 1).

    Returns:
        ``invariance``: squared distance of the diagonal from 1; ``redundancy``: squared elements off the diagonal.
    """
    x, y = _standardised(ranks.gather(x.float())), _standardised(ranks.gather(y.float()))
    with torch.autocast(x.device.type, enabled=False):
        correlation = x.T @ y / len(x)
    diagonal = correlation.diagonal()
    redundancy = correlation.square().sum() - diagonal.square().sum()
    return {"invariance": (diagonal - 1).square().sum(), "redundancy": redundancy}


def _standardised(x: Tensor) -> Tensor:
    return (x - x.mean(0)) * (x.var(0, correction=0) + 1e-5).rsqrt()


def sigreg(
    x: Float[Tensor, "v b d"], directions: Float[Tensor, "d m"], knots: int = 17, reach: float = 3.0
) -> Float[Tensor, ""]:
    """Distance of the embedding from an isotropic Gaussian, seen along random directions (LeJEPA, arXiv 2511.08544).

    Along each direction the empirical characteristic function is compared with that of a standard normal by the
    Epps-Pulley statistic, ``n * integral |ecf - cf|^2 exp(-t^2 / 2) dt`` over [-reach, reach]; the mean over views and
    directions is returned.

    Args:
        x: embeddings of each view.
        directions: columns of unit length, the same on all processes.
        knots: of the trapezoidal rule on [0, reach]; the integrand is even.
        reach: largest frequency.
    """
    t = torch.linspace(0, reach, knots, device=x.device)
    normal = torch.exp(-t.square() / 2)
    with torch.autocast(x.device.type, enabled=False):
        angle = (x.float() @ directions.float())[..., None] * t
    real, imaginary = ranks.mean(angle.cos().mean(1)), ranks.mean(angle.sin().mean(1))
    error = ((real - normal).square() + imaginary.square()) * normal
    return 2 * torch.trapezoid(error, t).mean() * x.shape[1] * ranks.world_size()
