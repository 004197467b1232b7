"""What every layout shares: how a folder was understood, the words for splits, and names relative to the folder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from ssl_med.data.record import Record

Kind = Literal["auto", "imagefolder", "patients", "tree", "frames"]
"""What a person may say of the folders of a tree: classes, patients, nothing, or clips of numbered frames."""

KINDS: tuple[Kind, ...] = ("auto", "imagefolder", "patients", "tree", "frames")

SPLITS = {"train": "train", "training": "train", "imagestr": "train", "test": "test", "testing": "test"}
SPLITS |= {"imagests": "test", "val": "val", "valid": "val", "validation": "val", "dev": "val", "imagesval": "val"}
"""The words for a split that folders and tables use, in lower case, and ours."""


@dataclass(frozen=True)
class Layout:
    """How a folder was understood.

    Attributes:
        name: in words, for a person; holds no name of a file or a folder that may be a person's.
        class_names: name of each image label; empty where labels are absent or plain numbers.
        ignored_files: files that no reader opens. A table says itself what counts, so it ignores none.
        notes: what a person should know.
        mask_names: name of each voxel label where the folder tells them.
        ignored_labels: voxel labels that say that nothing is known there.
        finding_names: names of the findings, in their order.
        box_names: name of each class of boxes; empty where they are plain numbers.
        files: image files behind the records, for progress; 0 where that is not known before all are seen.
    """

    name: str
    class_names: tuple[str, ...] = ()
    ignored_files: int = 0
    notes: tuple[str, ...] = ()
    mask_names: dict[int, str] = field(default_factory=dict)
    files: int = 0
    finding_names: tuple[str, ...] = ()
    box_names: tuple[str, ...] = ()
    ignored_labels: tuple[int, ...] = ()


class Plan(NamedTuple):
    """A folder understood: what it is, and a way to go through its images."""

    layout: Layout
    records: Callable[[], Iterator[Record]]


class File(NamedTuple):
    """An image file and the reader that opens it."""

    path: Path
    reader: str


def name_of(path: Path, folder: Path) -> str:
    """Path relative to the data folder, with slashes on every system; the bare name if the folder is that file.

    A file outside the folder keeps its whole path: bare names of two folders may be the same.
    """
    if path == folder:
        return path.name
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def stem_of(path: Path) -> str:
    """The name without its suffix, ``.nii.gz`` being one suffix."""
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem


def split_of(parts: tuple[str, ...]) -> str:
    """The split that one of the folders on the way is named after; empty if there is none."""
    return next((SPLITS[part.lower()] for part in parts if part.lower() in SPLITS), "")


def modality_of(word: str) -> str:
    """``CT`` or ``MR`` for what folders call them (MRI, T1, FLAIR ...); empty for anything else."""
    word = word.upper()
    if word.startswith("MR") or word in {"T1", "T2", "T1W", "T2W", "T1CE", "T1GD", "FLAIR", "ADC", "DWI"}:
        return "MR"
    return word if word in {"CT", "US", "PT", "CR", "DX", "MG"} else "PT" if word == "PET" else ""
