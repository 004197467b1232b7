"""One case per patient instead of one per image."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ssl_med.errors import UserError
from ssl_med.evidence.scores import Values


def of_patients(values: Values, patients: Sequence[str]) -> dict[str, np.ndarray]:
    """What is known of each patient: fractions (probabilities, Dice) as means over the images, labels as they are.

    Args:
        values: of each image, name -> (n, ...).
        patients: of each image.

    Returns:
        name -> (patients, ...), in the order in which they first appear.

    Raises:
        UserError: the images of a patient have different labels.
    """
    everyone = np.asarray(patients)
    members = [np.flatnonzero(everyone == everyone[first]) for first in first_images(patients)]
    return {name: np.stack([_one(name, np.asarray(value)[own]) for own in members]) for name, value in values.items()}


def first_images(patients: Sequence[str]) -> list[int]:
    """The place of the first image of each patient, in the order of :func:`of_patients`."""
    return sorted(int(first) for first in np.unique(np.asarray(patients), return_index=True)[1])


def _one(name: str, value: np.ndarray) -> Any:
    if np.issubdtype(value.dtype, np.floating):
        known = np.isfinite(value)
        total, count = np.where(known, value, 0.0).sum(0), known.sum(0)
        return np.divide(total, count, out=np.full_like(total, np.nan, dtype=float), where=count > 0)
    if (value != value[0]).any():
        raise UserError(
            f"--unit patient: the images of one patient have several values of {name!r}, so there is no value for the "
            "patient; leave --unit image"
        )
    return value[0]
