"""Saliency maps that ``prepare`` makes or is given, one per image: bytes, stored and cut beside it like a mask."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from ssl_med.data.intensity import Scale
from ssl_med.data.layouts.base import stem_of
from ssl_med.data.readers import SUFFIXES
from ssl_med.data.record import Record, Unreadable
from ssl_med.errors import UserError

Measure = Literal["fine_grained", "spectral_residual", "gradient", "entropy", "foreground"]
MEASURES = ("fine_grained", "spectral_residual", "gradient", "entropy", "foreground")
"""What a map may say; with the default settings of the providers of these names in :mod:`ssl_med.tasks.saliency`."""

FLAT = "saliency map is constant"
"""The warning of an image in which nothing stands out."""

STORED = Scale(0.0, 255.0, 0.0, 1 / 255)
"""From stored bytes to 0..1; what lies outside the image is 0."""

_MOST = 1 << 24
"""Voxels up to which a map is measured as the image is; a larger image (256^3) is reduced first: memory is bounded."""


def saliency_map(array: np.ndarray, measure: Measure, low: float, high: float) -> np.ndarray:
    """The map of an image, (1, \\*space) uint8: 0 to 255 for 0 to 1.

    Args:
        array: (c, \\*space).
        measure: one of :data:`MEASURES`.
        low, high: values between which the image is clipped before, so that a bright speck of metal does not hide the
            rest; usually its percentiles, as for training.
    """
    import torch
    from torch.nn import functional

    image = torch.from_numpy(np.clip(array.astype(np.float32), low, high))[None]
    space = tuple(image.shape[2:])
    factor = next(n for n in range(1, 1 << 10) if image[0, 0].numel() <= _MOST * n ** len(space))
    linear = "bilinear" if len(space) == 2 else "trilinear"
    with torch.no_grad():
        if factor > 1:
            image = functional.interpolate(image, [-(-length // factor) for length in space], mode="area")
        found = _measures()[measure](image).clamp(0, 1)
        if factor > 1:
            found = functional.interpolate(found, space, mode=linear, align_corners=False)
        return as_bytes(found[0].numpy())


def as_bytes(shares: np.ndarray) -> np.ndarray:
    """0..1 as 0..255."""
    return np.rint(shares.clip(0, 1) * 255).astype(np.uint8)


def as_shares(given: np.ndarray) -> np.ndarray:
    """The map of a person, float32 in [0, 1]: values up to 1 mean themselves, whole numbers up to 255 are bytes.

    Args:
        given: (c, \\*space) of any type; several channels must say the same.

    Raises:
        Unreadable: other values, or channels that differ.
    """
    if not (given == given[:1]).all():
        raise Unreadable(f"saliency: {len(given)} different channels, expected 1")
    low, high = float(given.min()), float(given.max())
    whole = given.dtype.kind in "ui" or bool((given == np.rint(given)).all())
    if low < 0 or high > (255 if whole else 1):
        raise Unreadable(f"saliency: values from {low:g} to {high:g}, expected shares of 0 to 1 or bytes of 0 to 255")
    return given[:1].astype(np.float32) / (255 if high > 1 else 1)


def maps_folder(asked: str, data: Path) -> Path | None:
    """The folder of maps that a person asked for; None where they asked for a measure or for nothing.

    Raises:
        UserError: no such measure or folder, or the maps lie among the images.
    """
    if asked in ("", *MEASURES):
        return None
    folder = Path(asked)
    if not folder.is_dir():
        raise UserError(f"saliency {asked!r}: expected a folder of maps or one of {', '.join(MEASURES)}")
    if folder.resolve().is_relative_to(data.resolve()):
        raise UserError(f"saliency {asked}: the maps lie among the images of {data}: move them to a folder beside it")
    return folder


def with_maps(records: Iterable[Record], folder: Path) -> Iterator[Record]:
    """Records that know their map: the file of the image's place and name in ``folder``, of any kind that is read.

    The map of ``a/b.nii.gz`` is ``a/b.nii.gz``, ``a/b.png`` ...; that of a DICOM series or of the frames of a clip may
    bear the name of their folder. Where there is none, reading the image will say so.
    """
    for record in records:
        yield replace(record, saliency=_map_of(record, folder))


def _map_of(record: Record, folder: Path) -> Path | None:
    if record.item is not None or not record.files:
        return None
    place = folder / record.name.lstrip("/")
    names = [place, *(place.with_name(stem_of(place) + suffix) for suffix in SUFFIXES)]
    if len(record.files) > 1:
        names += [place.parent.with_name(place.parent.name + suffix) for suffix in SUFFIXES]
    return next((path for path in names if path.is_file()), None)


def is_flat(found: np.ndarray) -> bool:
    """The map says nothing."""
    return bool(found.min() == found.max())


def _measures() -> dict[str, Callable]:
    from ssl_med.ops import saliency

    return {
        "fine_grained": lambda image: saliency.fine_grained(saliency.as_bytes(image)),
        "spectral_residual": lambda image: saliency.spectral_residual(saliency.grey(image)),
        "gradient": lambda image: saliency.gradient_magnitude(saliency.grey(image), 1.0),
        "entropy": lambda image: saliency.local_entropy(saliency.as_bytes(image), 9, 16),
        "foreground": lambda image: saliency.foreground(saliency.as_bytes(image)),
    }
