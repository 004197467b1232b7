"""How images are kept in a store: file format, grid and number type. Values that nobody asked to change stay exact."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ssl_med.data.arrays import Format
from ssl_med.data.maps import MEASURES, Measure
from ssl_med.data.record import Image, Unreadable
from ssl_med.errors import UserError

_LEVELS = 65535


@dataclass(frozen=True)
class Settings:
    """How images are stored.

    Attributes:
        format: ``b2nd`` (compressed chunks) or ``npy`` (bare voxels).
        crop: voxels along an axis of the crops that will be read; chunks follow it. None: 96 in 3D, 224 in 2D.
        dtype: ``same`` keeps every value; ``int16`` stores floats as 65536 even steps between their smallest and
            largest value, with an error of at most half a step: (maximum - minimum) / 131070.
        spacing: mm along space, in memory order (z, y, x); a 0 keeps that axis; empty keeps all.
        order: of the interpolation to another spacing: 0, 1 or 3, see :mod:`ssl_med.data.resample`.
        orientation: of volumes, RAS or another one.
        saliency: what a map that is stored beside each image says, see :mod:`ssl_med.data.maps`; ``file`` for maps that
            the records bring; empty for no map.
    """

    format: Format = "b2nd"
    crop: int | None = None
    dtype: Literal["same", "int16"] = "same"
    spacing: tuple[float, ...] = ()
    order: Literal[0, 1, 3] = 1
    orientation: str = "RAS"
    saliency: Measure | Literal["file", ""] = field(default="", repr=False)

    @property
    def moves(self) -> bool:
        """Images get another grid."""
        return bool(self.spacing) or self.orientation != "RAS"

    def spacing_of(self, axes: int) -> tuple[float, ...]:
        """The spacing asked for along each of so many axes; one number counts for all. Empty where it does not fit."""
        asked = self.spacing * (axes if len(self.spacing) == 1 else 1)
        return asked if len(asked) == axes else ()

    def check(self) -> "Settings":
        """Refuse what cannot be done, before anything is read.

        Raises:
            UserError: which setting, and what was expected.
        """
        if self.format not in ("b2nd", "npy") or self.dtype not in ("same", "int16") or self.order not in (0, 1, 3):
            raise UserError(f"{self}: format is b2nd or npy, dtype is same or int16, order is 0, 1 or 3")
        if self.crop is not None and self.crop < 1:
            raise UserError(f"crop {self.crop}: expected 1 voxel or more along an axis")
        if any(not 0 <= mm < 1000 for mm in self.spacing):
            raise UserError(f"spacing {self.spacing}: expected mm along each axis (z, y, x), 0 to keep one")
        if self.saliency not in ("", "file", *MEASURES):
            raise UserError(f"saliency {self.saliency!r}: expected file or one of {', '.join(MEASURES)}")
        if self.orientation != "RAS":
            from ssl_med.data.resample import orientation

            orientation(self.orientation)
        return self


DEFAULTS = Settings()


def regrid(image: Image, settings: Settings, order: Literal[0, 1, 3] | None = None) -> Image:
    """An image on the grid that the settings ask for.

    Args:
        image: what was read.
        settings: spacing, orientation and order.
        order: of the interpolation, where it is another one: 0 for labels.

    Raises:
        Unreadable: the settings give a spacing for another number of axes.
    """
    if not settings.moves:
        return image
    from ssl_med.data.resample import to_orientation, to_spacing

    if settings.spacing:
        asked, axes = settings.spacing_of(len(image.spacing)), len(image.spacing)
        if not asked:
            raise Unreadable(f"{axes} axes of space where a spacing for {len(settings.spacing)} was asked")
        image = to_spacing(image, asked, settings.order if order is None else order)
    return to_orientation(image, settings.orientation)


def packed(array: np.ndarray, settings: Settings) -> tuple[np.ndarray, dict[str, Any]]:
    """The numbers to store, and slope and intercept that lead back: value = slope * number + intercept.

    Whole numbers go into the smallest integers that hold them all, also where they were read as floats; none is lost.
    """
    low, high = float(array.min()), float(array.max())
    for small in (np.uint8, np.int16, np.int32):
        limits = np.iinfo(small)
        if np.dtype(small).itemsize < array.itemsize and limits.min <= low and high <= limits.max:
            numbers = array.astype(small)
            if numbers.astype(array.dtype).tobytes() == array.tobytes():
                return numbers, {}
    slope = (high - low) / _LEVELS
    if settings.dtype == "same" or array.dtype.kind != "f" or slope == 0:
        return array, {}
    numbers = np.rint((array.astype(np.float64) - low) / slope) - (_LEVELS + 1) // 2
    return numbers.astype(np.int16), {"slope": slope, "intercept": low + slope * ((_LEVELS + 1) // 2)}
