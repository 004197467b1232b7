"""Folders of the Medical Segmentation Decathlon and of nnU-Net: ``imagesTr``, ``labelsTr`` and a ``dataset.json``."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ssl_med.data.layouts.base import File, modality_of, stem_of
from ssl_med.data.layouts.masks import CHANNEL, IMAGE_FOLDERS, has_own_mask, mask_of
from ssl_med.errors import UserError

IGNORE = "ignore"
"""nnU-Net's name for the label of voxels that nobody has annotated."""


@dataclass(frozen=True)
class Dataset:
    """What ``dataset.json`` says.

    Attributes:
        channels: names of the channels; empty where the file does not tell or does not exist.
        mask_names: name of each voxel label.
        regions: nnU-Net's unions of labels, in words.
        ignored: nnU-Net's label ``ignore``: voxels that nobody has annotated.
    """

    channels: tuple[str, ...] = ()
    mask_names: tuple[tuple[int, str], ...] = ()
    regions: tuple[str, ...] = ()
    ignored: tuple[int, ...] = ()

    @property
    def modality(self) -> str:
        """Of all channels; empty if they differ or are none that we know."""
        found = {modality_of(name) for name in self.channels}
        return found.pop() if len(found) == 1 else ""


def read_dataset(folder: Path) -> Dataset:
    """Read ``dataset.json`` of a folder; without one nothing is known.

    Raises:
        UserError: the file is no JSON object.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        return Dataset()
    facts = load_json(path)
    if not isinstance(facts, dict):
        raise UserError(f"{path} holds a {type(facts).__name__}, expected an object: mend it or move it away")
    channels = facts.get("channel_names") or facts.get("modality") or {}
    names = tuple(str(channels[key]) for key in sorted(channels, key=_order)) if isinstance(channels, dict) else ()
    return Dataset(names, *_labels(facts.get("labels")))


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path} is not JSON: mend it or move it away") from None


def _order(key: str) -> tuple[int, str]:
    return (int(key), "") if str(key).isdigit() else (1 << 30, str(key))


def _labels(labels: Any) -> tuple[tuple[tuple[int, str], ...], tuple[str, ...], tuple[int, ...]]:
    """MSD writes number -> name, nnU-Net name -> number, or name -> numbers for a region."""
    names: dict[int, str] = {}
    regions = []
    for key, value in labels.items() if isinstance(labels, dict) else ():
        if isinstance(value, list):
            regions.append(f"{key} = {' + '.join(map(str, value))}")
        elif str(key).isdigit():
            names[int(key)] = str(value)
        elif str(value).isdigit():
            names[int(value)] = str(key)
    ignored = tuple(sorted(value for value, name in names.items() if name == IGNORE))
    return tuple(sorted((v, name) for v, name in names.items() if name != IGNORE)), tuple(regions), ignored


def cases(files: list[File], folder: Path, dataset: Dataset) -> Iterator[list[File]]:
    """Files of one folder as images: the channels ``case_0000``, ``case_0001`` ... of a case are one image.

    Where ``dataset.json`` names several channels, all of them are expected, and a missing one is told when the image
    is read. Four digits that are no channels (``lung_0001`` with a mask of that name) stay images of their own.

    Args:
        files: the images of one folder, in the order of their names.
        folder: the data folder.
        dataset: what its ``dataset.json`` says.
    """
    numbered = bool(files) and _numbered_masks(files[0].path.parent)
    for case, group in groupby(files, lambda file: _case(file.path, dataset)):
        members = list(group)
        if case is None or numbered or any(has_own_mask(member.path) for member in members):
            yield from ([member] for member in members)
        elif len(dataset.channels) > 1:
            first = members[0]
            suffix = first.path.name[len(stem_of(first.path)) :]
            paths = (first.path.with_name(f"{case}_{number:04d}{suffix}") for number in range(len(dataset.channels)))
            yield [File(path, first.reader) for path in paths]
        elif _are_channels(members, folder):
            yield members
        else:
            yield from ([member] for member in members)


def _case(path: Path, dataset: Dataset) -> str | None:
    match = CHANNEL.fullmatch(stem_of(path))
    inside = path.parent.name in IMAGE_FOLDERS
    return match[1] if match and inside and len(dataset.channels) != 1 else None


def _are_channels(members: list[File], folder: Path) -> bool:
    """Numbers from zero on; in a folder ``images``, which is not nnU-Net's word, only with one mask for all of them."""
    if len(members) < 2 or [int(stem_of(member.path)[-4:]) for member in members] != list(range(len(members))):
        return False
    return members[0].path.parent.name != "images" or mask_of(members[0].path, folder) is not None


def _numbered_masks(folder: Path) -> bool:
    """Images for training have masks of their own name, so the numbers of those for testing are no channels either."""
    training = folder.parent / "imagesTr"
    if folder.name not in ("imagesTs", "imagesVal") or not training.is_dir():
        return False
    first = min((path for path in training.iterdir() if CHANNEL.fullmatch(stem_of(path))), default=None)
    return first is not None and has_own_mask(first)
