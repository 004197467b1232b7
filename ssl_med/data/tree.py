"""A folder without a table: what its tree, its folder names and its files say of the images in it."""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ssl_med.data.readers import SUFFIXES, array, dicom, reader_of
from ssl_med.data.record import Record, Unreadable
from ssl_med.errors import UserError

_IMAGE_FOLDERS = {  # folder of images -> where the masks of the same name may lie, beside it
    "images": ("labels", "masks", "labelsTr"),
    "imagesTr": ("labelsTr", "labels", "masks"),
    "imagesTs": ("labelsTs",),
}
_MASK_FOLDERS = {"labels", "masks", "labelsTr", "labelsTs"}
SPLITS = {"train": "train", "training": "train", "imagestr": "train", "test": "test", "testing": "test"}
SPLITS |= {"imagests": "test", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
"""The words for a split that folders and tables use, in lower case, and ours."""

_CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net: case_0000.nii.gz is the first channel of case
_BIDS = re.compile(r"sub-[A-Za-z0-9]+")


@dataclass(frozen=True)
class Layout:
    """How a folder was understood.

    Attributes:
        name: in words, for a person.
        class_names: name of each image label; empty where labels are absent or plain numbers.
        ignored_files: files that no reader opens. A table says itself what counts, so it ignores none.
        notes: what a person should know.
    """

    name: str
    class_names: tuple[str, ...] = ()
    ignored_files: int = 0
    notes: tuple[str, ...] = ()


class Plan(NamedTuple):
    """A folder understood: what it is, and a way to go through its images."""

    layout: Layout
    records: Callable[[], Iterator[Record]]


class _File(NamedTuple):
    path: Path
    reader: str


def plan_tree(folder: Path) -> Plan:
    """Understand a folder, or one file, from its names alone."""
    files, masks, ignored = _sorted_out(folder)
    _refuse_channels([file.path for file in files])
    modality = _dataset_modality(folder)
    records = partial(_tree_records, folder, files, modality)
    readers = {file.reader for file in files}
    classes = _class_folders(folder, files)
    if classes:
        name = f"pictures in {len(classes)} class folders: " + ", ".join(classes)
        return Plan(Layout(name, classes, ignored), partial(_class_records, folder, files, classes))
    if (folder / "imagesTr").is_dir():
        name = f"MSD or nnU-Net folder: imagesTr, {masks} masks"
    elif readers == {"array"}:
        name = "array files"
    elif readers == {"dicom"}:
        name = "DICOM tree, grouped into series"
    else:
        name = f"tree of {' and '.join(sorted(readers)) or 'no'} images" + (f", {masks} masks" if masks else "")
    return Plan(Layout(name, _array_classes(files), ignored), records)


def _sorted_out(folder: Path) -> tuple[list[_File], int, int]:
    """Images, number of masks, number of files that no reader opens."""
    paths = list(_walk(folder)) if folder.is_dir() else [folder]
    folders = {path.parent for path in paths}
    folders |= {parent for path in folders for parent in path.parents}
    images, masks, ignored = [], 0, 0
    for path in paths:
        reader = reader_of(path)
        if reader is None:
            ignored += 1
        elif _in_mask_folder(path, folder, folders):
            masks += 1
        else:
            images.append(_File(path, reader))
    return images, masks, ignored


def _walk(folder: Path) -> Iterator[Path]:
    """All visible files in sorted order; linked folders are followed, each real folder once."""
    seen: set[str] = set()
    for place, below, names in os.walk(folder, followlinks=True):
        real = str(Path(place).resolve())
        below[:] = [] if real in seen else sorted(n for n in below if not n.startswith((".", "__MACOSX")))
        if real not in seen:
            yield from (Path(place) / name for name in sorted(names) if not name.startswith("."))
        seen.add(real)


def _in_mask_folder(path: Path, folder: Path, folders: set[Path]) -> bool:
    parts = path.relative_to(folder).parts[:-1]
    for depth, part in enumerate(parts):
        beside = folder.joinpath(*parts[:depth])
        if part in _MASK_FOLDERS and any(beside / name in folders for name in _IMAGE_FOLDERS):
            return True
    return False


def mask_of(path: Path, folder: Path) -> Path | None:
    """The mask of the same name in a folder beside that of the images; a table's masks may lie at the top."""
    parts = path.relative_to(folder).parts[:-1] if path.is_relative_to(folder) else ()
    places = [folder / name for name in ("labels", "masks", "labelsTr")] if not parts else []
    for depth, part in enumerate(parts):
        beside, below = folder.joinpath(*parts[:depth]), parts[depth + 1 :]
        places += [beside.joinpath(mask, *below) for mask in _IMAGE_FOLDERS.get(part, ())]
    for place in places:
        for name in _mask_names(path) if place.is_dir() else ():
            if (place / name).is_file():
                return place / name
    return None


def _stem(path: Path) -> str:
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem


def _mask_names(path: Path) -> Iterator[str]:
    yield path.name
    stem, channel = _stem(path), _CHANNEL.fullmatch(_stem(path))
    for base in (stem, channel[1]) if channel else (stem,):
        yield from (base + suffix for suffix in SUFFIXES)


def _refuse_channels(paths: list[Path]) -> None:
    first: set[tuple[Path, str]] = set()
    for path in paths:
        match = _CHANNEL.fullmatch(_stem(path)) if path.parent.name in _IMAGE_FOLDERS else None
        if not match:
            continue
        if int(match[2]) == 0:
            first.add((path.parent, match[1]))
        elif (path.parent, match[1]) in first and not _has_own_mask(path):
            raise UserError(
                f"folder {path.parent.name} holds nnU-Net cases with several channels (_0000, _0001, ...), "
                "expected one channel per case: keep one channel in a folder of its own"
            )


def _has_own_mask(path: Path) -> bool:
    beside = path.parent.parent
    return any((beside / mask / path.name).is_file() for mask in _IMAGE_FOLDERS[path.parent.name])


def _dataset_modality(folder: Path) -> str:
    """Modality of an MSD or nnU-Net folder with one channel, from its ``dataset.json``."""
    path = folder / "dataset.json"
    if not path.is_file():
        return ""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path} is not JSON: mend it or move it away") from None
    channels = facts.get("modality") or facts.get("channel_names") or {}
    name = str(next(iter(channels.values()))).upper() if isinstance(channels, dict) and len(channels) == 1 else ""
    return "MR" if name.startswith("MR") else "CT" if name == "CT" else ""


