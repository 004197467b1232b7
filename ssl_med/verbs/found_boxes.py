"""Boxes that a model found: from the grid it looked at to the grid of the source, and into a table."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssl_med.data.boxes import given_back
from ssl_med.data.record import Image


def on_source(
    found: np.ndarray, shown: Sequence[int], spacing: Sequence[float], image: Image, kept: Image
) -> np.ndarray:
    """Found boxes in both frames of the source.

    Args:
        found: (k, 2n + 2) corners along space in voxels of what the model was shown, score, class; class -1 is no box.
        shown: voxels of it that are not padding.
        spacing: mm per voxel of it.
        image: as it was read.
        kept: as it was brought to the grid of the training.

    Returns:
        (m, 4n + 2): corners along x, y(, z) in voxels as the file counts them, the same in mm, score, class.
    """
    axes = len(shown)
    found = found[found[:, -1] >= 0].astype(np.float64)
    middle = (found[:, :axes] + found[:, axes : 2 * axes]) / 2
    found = found[(middle < shown).all(1)]
    corners = np.clip(found[:, : 2 * axes], 0, np.tile(shown, 2)) * np.tile(np.array(spacing) / kept.spacing, 2)
    frames = [given_back(corners, image, kept, frame) for frame in ("file", "mm")]
    return np.concatenate([*frames, found[:, -2:]], 1)


def write_boxes(images: Sequence[tuple[str, np.ndarray]], names: Sequence[str], path: Path) -> None:
    """A table with a line for each box: image, lowest corner and sides, class, score, the same in mm.

    It has the columns of a table of boxes, so it can be read as one.

    Args:
        images: name of each and its boxes, see :func:`on_source`.
        names: of the classes; numbers where there are none.
        path: of the table.
    """
    axes = (images[0][1].shape[1] - 2) // 4
    columns = [*"xyz"[:axes], *"whd"[:axes]]
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", *columns, "class", "score", *(f"{name}_mm" for name in columns)])
        for image, boxes in images:
            for *corners, score, kind in boxes.tolist():
                voxels, world = (_low_and_sides(corners[i : i + 2 * axes]) for i in (0, 2 * axes))
                word = names[int(kind)] if int(kind) < len(names) else int(kind)
                table.writerow([image, *voxels, word, f"{score:.4f}", *world])
            if not len(boxes):
                table.writerow([image, *[""] * (2 * len(columns) + 2)])


def _low_and_sides(corners: Sequence[float]) -> list[str]:
    axes = len(corners) // 2
    lengths = (high - low for low, high in zip(corners[:axes], corners[axes:], strict=True))
    return [f"{number:.3f}" for number in (*corners[:axes], *lengths)]
