"""Spectral residual saliency (Hou and Zhang, CVPR 2007): what the smoothed spectrum does not explain."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

_LINEAR = {2: "bilinear", 3: "trilinear"}
_MEAN = {2: functional.avg_pool2d, 3: functional.avg_pool3d}
_BLUR_SIGMA, _BLUR_RADIUS = 8.0, 2


def spectral_residual(grey: Float[Tensor, "b 1 *space"], size: int = 64) -> Float[Tensor, "b 1 *space"]:
    """Log amplitude minus its 3-wide mean, original phase, back; smoothed, squared and scaled to a maximum of 1.

    The border of the mean is mirrored as in OpenCV's ``StaticSaliencySpectralResidual``. A constant image gives zeros.

    Args:
        grey: images of two or three axes.
        size: voxels along each axis of the reduced image whose spectrum is taken.
    """
    axes = tuple(range(2, grey.ndim))
    mode = _LINEAR[len(axes)]
    small = functional.interpolate(grey.float(), [size] * len(axes), mode=mode, align_corners=False)
    spectrum = torch.fft.fftn(small, dim=axes)
    log_amplitude = spectrum.abs().clamp_min(1e-6).log()
    smooth = _MEAN[len(axes)](functional.pad(log_amplitude, (1, 1) * len(axes), mode="reflect"), 3, stride=1)
    residual = torch.polar((log_amplitude - smooth).exp(), spectrum.angle())
    response = _blur(torch.fft.ifftn(residual, dim=axes).abs()).square()
    low, high = small.amin(axes, keepdim=True), small.amax(axes, keepdim=True)
    alive = high - low > 1e-5 * high.abs()  # the interpolation of a constant is constant up to rounding
    response = torch.where(alive, response / response.amax(axes, keepdim=True).clamp_min(1e-30), 0.0)
    return functional.interpolate(response, grey.shape[2:], mode=mode, align_corners=False)


def _blur(x: Tensor) -> Tensor:
    """Gaussian of five taps and sigma 8 along every axis, the border repeated."""
    offset = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (offset / _BLUR_SIGMA).square())
    weights = weights / weights.sum()
    for axis in range(2, x.ndim):
        length = x.shape[axis]
        place = torch.arange(length, device=x.device)
        taps = zip(range(-_BLUR_RADIUS, _BLUR_RADIUS + 1), weights, strict=True)
        parts = [w * x.index_select(axis, (place + shift).clamp(0, length - 1)) for shift, w in taps]
        x = torch.stack(parts).sum(0)
    return x
