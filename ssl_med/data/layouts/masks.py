"""Where the voxel labels of an image lie: beside it under a name of its own, or in a folder beside its folder."""

import re
from collections.abc import Iterator
from pathlib import Path

from ssl_med.data.layouts.base import stem_of
from ssl_med.data.readers import SUFFIXES

IMAGE_FOLDERS = {  # folder of images -> where the masks of the same name may lie, beside it
    "images": ("labels", "masks", "labelsTr"),
    "imagesTr": ("labelsTr", "labels", "masks"),
    "imagesTs": ("labelsTs",),
    "imagesVal": ("labelsVal",),
}
MASK_FOLDERS = {"labels", "masks", "labelsTr", "labelsTs", "labelsVal"}
CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net: case_0000.nii.gz is the first channel of case

_WORDS = ("mask", "masks", "seg", "segmentation", "label", "labels")
_BESIDE = re.compile(rf"(?P<image>.+?)[_.-](?:{'|'.join(_WORDS)})(?:[_.-]?\w+)?", re.IGNORECASE)


def in_mask_folder(parts: tuple[str, ...], folder: Path) -> bool:
    """Whether one of the folders ``parts`` below ``folder`` is one of masks, which needs one of images beside it."""
    for depth, part in enumerate(parts):
        beside = folder.joinpath(*parts[:depth])
        if part in MASK_FOLDERS and any((beside / name).is_dir() for name in IMAGE_FOLDERS):
            return True
    return False


def mask_of(path: Path, folder: Path) -> Path | None:
    """The mask of the same name in a folder beside that of the images; a table's masks may lie at the top."""
    parts = path.relative_to(folder).parts[:-1] if path.is_relative_to(folder) else ()
    places = [folder / name for name in ("labels", "masks", "labelsTr")] if not parts else []
    for depth, part in enumerate(parts):
        beside, below = folder.joinpath(*parts[:depth]), parts[depth + 1 :]
        places += [beside.joinpath(mask, *below) for mask in IMAGE_FOLDERS.get(part, ())]
    for place in places:
        for name in _mask_names(path) if place.is_dir() else ():
            if (place / name).is_file():
                return place / name
    return None


def _mask_names(path: Path) -> Iterator[str]:
    yield path.name
    stem, channel = stem_of(path), CHANNEL.fullmatch(stem_of(path))
    for base in (stem, channel[1]) if channel else (stem,):
        yield from (base + suffix for suffix in SUFFIXES)
    yield from (f"{stem}_{word}{suffix}" for word in _WORDS for suffix in SUFFIXES)


def has_own_mask(path: Path) -> bool:
    """A mask of exactly the image's name, number and all, lies in a folder beside its folder."""
    return any((path.parent.parent / mask / path.name).is_file() for mask in IMAGE_FOLDERS.get(path.parent.name, ()))


def masks_beside(paths: list[Path]) -> tuple[dict[Path, Path], set[Path]]:
    """Masks among the files of one folder: ``x_mask.png`` of ``x.png``, ``case_seg.nii.gz`` of ``case_t1.nii.gz``.

    Args:
        paths: the image files of one folder.

    Returns:
        Mask of each image that has one, and all files that are masks; an image keeps its first mask. A file named
        like a mask is an image if there is nothing beside it that it could be the mask of.
    """
    stems = {stem_of(path): path for path in paths}
    found: dict[Path, Path] = {}
    masks: set[Path] = set()
    for path in paths:
        match = _BESIDE.fullmatch(stem_of(path))
        if not match:
            continue
        base = match["image"]
        owners = [stems[base]] if base in stems else _sharing(base, stems)
        if owners:
            masks.add(path)
        for owner in owners:
            found.setdefault(owner, path)
    return found, masks


def _sharing(base: str, stems: dict[str, Path]) -> list[Path]:
    """The scans of one case, as in BraTS, where ``case_seg`` belongs to ``case_t1`` and ``case_flair``."""
    return [path for stem, path in stems.items() if stem.startswith(f"{base}_") and not _BESIDE.fullmatch(stem)]
