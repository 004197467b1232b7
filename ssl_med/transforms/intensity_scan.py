"""Changes of grey values that scans bear, as in 3DINO (arXiv 2501.11755): sharpening, histogram shift, ringing."""

import math

import torch
from torch import Tensor

from ssl_med.errors import UserError
from ssl_med.ops.filters import gaussian_blur, gaussian_radius
from ssl_med.ops.random import Draws
from ssl_med.transforms.base import Params, Transform, check_range, spread


class Sharpen(Transform):
    """Adds to an image what a Gaussian blur would take away (unsharp masking).

    The mean stays, so CT values keep their meaning in regions larger than the blur.

    Args:
        amount: range of the factor on what is added; 0 changes nothing.
        sigma: of the blur, in voxels.
        probability: share of the images that are changed.
    """

    def __init__(self, amount: tuple[float, float] = (0.5, 2.0), sigma: float = 1.0, probability: float = 1.0) -> None:
        super().__init__(probability)
        check_range("Sharpen: amount", amount, 0.0)
        check_range("Sharpen: sigma", (sigma, sigma), 1e-3)
        self.amount, self.sigma = amount, sigma

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """An amount per image."""
        return {"amount": draws.uniform(low=self.amount[0], high=self.amount[1])}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """The sharpened image."""
        width = torch.full_like(params["amount"], self.sigma)
        detail = x - gaussian_blur(x, width, gaussian_radius(self.sigma))
        return x + spread(params["amount"], x).to(x.dtype) * detail


class HistogramShift(Transform):
    """Bends the grey scale along a random rising line through control points, minimum and maximum held.

    Safe for modalities without an absolute scale (MR, ultrasound, X-ray); not for CT whose Hounsfield units shall keep
    their meaning. Each inner point moves by up to half the way to its neighbours, so that the order of grey values
    stays (MONAI's RandHistogramShift moves them anywhere between the neighbours' new places, to the same end).

    Args:
        points: control points, the two ends included; 3 or more.
        probability: share of the images that are changed.
    """

    def __init__(self, points: int = 10, probability: float = 1.0) -> None:
        super().__init__(probability)
        if points < 3:
            raise UserError(f"HistogramShift: points must be 3 or more, the ends included, got {points}")
        self.points = points

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """New places of the control points of each image, (b, points), rising from 0 to 1."""
        inner = self.points - 2
        moved = draws.uniform(inner, low=-0.5, high=0.5) / (inner + 1)
        even = torch.linspace(0, 1, self.points, device=image.device)
        return {"place": even + torch.nn.functional.pad(moved, (1, 1))}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """The image with its grey scale bent."""
        axes = tuple(range(2, x.ndim))
        low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
        span = (high - low).clamp_min(torch.finfo(x.dtype).tiny)
        position = (x - low).float() / span.float() * (self.points - 1)
        cell = position.floor().clamp(0, self.points - 2)
        place = params["place"]
        index = cell.long().flatten(1)
        below, above = (place.gather(1, index + step).view_as(position) for step in (0, 1))
        return low + span * torch.lerp(below, above, position - cell).to(x.dtype)


class GibbsNoise(Transform):
    """Cuts the highest spatial frequencies off sharply, which makes edges ring as in MR with few phase encodings.

    Everything outside a sphere in frequency space goes; its radius is (1 - alpha) of the distance of the highest
    frequency. Meant for MR; the mean stays.

    Args:
        alpha: range of the strength, 0 (nothing) to 1 (only the mean is left).
        probability: share of the images that are changed.
    """

    def __init__(self, alpha: tuple[float, float] = (0.3, 0.7), probability: float = 1.0) -> None:
        super().__init__(probability)
        check_range("GibbsNoise: alpha", alpha, 0.0, 1.0)
        self.alpha = alpha

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """A strength per image."""
        return {"alpha": draws.uniform(low=self.alpha[0], high=self.alpha[1])}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """The image without its highest frequencies."""
        axes = tuple(range(2, x.ndim))
        space = x.shape[2:]
        squares = torch.zeros((), device=x.device)
        for axis, size in enumerate(space):
            line = torch.fft.fftfreq(size, 1 / size, device=x.device)
            if axis == len(space) - 1:
                line = line[: size // 2 + 1].abs()  # the half that a real image needs
            squares = squares + line.square().reshape([-1 if a == axis else 1 for a in range(len(space))])
        corner = math.sqrt(sum((size / 2) ** 2 for size in space))
        kept = squares.sqrt() <= spread((1 - params["alpha"]) * corner, x)
        spectrum = torch.fft.rfftn(x.float(), dim=axes)
        return torch.fft.irfftn(spectrum * kept, s=space, dim=axes).to(x.dtype)
