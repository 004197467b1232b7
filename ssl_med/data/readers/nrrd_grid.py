"""The grid of an NRRD file: which axes are space, which is the channel, and where the voxels lie."""

import re
from dataclasses import dataclass

import numpy as np

from ssl_med.data.readers.geometry import NO_ORIENTATION, affine_from
from ssl_med.data.readers.text_header import numbers, whole_numbers
from ssl_med.data.record import SetAside, Unreadable

_TO_RAS = {
    "right-anterior-superior": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
}
_TO_RAS |= {"".join(word[0] for word in name.split("-")): signs for name, signs in _TO_RAS.items()}
_GUESSED = (-1, -1, 1)
"""Spaces that name no side of the body (``scanner-xyz``, ``3d-right-handed``, none) are taken for LPS, as ITK does."""

_SPACE_KINDS = {"domain", "space"}
_CHANNEL_KINDS = {"scalar", "list", "vector", "2-vector", "3-vector", "4-vector", "3-color", "rgb-color", "hsv-color"}
_CHANNEL_KINDS |= {"xyz-color", "4-color", "rgba-color", "covariant-vector", "3-gradient", "3-normal", "point", "stub"}
_MILLIMETRES = {"mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1e3, "um": 1e-3, "\xb5m": 1e-3}
_MILLIMETRES |= {"micron": 1e-3, "microns": 1e-3, "micrometer": 1e-3, "": 1.0}
_VECTOR = re.compile(r"none|\([^()]*\)")


@dataclass(frozen=True)
class Grid:
    """Axes and place of the voxels of a file.

    Attributes:
        sizes: of all axes, the fastest first.
        channel: axis that is not space; None if all are.
        alpha: the channel axis ends with transparency.
        affine: 4 x 4, stored voxel -> RAS world mm.
        warnings: what a person should know.
    """

    sizes: tuple[int, ...]
    channel: int | None
    alpha: bool
    affine: np.ndarray
    warnings: tuple[str, ...]

    @property
    def space(self) -> tuple[int, ...]:
        """Sizes of the axes of space, (x, y) or (x, y, z)."""
        return tuple(size for axis, size in enumerate(self.sizes) if axis != self.channel)

    def channels_last(self, stored: np.ndarray) -> np.ndarray:
        """Array of ``sizes`` -> (x, y[, z], c) without transparency."""
        if self.channel is None:
            return stored[..., None]
        array = np.moveaxis(stored, self.channel, -1)
        return array[..., :3] if self.alpha else array


def grid_of(fields: dict[str, str]) -> Grid:
    """Understand the axes of a header.

    Args:
        fields: text of each field by its name in lower case.

    Raises:
        Unreadable: a time series, axes that cannot be told apart, or no sound geometry.
    """
    axes = whole_numbers(fields.get("dimension", ""), "dimension", 1)[0]
    if not 2 <= axes <= 5:
        raise Unreadable(f"{axes} axes, expected 2 or 3 and a channel")
    sizes = whole_numbers(fields.get("sizes", ""), "sizes", axes)
    kinds = _kinds(fields, axes)
    directions = _directions(fields, axes)
    channel = _channel(kinds, directions, axes)
    space = [axis for axis in range(axes) if axis != channel]
    if len(space) not in (2, 3):
        raise Unreadable(f"{len(space)} axes of space, expected 2 or 3")
    affine, warnings = _affine(fields, directions, space, axes)
    alpha = channel is not None and kinds[channel] in ("rgba-color", "4-color") and sizes[channel] == 4
    return Grid(sizes, channel, alpha, affine, warnings)


def _kinds(fields: dict[str, str], axes: int) -> list[str]:
    words = fields.get("kinds", " ".join(["???"] * axes)).lower().split()
    if len(words) != axes:
        raise Unreadable(f"header field kinds has {len(words)} words for {axes} axes")
    kinds = ["" if word in ("???", "none") else word for word in words]
    if "time" in kinds:
        raise SetAside("time series")
    odd = [kind for kind in kinds if kind and kind not in _SPACE_KINDS | _CHANNEL_KINDS]
    if odd:
        raise Unreadable("an axis of a kind that holds no intensities (complex, matrix, quaternion or unknown)")
    return kinds


def _directions(fields: dict[str, str], axes: int) -> list[np.ndarray | None] | None:
    if "space directions" not in fields:
        return None
    words = _VECTOR.findall(fields["space directions"].lower())
    if len(words) != axes or _VECTOR.sub("", fields["space directions"].lower()).strip():
        raise Unreadable(f"header field space directions is not {axes} vectors")
    return [None if word == "none" else _vector(word, "space directions") for word in words]


def _vector(text: str, field: str) -> np.ndarray:
    if not (text.startswith("(") and text.endswith(")")):
        raise Unreadable(f"header field {field} is not a vector")
    return numbers(text[1:-1].replace(",", " "), field)


def _channel(kinds: list[str], directions: list[np.ndarray | None] | None, axes: int) -> int | None:
    by_kind = [axis for axis, kind in enumerate(kinds) if kind in _CHANNEL_KINDS]
    others = by_kind
    if directions is not None:
        others = [axis for axis, direction in enumerate(directions) if direction is None]
        if any(axis not in others for axis in by_kind) or any(kinds[axis] in _SPACE_KINDS for axis in others):
            raise Unreadable("kinds and space directions disagree on which axes are space")
    if len(others) > 1 or (not others and axes > 3):
        raise Unreadable(f"{axes} axes, which one is the channel cannot be told")
    return others[0] if others else None


def _affine(
    fields: dict[str, str], directions: list[np.ndarray | None] | None, space: list[int], axes: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    warnings: tuple[str, ...] = ()
    steps = _steps(fields, directions, space, axes)
    world = len(steps)
    name = fields.get("space", "").lower()
    signs = _TO_RAS.get(name, _GUESSED)
    if name not in _TO_RAS or directions is None:
        warnings += (NO_ORIENTATION,)
    origin = _vector(fields["space origin"], "space origin") if "space origin" in fields else np.zeros(world)
    if len(origin) != world:
        raise Unreadable(f"space origin has {len(origin)} numbers for a space of {world} dimensions")
    scale, units = _units(fields)
    affine = np.diag([*signs, 1.0]) @ affine_from(steps * scale, origin * scale)
    return affine, warnings + units


def _steps(
    fields: dict[str, str], directions: list[np.ndarray | None] | None, space: list[int], axes: int
) -> np.ndarray:
    """(world, axes of space): column i leads to the next voxel along axis i."""
    if directions is None:
        words = fields.get("spacings", " ".join(["1"] * axes)).split()
        if len(words) != axes:
            raise Unreadable(f"header field spacings has {len(words)} numbers for {axes} axes")
        return np.diag(numbers(" ".join(words[axis] for axis in space), "spacings"))
    columns = [direction for direction in directions if direction is not None]
    if len({len(column) for column in columns}) != 1 or len(columns[0]) not in (2, 3):
        raise Unreadable("space directions are not all of 2 or of 3 numbers")
    return np.stack(columns, axis=1)


def _units(fields: dict[str, str]) -> tuple[float, tuple[str, ...]]:
    found = {unit.strip().lower() for unit in re.findall(r'"([^"]*)"', fields.get("space units", ""))}
    if not found:
        return 1.0, ()
    if len(found) > 1 or not found <= set(_MILLIMETRES):
        raise Unreadable("space units are mixed or no lengths")
    scale = _MILLIMETRES[found.pop()]
    return scale, () if scale == 1.0 else (f"lengths given in units of {scale:g} mm, turned into mm",)
