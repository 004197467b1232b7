"""COCO files: JSON with ``images``, ``annotations`` (boxes x, y, w, h in pixels) and ``categories``."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ssl_med.data.layouts.base import SPLITS, Layout, Plan, name_of, split_of
from ssl_med.data.layouts.box_table import Line, box_line
from ssl_med.data.layouts.dataset_json import load_json
from ssl_med.data.readers import reader_of
from ssl_med.data.record import Record
from ssl_med.errors import UserError

_PLACES = ("*.json", "annotations/*.json", "*/_annotations.coco.json")
"""Where the files lie: one alone, one of each split as COCO has them, one in the folder of each split."""

Found = tuple[Path, dict[str, Any]]
"""A COCO file and its content."""


def is_coco(content: Any) -> bool:
    """Whether the content of a JSON file is that of COCO's object detection."""
    lists = ("images", "annotations", "categories")
    return isinstance(content, dict) and all(isinstance(content.get(name), list) for name in lists)


@dataclass(frozen=True)
class _File:
    """A COCO file understood.

    Attributes:
        path: of the file.
        folders: that its image names may be relative to.
        split: that its name tells, where it is one of several.
        images: id and name of each.
        boxes: by the id of their image.
    """

    path: Path
    folders: tuple[Path, ...]
    split: str
    images: list[tuple[Any, str]]
    boxes: dict[Any, list[Line]]

    def place_of(self, name: str) -> Path:
        """Where an image lies; a missing file is told when it is read."""
        places = [folder / name for folder in self.folders]
        return next((place for place in places if place.exists()), places[0])


def plan_coco(found: Sequence[Found], folder: Path) -> Plan:
    """Understand COCO files, one or one of each split; the categories of all become classes 0, 1, 2 ... by their ids.

    Crowds become class -1.

    Args:
        found: the files.
        folder: what their file names are relative to, or its folder ``images``, or one named as the split is.

    Raises:
        UserError: an annotation of an unknown category, or one that is no box, or two files that list one image.
    """
    names = _class_names(found)
    files = [_file(path, content, folder, names, several=len(found) > 1) for path, content in found]
    if len(files) > 1:
        _check_apart(files)
    images = sum(len(file.images) for file in files)
    count = sum(line[-1] >= 0 for file in files for lines in file.boxes.values() for line in lines)
    told = ", ".join(file.path.name for file in files)
    layout = Layout(f"COCO {told}: {images} images, {count} boxes", files=images, box_names=names)
    return Plan(layout, partial(_records, files, folder))


def find_coco(folder: Path, most_bytes: int) -> list[Found]:
    """The COCO files of a folder, where it holds any; beside key points and the like, those of instances only."""
    found = []
    paths = [path for place in _PLACES for path in folder.glob(place)] if folder.is_dir() else []
    for path in sorted(paths):
        if path.stat().st_size > most_bytes:
            continue
        try:
            content = load_json(path)
        except UserError:
            continue  # any JSON may lie in a data folder
        if is_coco(content):
            found.append((path, content))
    return [one for one in found if one[0].name.startswith("instances")] or found


def _class_names(found: Sequence[Found]) -> tuple[str, ...]:
    """Names of the categories of all files in the order of their ids; a name is one class in all of them."""
    categories: set[tuple[int, str]] = set()
    for path, content in found:
        with _telling(path):
            categories |= {(int(entry["id"]), _name(entry)) for entry in content["categories"]}
    return tuple(dict.fromkeys(name for _, name in sorted(categories)))


def _name(category: dict[str, Any]) -> str:
    return str(category.get("name", category["id"]))


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path.name} is no COCO file: {error} is missing or of the wrong type in an entry") from None


def _file(path: Path, content: dict[str, Any], folder: Path, names: tuple[str, ...], several: bool) -> _File:
    with _telling(path):
        places = {int(entry["id"]): names.index(_name(entry)) for entry in content["categories"]}
        boxes = _boxes(path, content["annotations"], places)
        images = [(entry["id"], str(entry["file_name"])) for entry in content["images"]]
    last = path.stem.rpartition("_")[2]  # train2017 of instances_train2017
    words = [word for word in re.findall("[a-z]+", path.stem.lower()) if word in SPLITS]
    split = SPLITS[words[0]] if words else ""
    own = [folder / place / name for name in dict.fromkeys((last, *words)) if split for place in ("", "images")]
    return _File(path, (*own, folder, folder / "images", path.parent), split if several else "", images, boxes)


def _check_apart(files: Sequence[_File]) -> None:
    """An image in two files would be two images."""
    owners: dict[Path, _File] = {}
    for file in files:
        for _, name in file.images:
            first = owners.setdefault(file.place_of(name), file)
            if first is not file:
                raise UserError(
                    f"{first.path.name} and {file.path.name} are COCO files that list the same image: "
                    "choose one with manifest, or say what the folders are with layout"
                )


def _boxes(path: Path, annotations: list[Any], places: dict[int, int]) -> dict[Any, list[Line]]:
    found: dict[Any, list[Line]] = defaultdict(list)
    for number, entry in enumerate(annotations):
        if entry["category_id"] not in places:
            raise UserError(f"{path.name}, annotation {number}: category {entry['category_id']} is not in categories")
        crowd = entry.get("iscrowd")  # a region of several that are not told apart: nothing to learn, no background
        line = [*entry["bbox"], -1 if crowd else places[entry["category_id"]]]
        found[entry["image_id"]].append(box_line(line, f"{path.name}, annotation {number}"))
    return found


def _records(files: Sequence[_File], folder: Path) -> Iterator[Record]:
    for source in files:
        for number, name in source.images:
            file = source.place_of(name)
            reader = reader_of(file)
            if reader is None:
                raise UserError(f"{source.path.name}: no reader opens a {file.suffix or 'nameless'} file")
            inside = file.relative_to(folder).parts[:-1] if file.is_relative_to(folder) else ()
            yield Record(
                name=name_of(file, folder),
                reader=reader,
                files=(file,),
                split=source.split or split_of(inside),
                boxes=tuple(value for line in source.boxes.get(number, []) for value in line),
                frame="file",
                boxed=True,
            )
