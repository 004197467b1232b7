"""Changes of geometry, for images and volumes by the same code; axes count in memory order, (z, y, x) or (y, x)."""

import itertools
import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional

from ssl_med.errors import UserError
from ssl_med.ops.constants import constant
from ssl_med.ops.random import Draws
from ssl_med.ops.sampling import read_affine
from ssl_med.transforms.base import Params, SpatialTransform, check_range, spread
from ssl_med.transforms.box_corners import enclosing, mirrored, transposed

NEAREST = ("mask", "valid")
"""Keys whose values must not be mixed; the others are interpolated linearly."""


def flip_images(x: Shaped[Tensor, "b c *space"], chosen: Bool[Tensor, " b"], axis: int) -> Shaped[Tensor, "b c *space"]:
    """Turn the chosen images round along one spatial axis."""
    return torch.where(spread(chosen, x), x.flip(2 + axis), x)


def least(x: Shaped[Tensor, "b c *space"]) -> Shaped[Tensor, "b c *ones"]:
    """The smallest value of each channel of each image: what air looks like, however the intensities are scaled."""
    return x.amin(tuple(range(2, x.ndim)), keepdim=True)


class Flip(SpatialTransform):
    """Mirrors images along axes, without interpolation.

    Mind that the last axis of a RAS volume is left-right: mirroring it makes situs inversus and swaps labelled sides.

    Args:
        probability_per_axis: probability of a flip, drawn for each image and axis.
        axes: spatial axes that may flip, 0 = the first; all by default.
    """

    def __init__(self, probability_per_axis: float = 0.5, axes: list[int] | None = None) -> None:
        super().__init__()
        check_range("Flip: probability_per_axis", (probability_per_axis, probability_per_axis), 0.0, 1.0)
        self.probability_per_axis = probability_per_axis
        self.axes = axes

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """Which axes of each image flip, (b, n)."""
        count = image.ndim - 2
        axes = range(count) if self.axes is None else self.axes
        for axis in axes:
            if not 0 <= axis < count:
                raise UserError(f"Flip: axis {axis} is not one of the {count} spatial axes of {tuple(image.shape)}")
        allowed = constant([axis in axes for axis in range(count)], image.device)
        return {"flipped": draws.bernoulli(self.probability_per_axis, count) & allowed}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """The mirrored tensor."""
        for axis, chosen in enumerate(params["flipped"].unbind(1)):
            x = flip_images(x, chosen, axis)
        return x

    def corners(self, boxes: Tensor, params: Params, space: tuple[int, ...]) -> Tensor:
        """The mirrored boxes."""
        for axis, chosen in enumerate(params["flipped"].unbind(1)):
            boxes = mirrored(boxes, chosen, axis, space[axis])
        return boxes


class Rotate90(SpatialTransform):
    """Turns each image by 0, 90, 180 or 270 degrees in one plane, without interpolation.

    The plane is drawn for each image among those whose two axes have as many voxels and, to one per cent, the same
    spacing; an image without such a plane stays as it is.

    Args:
        planes: pairs of spatial axes to choose from; by default all whose axes have equal numbers of voxels.
        probability: share of the images that are turned (by 0 degrees in a quarter of the cases).
    """

    def __init__(self, planes: list[tuple[int, int]] | None = None, probability: float = 1.0) -> None:
        super().__init__(probability)
        self.planes = planes

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """Quarter turns per image, and a number per plane: the highest one of an allowed plane wins."""
        return {"turns": draws.integers(4), "order": draws.uniform(len(self._planes(tuple(image.shape[2:]))))}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """The turned tensor, like ``torch.rot90`` in each image's plane."""
        for a, b, turns in self._turns(tuple(x.shape[2:]), params):
            x = torch.where(spread(turns % 2 == 1, x), x.transpose(2 + a, 2 + b), x)
            x = flip_images(x, (turns == 1) | (turns == 2), a)
            x = flip_images(x, (turns == 2) | (turns == 3), b)
        return x

    def corners(self, boxes: Tensor, params: Params, space: tuple[int, ...]) -> Tensor:
        """The turned boxes."""
        for a, b, turns in self._turns(space, params):
            boxes = transposed(boxes, turns % 2 == 1, a, b)
            boxes = mirrored(boxes, (turns == 1) | (turns == 2), a, space[a])
            boxes = mirrored(boxes, (turns == 2) | (turns == 3), b, space[b])
        return boxes

    def _turns(self, space: tuple[int, ...], params: Params) -> Iterator[tuple[int, int, Tensor]]:
        """Both axes of each plane, and the quarter turns of every image in it, (b,)."""
        planes = self._planes(space)
        first, second = ([plane[end] for plane in planes] for end in (0, 1))
        same = torch.isclose(params["spacing"][:, first], params["spacing"][:, second], rtol=0.01, atol=0.0)
        drawn = torch.where(same, params["order"], -1.0)
        turned = (drawn == drawn.amax(1, keepdim=True)) & same
        for (a, b), turns in zip(planes, (params["turns"][:, None] * turned).unbind(1), strict=True):
            yield a, b, turns

    def _planes(self, space: tuple[int, ...]) -> list[tuple[int, int]]:
        equal = [plane for plane in itertools.permutations(range(len(space)), 2) if space[plane[0]] == space[plane[1]]]
        planes = [(a, b) for a, b in equal if a < b] if self.planes is None else [(a, b) for a, b in self.planes]
        if not planes or not set(planes) <= set(equal):
            raise UserError(
                f"Rotate90 turns between two axes of equal length; planes {self.planes} do not fit images of {space} "
                "voxels: name other planes, or crop to equal lengths first"
            )
        return planes


