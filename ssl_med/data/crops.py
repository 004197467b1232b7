"""Where a crop lies in its image: straight and cut along the voxels, or turned, zoomed and at a spacing of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ssl_med.data.boxes import moved
from ssl_med.data.sampler import crop_corner
from ssl_med.errors import UserError
from ssl_med.transforms.base import check_range

_TRIES = 10


@dataclass(frozen=True)
class CropAffine:
    """Turns and zooms crops while they are read, so that no corner is empty as long as the image has voxels there.

    The law is that of :class:`ssl_med.transforms.Affine`, applied on the CPU: a region somewhat larger than the crop is
    read, and interpolated before it is scaled and clipped.

    Args:
        rotate: largest angle in degrees, uniform in both directions; in 3D about an axis of random direction.
        scale: range of the size of what is shown, log-uniform; above 1 enlarges.
    """

    rotate: float = 15.0
    scale: tuple[float, float] = (0.9, 1.1)

    def __post_init__(self) -> None:
        check_range("data.affine: rotate", (0.0, self.rotate), 0.0)
        check_range("data.affine: scale", (self.scale[0], self.scale[1]), 1e-3)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "CropAffine":
        """From plain data, as it stands in a config.

        Raises:
            UserError: a setting that does not exist.
        """
        if unknown := set(settings) - {"rotate", "scale"}:
            raise UserError(f"data.affine: {sorted(unknown)} are no settings, it takes rotate and scale")
        return cls(**{**settings, **({"scale": tuple(settings["scale"])} if "scale" in settings else {})})

    def matrix(self, rng: np.random.Generator, axes: int) -> np.ndarray:
        """A random map from crop mm to image mm about the centre, (axes, axes) float64."""
        angle = np.deg2rad(rng.uniform(-self.rotate, self.rotate))
        size = np.exp(rng.uniform(*np.log(self.scale)))
        return rotation(angle, rng.normal(size=3) if axes == 3 else None) / size


def rotation(angle: float, axis: np.ndarray | None) -> np.ndarray:
    """Rotation by an angle in radians about an axis of any length (Rodrigues' formula); in the plane without one."""
    sine, cosine = np.sin(angle), np.cos(angle)
    if axis is None:
        return np.array([[cosine, -sine], [sine, cosine]])
    unit = axis / np.linalg.norm(axis)
    cross = np.cross(np.eye(3), unit)  # its product with a vector is unit x vector
    return cosine * np.eye(3) + sine * cross + (1 - cosine) * np.outer(unit, unit)


@dataclass(frozen=True)
class Region:
    """Which voxels of an image become a sample.

    Attributes:
        size: voxels of the sample.
        corner, read: first voxel and number of voxels to read, inside the image; where the sample is longer than what
            is read, the rest is padded behind.
        spacing: mm per voxel of the sample.
        matrix, offset: the sample's voxel o shows voxel ``matrix @ o + offset`` of what was read, (n, n) and (n,)
            float64; None for a straight crop.
    """

    size: list[int]
    corner: list[int]
    read: list[int]
    spacing: list[float]
    matrix: np.ndarray | None = None
    offset: np.ndarray | None = None

    @property
    def padded(self) -> bool:
        """A part of the sample lies behind the image."""
        return self.matrix is None and self.read != self.size


def straight_region(space: list[int], spacing: list[float], corner: list[int], size: list[int]) -> Region:
    """A crop along the voxels of an image of ``space`` voxels."""
    read = [min(s, n - c) for s, n, c in zip(size, space, corner, strict=True)]
    return Region(size, corner, read, spacing)


def turned_region(
    space: list[int],
    spacing: list[float],
    size: list[int],
    new_spacing: list[float],
    turn: np.ndarray,
    centre: np.ndarray,
) -> Region:
    """A crop with voxels of ``new_spacing`` mm, turned by ``turn`` (mm to mm) about ``centre`` (in voxels)."""
    matrix = to_voxels(turn, spacing, new_spacing)
    middle = (np.array(size) - 1) / 2
    reach = np.abs(matrix) @ middle
    low = np.clip(np.floor(centre - reach), 0, np.array(space) - 1).astype(int)
    high = np.clip(np.ceil(centre + reach), 0, np.array(space) - 1).astype(int)
    offset = centre - matrix @ middle - low
    return Region(size, low.tolist(), (high - low + 1).tolist(), new_spacing, matrix, offset)


def to_voxels(turn: np.ndarray, spacing: list[float], new_spacing: list[float]) -> np.ndarray:
    """The map of mm as one from the crop's to the image's voxels."""
    return turn * np.array(new_spacing) / np.array(spacing)[:, None]


def crop_centre(
    rng: np.random.Generator, space: list[int], size: list[int], matrix: np.ndarray, around: list[int] | None = None
) -> np.ndarray:
    """Centre of a turned crop, in voxels of the image.

    Uniform among the places where all of the crop shows the image; the middle of an axis that is too short. With
    ``around`` the crop shows that voxel at a random place, the best of ten for showing the image everywhere.
    """
    middle, last = (np.array(size) - 1) / 2, np.array(space) - 1
    reach = np.abs(matrix) @ middle
    low, high = np.minimum(reach, last / 2), np.maximum(last - reach, last / 2)
    if around is None:
        return rng.uniform(low, high)
    places = np.array(around) + (rng.uniform(-1, 1, (_TRIES, len(size))) * middle) @ matrix.T
    outside = np.maximum(0, np.maximum(low - places, places - high)).sum(1)
    return places[outside.argmin()]


def random_region(
    rng: np.random.Generator,
    space: list[int],
    spacing: list[float],
    size: list[int],
    new_spacing: list[float] | None = None,
    turn: np.ndarray | None = None,
    around: list[int] | None = None,
) -> Region:
    """A random crop: straight where neither another spacing nor a turn is asked for."""
    if new_spacing is None and turn is None:
        return straight_region(space, spacing, crop_corner(rng, space, size, around), size)
    turn, new_spacing = np.eye(len(size)) if turn is None else turn, new_spacing or spacing
    centre = crop_centre(rng, space, size, to_voxels(turn, spacing, new_spacing), around)
    return turned_region(space, spacing, size, new_spacing, turn, centre)


def whole_region(space: list[int], spacing: list[float], size: list[int], new_spacing: list[float]) -> Region:
    """A whole image at another spacing, its first voxel's outer face in place; what is too long is padded behind."""
    ratio = np.array(new_spacing) / np.array(spacing)
    return Region(size, [0] * len(space), list(space), new_spacing, np.diag(ratio), (ratio - 1) / 2)


def boxes_inside(boxes: np.ndarray, region: Region, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The boxes of which a crop shows something, clipped to it.

    One whose centre lies outside has the class -1 there: it is no background, and too little of it is seen to learn it.

    Args:
        boxes: (m, 2n + 1): lowest and highest corners in voxels of the image, then the class, -1 where it is not known
            whether there is anything; a box around voxel 3 alone goes from 3 to 4.
        region: the crop. A turned box becomes the straight one that encloses it.
        most: lines of the answer; what is not needed is 0, with the class -1.

    Returns:
        (most, 2n) float32 in voxels of the crop, and the classes (most,).
    """
    axes = len(region.size)
    corners = boxes[:, :-1] - np.tile(np.array(region.corner, float), 2)
    if region.matrix is not None and region.offset is not None:
        back = np.linalg.inv(region.matrix)
        corners = moved(corners, back, 0.5 - back @ (0.5 + region.offset))
    centre = (corners[:, :axes] + corners[:, axes:]) / 2
    whole = ((centre >= 0) & (centre < region.size)).all(1)
    shown = np.clip(corners, 0, np.tile(region.size, 2))
    kept = whole | (shown[:, axes:] > shown[:, :axes]).all(1)
    found, classes = np.zeros((most, 2 * axes), np.float32), np.full(most, -1, np.int64)
    found[: kept.sum()] = shown[kept]
    classes[: kept.sum()] = np.where(whole, boxes[:, -1], -1)[kept]
    return torch.from_numpy(found), torch.from_numpy(classes)
