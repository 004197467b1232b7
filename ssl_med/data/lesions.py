"""A cohort with something to detect: bright ellipsoids in the tissue of synthetic subjects, whose boxes are known.

Lesions here are synthetic: they prove that a detector is trained and scored rightly, and say nothing about disease.
:mod:`ssl_med.data.cohort` makes the subjects, out of a real brain template.
"""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ssl_med.data.cohort import Subject, load_template, site_of, subject
from ssl_med.data.samples import SPLITS, nifti_bytes, write_file
from ssl_med.errors import UserError

MOST = 3
RADII_MM = (6.0, 13.0)
BRIGHTER = (0.35, 0.7)
"""By what share of the tissue's own intensity, so that the grain of the scan stays."""

_STREAM, _TRIES = 7, 200
_TISSUE = (1, 2)


def write_lesions(out: str | Path, subjects: int, seed: int = 0, spacing_mm: float = 4.0) -> Path:
    """Write volumes with 1 to 3 lesions each; the same again whenever and wherever it is done.

    Args:
        out: folder for ``images/``, ``manifest.csv`` and ``tables/boxes.csv`` with the boxes in mm of the world: read
            it with ``columns={"boxes_mm": "tables/boxes.csv"}``.
        subjects: how many; a subject does not depend on it.
        seed: of the cohort, 0 or more.
        spacing_mm: voxel size along every axis, 1 to 8.

    Returns:
        ``out``.

    Raises:
        UserError: an argument out of range, or nilearn missing.
    """
    if subjects < 1 or seed < 0 or not 1 <= spacing_mm <= 8:
        raise UserError(
            "lesions: expected 1 subject or more, a seed of 0 or more and voxels of 1 to 8 mm, got "
            f"subjects={subjects}, seed={seed}, spacing_mm={spacing_mm}"
        )
    out, images, boxes = Path(out), [], []
    for number in range(subjects):
        name = f"synthetic_{number:03d}"
        made = subject(load_template(), seed, number, spacing_mm)
        image, found = with_lesions(made, np.random.default_rng([seed, number, _STREAM]))
        write_file(out / "images" / f"{name}.nii.gz", nifti_bytes(image, made.affine))
        images.append([f"images/{name}.nii.gz", name, site_of(seed, number), SPLITS[number % len(SPLITS)], "MR"])
        boxes += [[f"images/{name}.nii.gz", *np.round(box, 3).tolist(), 0] for box in found]
    write_file(out / "manifest.csv", _table(["image", "patient", "site", "split", "modality"], images))
    write_file(out / "tables" / "boxes.csv", _table(["image", *"xyzwhd", "class"], boxes))
    return out


def with_lesions(made: Subject, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A subject's image with lesions in grey and white matter, and their boxes.

    A lesion is an ellipsoid along the axes, with a half-bright rim one voxel wide; no two touch.

    Args:
        made: the subject.
        random: draws of number, place, size and brightness.

    Returns:
        The image (x, y, z) int16, and boxes (m, 6): lowest corner and sides along x, y, z in mm of the world.
    """
    image, boxes = made.image.astype(np.float32), []
    places = np.argwhere(np.isin(made.labels, _TISSUE))
    spacing, origin = made.affine[0, 0], made.affine[:3, 3]
    grid = np.moveaxis(np.indices(image.shape, dtype=np.float32), 0, -1) * spacing + origin.astype(np.float32)
    wanted = int(random.integers(1, MOST + 1))
    for _ in range(_TRIES):
        if len(boxes) == wanted:
            break
        centre = places[int(random.integers(len(places)))] * spacing + origin + random.uniform(-0.5, 0.5, 3) * spacing
        radii = random.uniform(*RADII_MM, 3)
        box = np.concatenate([centre - radii, 2 * radii])
        if any(_touch(box, other, 2 * spacing) for other in boxes):
            continue
        inside = (1 - np.sqrt((((grid - centre) / radii) ** 2).sum(-1))) * radii.min() / spacing
        image *= 1 + random.uniform(*BRIGHTER) * np.clip(inside + 0.5, 0, 1)
        boxes.append(box)
    return np.clip(np.rint(image), 0, 32767).astype(np.int16), np.array(boxes)


def _touch(first: np.ndarray, second: np.ndarray, room: float) -> bool:
    """Boxes of lowest corner and sides are nearer than ``room`` along every axis."""
    gap = np.maximum(first[:3] - second[:3] - second[3:], second[:3] - first[:3] - first[3:])
    return bool((gap < room).all())


def _table(header: list[str], rows: Iterable[list]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()