class RandomResizedCrop(SpatialTransform):
    """Cuts a box out of each image and resizes it (Inception, arXiv 1409.4842; the law of torchvision, for any rank).

    The box has a share of the image's volume drawn uniformly from ``scale``. Its proportions are those of the output,
    stretched so that the ratio of any later to any earlier axis lies in ``ratio``: the logarithms of the stretches are
    uniform over all that keep to this. Lengths are rounded to voxels, and the place is uniform. Ten boxes are tried; if
    none fits, the largest central box that keeps the ratios is taken. For a square output this is torchvision's law,
    where the ratio is width / height. There is no smoothing before a reduction. ``spacing`` becomes that of the new
    voxels.

    Args:
        size: output voxels per axis; by default those of the input.
        scale: range of the share of the volume (of the area in 2D).
        ratio: range of the ratio between two axes, relative to the output's; it must include 1.
    """

    keys = (*SpatialTransform.keys, "spacing")
    attempts = 10

    def __init__(
        self,
        size: list[int] | None = None,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (0.75, 1.3333),
    ) -> None:
        super().__init__()
        check_range("RandomResizedCrop: scale", scale, 0.0, 1.0)
        check_range("RandomResizedCrop: ratio", ratio, 1e-3, 1e3)
        if not ratio[0] <= 1 <= ratio[1]:
            raise UserError(f"RandomResizedCrop: ratio must include 1, got {ratio}")
        self.size, self.scale, self.ratio = size, scale, ratio

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """First voxel and lengths of each image's box, and the zoom from old to new voxels, all (b, n)."""
        space = constant(image.shape[2:], image.device, torch.float32)
        size = constant(self._size(image), image.device, torch.float32)
        stretch, kept = self._stretches(draws, len(size))
        share = draws.uniform(self.attempts, low=self.scale[0], high=self.scale[1])
        unstretched = (share.log() + (space / size).log().sum())[..., None] / len(size)
        lengths = torch.exp(unstretched + stretch + size.log()).round()
        fits = kept & ((lengths >= 1) & (lengths <= space)).all(-1)
        lengths = lengths[torch.arange(len(image), device=image.device), fits.int().argmax(1)]  # the first that fits
        found = fits.any(1)[:, None]
        lengths = torch.where(found, lengths, self._largest(space, size))
        free = space - lengths
        place = torch.minimum((draws.uniform(len(size)) * (free + 1)).floor(), free)
        return {
            "start": torch.where(found, place, (free / 2).floor()),
            "lengths": lengths,
            "zoom": lengths / size,
        }

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """The box in its new size; the new spacing."""
        if key == "spacing":
            return x * params["zoom"]
        space = constant(x.shape[2:], x.device, torch.float32)
        centre = (2 * params["start"] + params["lengths"]) / space - 1
        matrix = torch.cat([torch.diag_embed(params["lengths"] / space), centre[..., None]], -1)
        return read_affine(x, matrix, self._size(x), "nearest" if key in NEAREST else "bilinear")

    def corners(self, boxes: Tensor, params: Params, space: tuple[int, ...]) -> Tensor:
        """The boxes in voxels of the resized crop."""
        return (boxes - params["start"].repeat(1, 2)[:, None]) / params["zoom"].repeat(1, 2)[:, None]

    def _size(self, x: Tensor) -> list[int]:
        size = list(x.shape[2:]) if self.size is None else self.size
        if len(size) != x.ndim - 2:
            raise UserError(f"RandomResizedCrop: size {size} does not fit images of {tuple(x.shape[2:])} voxels")
        return size

    def _stretches(self, draws: Draws, count: int) -> tuple[Tensor, Tensor]:
        """Logarithms of the stretch of each axis, of sum 0, (b, attempts, n), and which of them keep every ratio."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        first = -draws.uniform(self.attempts, count - 1, low=low, high=high)  # relative to the last axis
        later_to_earlier = [first[..., a] - first[..., b] for b, a in itertools.combinations(range(count - 1), 2)]
        kept = torch.ones_like(first[..., 0], dtype=torch.bool)
        for ratio in later_to_earlier:
            kept = kept & (ratio >= low) & (ratio <= high)
        stretch = functional.pad(first, (0, 1))
        return stretch - stretch.mean(-1, keepdim=True), kept

    def _largest(self, space: Tensor, size: Tensor) -> Tensor:
        relative = space / size
        limit = relative.min() * min(self.ratio[1], 1 / self.ratio[0])
        return (torch.minimum(relative, limit) * size).round().clamp_min(1)


class Affine(SpatialTransform):
    """Rotates, scales, shears and shifts each image about its centre, in millimetres where the batch has a spacing.

    What comes from outside the image is the image's least value in each channel (air, whatever the intensities were
    scaled to), 0 in the saliency and the mask (background), and False in ``valid``. A batch without ``valid`` does not
    get one, so that nothing marks its corners. Spacing stays: a scale is a change of the anatomy.

    Args:
        rotation: largest angle in degrees, uniform in both directions; in 3D about an axis of random direction.
        scale: range of the size of what is shown, log-uniform; above 1 enlarges.
        shear: largest shift along an axis per length along a later axis, uniform in both directions.
        translation: largest shift as a share of each axis, uniform in both directions.
        probability: share of the images that are changed.
    """

    def __init__(
        self,
        rotation: float = 15.0,
        scale: tuple[float, float] = (0.9, 1.1),
        shear: float = 0.0,
        translation: float = 0.0,
        probability: float = 1.0,
    ) -> None:
        super().__init__(probability)
        check_range("Affine: scale", scale, 1e-3)
        for name, value in (("rotation", rotation), ("shear", shear)):
            check_range(f"Affine: {name}", (0.0, value), 0.0)
        if not 0 <= translation <= 1:  # more moves every image out of sight, which no loss tells
            raise UserError(f"Affine: translation is a share of each axis, 0 to 1, got {translation}: no voxels, no mm")
        self.rotation, self.scale, self.shear, self.translation = rotation, scale, shear, translation

    def sample(self, image: Tensor, draws: Draws) -> Params:
        """Output -> input map about the centre: ``matrix`` (b, n, n) in mm, ``shift`` (b, n) in shares of the axes."""
        count = image.ndim - 2
        turn = self._rotations(draws, count)
        strength = draws.uniform(count, count, low=-self.shear, high=self.shear)
        shear = torch.eye(count, device=image.device) + strength.triu(1)
        size = draws.uniform(low=math.log(self.scale[0]), high=math.log(self.scale[1])).exp()
        matrix = (shear[..., None] * turn[:, None]).sum(2) / size[:, None, None]  # a product in full precision
        return {"matrix": matrix, "shift": draws.uniform(count, low=-self.translation, high=self.translation)}

    def transform(self, x: Tensor, params: Params, key: str) -> Tensor:
        """The moved tensor."""
        space = list(x.shape[2:])
        extent = constant(space, x.device) * params["spacing"]
        matrix = params["matrix"] * extent[:, None, :] / extent[:, :, None]
        matrix = torch.cat([matrix, 2 * params["shift"][..., None]], -1)
        fill = least(x).flatten(1) if key == "image" else x.new_zeros(x.shape[:2], dtype=torch.float32)
        return read_affine(x, matrix, space, "nearest" if key in NEAREST else "bilinear", fill)

    def corners(self, boxes: Tensor, params: Params, space: tuple[int, ...]) -> Tensor:
        """The straight boxes around the moved ones."""
        size = constant(space, boxes.device, boxes.dtype)
        step = params["spacing"]
        back = torch.linalg.inv(params["matrix"]) * step[:, None, :] / step[:, :, None]
        middle = size / 2
        return enclosing(boxes, back, middle - (back * (middle + params["shift"] * size)[:, None]).sum(-1))

    def _rotations(self, draws: Draws, count: int) -> Tensor:
        angle = torch.deg2rad(draws.uniform(low=-self.rotation, high=self.rotation))
        if count == 3:
            return rotations(angle, draws.normal(3))
        cosine, sine = angle.cos(), angle.sin()
        return torch.stack([cosine, -sine, sine, cosine], -1).reshape(-1, 2, 2)


def rotations(angle: Float[Tensor, " b"], axis: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3 3"]:
    """Rotations by angles in radians about axes of any length (Rodrigues' formula)."""
    axis = axis / axis.norm(dim=1, keepdim=True).clamp_min(1e-12)
    a, b, c = axis.unbind(1)
    zero = torch.zeros_like(a)
    cross = torch.stack([zero, -c, b, c, zero, -a, -b, a, zero], 1).reshape(-1, 3, 3)
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    outer = axis[:, :, None] * axis[:, None, :]
    return cosine * torch.eye(3, device=angle.device) + sine * cross + (1 - cosine) * outer
