"""Going through a tree folder by folder, so that never more than the names of one folder are held."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ssl_med.data.layouts.base import File
from ssl_med.data.layouts.ignored import kind_of
from ssl_med.data.layouts.masks import in_mask_folder, masks_beside
from ssl_med.data.readers import COMPANIONS, reader_of


@dataclass(frozen=True)
class Leaf:
    """The files of one folder, sorted by what they are.

    Attributes:
        parts: names of the folders on the way from the data folder.
        images: in the order of their names.
        beside: image -> its mask in the same folder.
        masks: number of files with voxel labels.
        ignored: number of files that no reader opens, by their kind.
        locked: number of folders below that could not be opened.
    """

    parts: tuple[str, ...]
    images: list[File] = field(default_factory=list)
    beside: dict[Path, Path] = field(default_factory=dict)
    masks: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    locked: int = 0


def leaves(folder: Path) -> Iterator[Leaf]:
    """Every folder with visible files in sorted order, top first; a single file is a tree of one."""
    if not folder.is_dir():
        yield _leaf(folder.parent, [folder.name], folder)
        return
    locked: list[OSError] = []
    for place, names in _walk(folder, locked):
        if names:
            yield _leaf(place, names, folder)
    if locked:
        yield Leaf((), locked=len(locked))


def _leaf(place: Path, names: list[str], folder: Path) -> Leaf:
    parts = place.relative_to(folder).parts if place.is_relative_to(folder) else ()
    files = [(path, reader_of(path)) for path in map(place.joinpath, names)]
    images = [File(path, reader) for path, reader in files if reader]
    heads = {path.stem.lower() for path, reader in files if reader}
    ignored = Counter(kind_of(path) for path, reader in files if not (reader or _belongs(path, heads)))
    if in_mask_folder(parts, folder):
        return Leaf(parts, masks=len(images), ignored=ignored)
    beside, masks = masks_beside([file.path for file in images])
    return Leaf(parts, [file for file in images if file.path not in masks], beside, len(masks), ignored)


def _belongs(path: Path, heads: set[str]) -> bool:
    """The file holds the voxels of a header beside it."""
    name = path.name.lower()
    return any(name.endswith(end) and name.removesuffix(end) in heads for end in COMPANIONS)


def _walk(folder: Path, locked: list[OSError]) -> Iterator[tuple[Path, list[str]]]:
    """Linked folders are followed, each real folder once; what could not be opened is added to ``locked``."""
    seen: set[int] = set()
    for place, below, names in os.walk(folder, onerror=locked.append, followlinks=True):
        real = hash(str(Path(place).resolve()))
        below[:] = [] if real in seen else sorted(n for n in below if not n.startswith((".", "__MACOSX")))
        if real not in seen:
            yield Path(place), sorted(name for name in names if not name.startswith("."))
        seen.add(real)