def _tree_records(folder: Path, files: list[_File], modality: str) -> Iterator[Record]:
    for file in files:
        record = replace(_record(file, folder), modality=modality)
        if file.path.suffix.lower() == ".npz":
            yield from _array_records(record)
        elif file.reader != "dicom":
            yield replace(record, mask=mask_of(file.path, folder))
    for series in dicom.find_series(file.path for file in files if file.reader == "dicom"):
        record = _record(_File(series.files[0], "dicom"), folder)
        yield replace(
            record,
            files=series.files,
            mask=mask_of(series.files[0], folder) if len(series.files) == 1 else None,
            patient=series.patient or record.patient,
            study=series.study,
            modality=series.modality,
        )


def _record(file: _File, folder: Path) -> Record:
    """What the path alone says: name, split and (BIDS) patient."""
    parts = file.path.relative_to(folder).parts[:-1]
    split = next((SPLITS[part.lower()] for part in parts if part.lower() in SPLITS), "")
    patient = next((part for part in parts if _BIDS.fullmatch(part)), "")
    return Record(name_of(file.path, folder), file.reader, (file.path,), patient=patient, split=split)


def name_of(path: Path, folder: Path) -> str:
    """Path relative to the data folder, with slashes on every system; the bare name if the folder is that file."""
    return path.relative_to(folder).as_posix() if path != folder and path.is_relative_to(folder) else path.name


def _array_records(record: Record) -> Iterator[Record]:
    try:
        for row in array.rows(record.files[0]):
            name = f"{record.name}#{row.split}/{row.item}" if row.split else f"{record.name}#{row.item}"
            yield replace(record, name=name, **vars(row))
    except Unreadable:
        yield replace(record, item=None)  # reading it tells the reason


def _array_classes(files: list[_File]) -> tuple[str, ...]:
    found = set()
    for path in (path for path, _ in files if path.suffix.lower() == ".npz"):
        try:
            found.add(array.class_names(path))
        except Unreadable:
            continue  # told when its record is read
    return found.pop() if len(found) == 1 else ()


def _class_folders(folder: Path, files: list[_File]) -> tuple[str, ...]:
    """Class names of ``[split/]class/picture`` trees; empty for any other tree."""
    if not files or any(file.reader != "raster" for file in files):
        return ()
    inner = []
    for path, _ in files:
        parts = path.relative_to(folder).parts[:-1]
        inner.append(parts[1:] if parts and parts[0].lower() in SPLITS else parts)
    if any(len(parts) != 1 or parts[0] in _IMAGE_FOLDERS for parts in inner):
        return ()
    classes = tuple(sorted({parts[0] for parts in inner}))
    return classes if len(classes) > 1 else ()


def _class_records(folder: Path, files: list[_File], classes: tuple[str, ...]) -> Iterator[Record]:
    for file in files:
        yield replace(_record(file, folder), label=classes.index(file.path.parent.name))
