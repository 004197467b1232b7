"""Changes of colour images, as DINO and SimCLR make them: red, green and blue in this order, values from 0 to 1.

An image with values outside 0 to 1 is handled in the range it has, so that nothing is cut off that was there.
"""

import torch
from torch import Tensor

from ssl_med.errors import UserError
from ssl_med.ops.random import Draws
from ssl_med.transforms.base import Params, Transform, check_range, spread

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


def grey_of(x: Tensor, name: str) -> Tensor:
    """Grey value of each pixel (b, 1, \\*space).

    Raises:
        UserError: the image has not three channels.
    """
    if x.shape[1] != 3:
        raise UserError(
            f"{name} changes colours and needs 3 channels (red, green, blue), got {x.shape[1]}: leave it out"
        )
    red, green, blue = x.split(1, 1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def reach(x: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest value an image may take, (b, 1, ...): 0 and 1, or further where it already goes further."""
    axes = tuple(range(1, x.ndim))
    return x.amin(axes, keepdim=True).clamp(max=0), x.amax(axes, keepdim=True).clamp(min=1)


def turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Move every hue by ``turn`` (b,) of the colour circle; the largest and smallest of the three values stay.

    The HSV model (Smith, SIGGRAPH 1978), written so that it holds for any range of values.
    """
    red, green, blue = x.split(1, 1)
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = high - low
    safe = torch.where(chroma == 0, 1.0, chroma)
    hue = torch.where(high == red, (green - blue) / safe, 2 + (blue - red) / safe)
    hue = torch.where((high == blue) & (high != red) & (high != green), 4 + (red - green) / safe, hue)
    hue = hue + 6 * spread(turn, x).to(x.dtype)
    sextant = torch.cat([hue, hue + 4, hue + 2], 1)  # each channel's place on the circle
    return low + chroma * ((torch.remainder(sextant, 6) - 3).abs() - 1).clamp(0, 1)


class ColourJitter(Transform):
    """Changes brightness, contrast, saturation and hue, in this order (the original's order is random).

    DINO (arXiv 2104.14294) uses 0.4, 0.4, 0.2, 0.1 on 80 % of the images. Dermatology, fundus, endoscopy and histology
    bear it; the channels of other images are no colours.

    Args:
        brightness: the factor is uniform in [1 - brightness, 1 + brightness].
        contrast: likewise, about the mean grey value.
        saturation: likewise, about each pixel's grey value.
        hue: largest move on the colour circle, in turns, up to 0.5.
        probability: share of the images that are changed.
    """

    def __init__(
        self,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.2,
        hue: float = 0.1,
        probability: float = 1.0,
    ) -> None:
        super().__init__(probability)
        for name, value, most in (
            ("brightness", brightness, 1),
            ("contrast", contrast, 1),
            ("saturation", saturation, 1),
            ("hue", hue, 0.5),
        ):
            check_range(f"ColourJitter: {name}", (0.0, value), 0.0, most)
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """Three factors and a turn per image."""
        grey_of(image[:0], "ColourJitter")
        names = {"brightness": self.brightness, "contrast": self.contrast, "saturation": self.saturation}
        factors = {name: draws.uniform(low=1 - width, high=1 + width) for name, width in names.items()}
        return {**factors, "hue": draws.uniform(low=-self.hue, high=self.hue)}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """The image in other colours."""
        kind, x = x.dtype, x.float()
        low, high = reach(x)
        bright, contrast, saturation = (spread(params[name], x) for name in ("brightness", "contrast", "saturation"))
        x = (low + bright * (x - low)).clamp(low, high)
        x = torch.lerp(grey_of(x, "ColourJitter").mean(tuple(range(1, x.ndim)), keepdim=True), x, contrast)
        x = x.clamp(low, high)
        x = torch.lerp(grey_of(x, "ColourJitter").expand_as(x), x, saturation).clamp(low, high)
        return turn_hue(x, params["hue"]).to(kind)


class Grayscale(Transform):
    """Takes the colour out of an image, which keeps its three channels.

    Args:
        probability: share of the images that are changed; 0.2 is DINO's.
    """

    def __init__(self, probability: float = 0.2) -> None:
        super().__init__(probability)

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """Nothing is drawn: the law is the same for all images that are chosen."""
        grey_of(image[:0], "Grayscale")
        return {}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """The grey image."""
        return grey_of(x, "Grayscale").expand_as(x)


class Solarize(Transform):
    """Inverts all values from a threshold on.

    Not for CT, where a bright voxel must stay bright; on grey images it makes bone look like air.

    Args:
        threshold: share of the range from where on values are inverted.
        probability: share of the images that are changed; 0.2 is DINO's, for its second global view.
    """

    def __init__(self, threshold: float = 0.5, probability: float = 0.2) -> None:
        super().__init__(probability)
        check_range("Solarize: threshold", (threshold, threshold), 0.0, 1.0)
        self.threshold = threshold

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """Nothing is drawn: the law is the same for all images that are chosen."""
        return {}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """``low + high - x`` where x is bright, for the range the image may take."""
        low, high = reach(x)
        return torch.where(x >= low + self.threshold * (high - low), low + high - x, x)
