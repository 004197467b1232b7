"""Changes of grey values; geometry, masks and saliency stay as they are.

Statistics (minimum, maximum, mean) are those of one image and one channel over all its voxels, padding included.
Values are in the units that the image has in the batch. CT is in Hounsfield units, an absolute scale (air -1000,
water 0): what shifts or bends it takes away information that MR, ultrasound or X-ray images do not have to begin with.
"""

import torch
from torch import Tensor

from ssl_med.errors import UserError
from ssl_med.ops.filters import cosine_field, gaussian_blur, gaussian_radius
from ssl_med.ops.random import Draws
from ssl_med.transforms.base import Params, Transform, check_range, spread


def _space(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


class GaussianNoise(Transform):
    """Adds white noise to every voxel. Safe for all modalities: CT values keep their meaning.

    Args:
        sd: range of the noise's standard deviation, in units of the image.
        probability: share of the images that are changed.
    """

    def __init__(self, sd: tuple[float, float] = (0.0, 0.1), probability: float = 1.0) -> None:
        super().__init__(probability)
        check_range("GaussianNoise: sd", sd, 0.0)
        self.sd = sd

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """A noise level per image and a number per voxel."""
        low, high = self.sd
        return {"sd": draws.uniform(low=low, high=high), "noise": draws.normal(*image.shape[1:])}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """Image plus noise."""
        return x + (spread(params["sd"], x) * params["noise"]).to(x.dtype)


class GaussianBlur(Transform):
    """Blurs with a Gaussian along every axis. Safe for all modalities: CT values keep their meaning.

    Args:
        sigma: range of the Gaussian's standard deviation, in voxels.
        probability: share of the images that are changed.
    """

    def __init__(self, sigma: tuple[float, float] = (0.5, 1.5), probability: float = 1.0) -> None:
        super().__init__(probability)
        check_range("GaussianBlur: sigma", sigma, 0.0)
        self.sigma = sigma

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """A width per image."""
        return {"sigma": draws.uniform(low=self.sigma[0], high=self.sigma[1])}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """The blurred image."""
        return gaussian_blur(x, params["sigma"], gaussian_radius(self.sigma[1]))


class Gamma(Transform):
    """Bends the grey scale, minimum and maximum held: ``low + span * ((x - low) / span) ** gamma``.

    Safe for modalities without an absolute scale (MR, ultrasound, X-ray, photographs); not for CT whose Hounsfield
    units shall keep their meaning.

    Args:
        log_gamma: range of the natural logarithm of gamma; 0 changes nothing.
        probability: share of the images that are changed.
    """

    def __init__(self, log_gamma: tuple[float, float] = (-0.3, 0.3), probability: float = 1.0) -> None:
        super().__init__(probability)
        check_range("Gamma: log_gamma", log_gamma)
        self.log_gamma = log_gamma

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """An exponent per image."""
        return {"gamma": draws.uniform(low=self.log_gamma[0], high=self.log_gamma[1]).exp()}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """The image with its grey scale bent."""
        low, high = x.amin(_space(x), keepdim=True), x.amax(_space(x), keepdim=True)
        span = (high - low).clamp_min(torch.finfo(x.dtype).tiny)
        unit = (x - low) / span
        # exp(g log u), not u ** g: the bits of pow depend on where in the batch a voxel stands
        return low + span * torch.exp(spread(params["gamma"], x).to(x.dtype) * unit.log())


class Contrast(Transform):
    """Stretches the values around the mean: ``mean + factor * (x - mean)``.

    Safe for modalities without an absolute scale; not for CT whose Hounsfield units shall keep their meaning.

    Args:
        factor: range of the factor; 1 changes nothing.
        probability: share of the images that are changed.
    """

    def __init__(self, factor: tuple[float, float] = (0.75, 1.25), probability: float = 1.0) -> None:
        super().__init__(probability)
        check_range("Contrast: factor", factor, 0.0)
        self.factor = factor

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """A factor per image."""
        return {"factor": draws.uniform(low=self.factor[0], high=self.factor[1])}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """The stretched image."""
        return torch.lerp(x.mean(_space(x), keepdim=True), x, spread(params["factor"], x).to(x.dtype))


class Brightness(Transform):
    """Adds one number to all voxels of an image.

    Safe for modalities without an absolute scale; not for CT whose Hounsfield units shall keep their meaning.

    Args:
        offset: range of the number, in units of the image; 0 changes nothing.
        probability: share of the images that are changed.
    """

    def __init__(self, offset: tuple[float, float] = (-0.1, 0.1), probability: float = 1.0) -> None:
        super().__init__(probability)
        check_range("Brightness: offset", offset)
        self.offset = offset

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """An offset per image."""
        return {"offset": draws.uniform(low=self.offset[0], high=self.offset[1])}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """The brighter or darker image."""
        return x + spread(params["offset"], x).to(x.dtype)


class BiasField(Transform):
    """Multiplies the image by a smooth field, as the coils of an MR scanner do.

    The field is ``exp(s * f)`` with s uniform in [0, strength) and f a random sum of low cosines scaled to a largest
    absolute value of one, without its constant; it is the same for all channels. It multiplies what lies above the
    image's minimum, which stands for no signal also after normalisation. Meant for MR; ultrasound and X-ray images
    bear it, CT has no such field.

    Args:
        strength: bound of the field's logarithm: 0.3 keeps it within 0.74 and 1.35.
        order: number of cosines along each axis, the constant included; 2 or more.
        probability: share of the images that are changed.
    """

    def __init__(self, strength: float = 0.3, order: int = 3, probability: float = 1.0) -> None:
        super().__init__(probability)
        check_range("BiasField: strength", (0.0, strength), 0.0)
        if order < 2:
            raise UserError(f"BiasField: order counts cosines per axis and must be 2 or more, got {order}")
        self.strength, self.order = strength, order

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """A strength and cosine coefficients per image."""
        coefficients = draws.normal(*[self.order] * (image.ndim - 2))
        coefficients.flatten(1)[:, 0] = 0  # the constant would only change the contrast
        return {"strength": draws.uniform(high=self.strength), "coefficients": coefficients}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """The image under its field."""
        field = cosine_field(params["coefficients"], tuple(x.shape[2:]))
        largest = field.abs().amax(_space(x), keepdim=True).clamp_min(torch.finfo(field.dtype).tiny)
        gain = torch.exp(spread(params["strength"], x) * field / largest).to(x.dtype)
        low = x.amin(_space(x), keepdim=True)
        return low + (x - low) * gain
