"""Tiny folders of scans and stores for the tests: written in milliseconds, with voxels that can be told apart."""

import csv
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from ssl_med.data.index import describe_layout, find_images
from ssl_med.data.prepare import build_store
from ssl_med.data.store import Store

SPACING = (1.0, 1.5, 2.0)
"""Along x, y, z in mm."""


def volume(number: int, shape: tuple[int, ...] = (20, 22, 24)) -> tuple[np.ndarray, np.ndarray]:
    """An int16 image (x, y, z) with a bright box at a place of its own, and the box as labels 1 and 2."""
    rng = np.random.default_rng(number)
    image = rng.normal(100, 10, shape)
    corner = [int(rng.integers(2, size // 2)) for size in shape]
    box = tuple(slice(c, c + 8) for c in corner)
    mask = np.zeros(shape, np.uint8)
    mask[box] = 1
    mask[box[0], box[1], corner[2] + 4 : corner[2] + 8] = 2
    return (image + 80 * mask).astype(np.int16), mask


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*SPACING, 1.0]) if affine is None else affine), path)
    return path


def volumes(folder: Path, count: int = 6, masks: bool = True, shape: tuple[int, ...] = (20, 22, 24)) -> Path:
    """``images/case_N.nii.gz``, ``labels/`` of the same names and a manifest with two images per patient."""
    lines = [["image", "patient", "split"]]
    for number in range(count):
        image, mask = volume(number, shape)
        save_nifti(folder / "images" / f"case_{number}.nii.gz", image)
        if masks:
            save_nifti(folder / "labels" / f"case_{number}.nii.gz", mask)
        split = ("train", "train", "train", "val", "test")[number // 2 % 5]
        lines.append([f"images/case_{number}.nii.gz", f"patient_{number // 2}", split])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return folder


def picture(number: int, label: int, size: int = 40) -> np.ndarray:
    """A grey picture: dark on the left in class 0, on the right in class 1."""
    ramp = np.linspace(40, 200, size)[None].repeat(size, 0)
    ramp = ramp if label == 0 else ramp[:, ::-1]
    return np.clip(ramp + np.random.default_rng(number).normal(0, 15, ramp.shape), 0, 255).astype(np.uint8)


def pictures(folder: Path, count: int = 30) -> Path:
    """``<split>/<class>/N.png`` of two classes, in equal numbers."""
    for number in range(count):
        label, split = number % 2, ("train", "train", "train", "val", "test")[number // 2 % 5]
        path = folder / split / ("left", "right")[label] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number, label)).save(path)
    return folder


def store_of(folder: Path, out: Path, **arguments) -> Store:
    """Prepare a folder without a word."""
    build(folder, out, **arguments)
    return Store(out)


def build(folder: Path, out: Path, **arguments) -> dict:
    """The counts that ``prepare`` answers."""
    names = list(describe_layout(folder).class_names)
    return build_store(list(find_images(folder)), out, names, say=lambda text: None, **arguments)
