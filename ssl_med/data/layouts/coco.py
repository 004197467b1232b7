"""A COCO file: JSON with ``images``, ``annotations`` (boxes x, y, w, h in pixels) and ``categories``."""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ssl_med.data.layouts.base import Layout, Plan, name_of, split_of
from ssl_med.data.layouts.box_table import Line, box_line
from ssl_med.data.layouts.dataset_json import load_json
from ssl_med.data.readers import reader_of
from ssl_med.data.record import Record
from ssl_med.errors import UserError

_PLACES = ("", "images")


def is_coco(content: Any) -> bool:
    """Whether the content of a JSON file is that of COCO's object detection."""
    lists = ("images", "annotations", "categories")
    return isinstance(content, dict) and all(isinstance(content.get(name), list) for name in lists)


def plan_coco(path: Path, content: dict[str, Any], folder: Path) -> Plan:
    """Understand a COCO file; its categories become classes 0, 1, 2 ... in the order of their ids, crowds class -1.

    Args:
        path: the JSON file.
        content: of it.
        folder: what its file names are relative to, or its folder ``images``.

    Raises:
        UserError: an annotation of an unknown category, or one that is no box.
    """
    try:
        categories = sorted((int(entry["id"]), str(entry.get("name", entry["id"]))) for entry in content["categories"])
        boxes = _boxes(path, content["annotations"], {number: place for place, (number, _) in enumerate(categories)})
        images = [(entry["id"], str(entry["file_name"])) for entry in content["images"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path.name} is no COCO file: {error} is missing or of the wrong type in an entry") from None
    names = tuple(name for _, name in categories)
    count = sum(line[-1] >= 0 for lines in boxes.values() for line in lines)
    layout = Layout(f"COCO {path.name}: {len(images)} images, {count} boxes", files=len(images), box_names=names)
    return Plan(layout, partial(_records, path, folder, images, boxes))


def find_coco(folder: Path, most_bytes: int) -> tuple[Path, dict[str, Any]] | None:
    """The only COCO file at the top of a folder or in its folder ``annotations``, and its content."""
    found = []
    paths = [*folder.glob("*.json"), *folder.glob("annotations/*.json")] if folder.is_dir() else []
    for path in sorted(paths):
        if path.stat().st_size > most_bytes:
            continue
        try:
            content = load_json(path)
        except UserError:
            continue  # any JSON may lie in a data folder
        if is_coco(content):
            found.append((path, content))
    return found[0] if len(found) == 1 else None


def _boxes(path: Path, annotations: list[Any], places: dict[int, int]) -> dict[Any, list[Line]]:
    found: dict[Any, list[Line]] = defaultdict(list)
    for number, entry in enumerate(annotations):
        if entry["category_id"] not in places:
            raise UserError(f"{path.name}, annotation {number}: category {entry['category_id']} is not in categories")
        crowd = entry.get("iscrowd")  # a region of several that are not told apart: nothing to learn, no background
        line = [*entry["bbox"], -1 if crowd else places[entry["category_id"]]]
        found[entry["image_id"]].append(box_line(line, f"{path.name}, annotation {number}"))
    return found


def _records(path: Path, folder: Path, images: list[tuple[Any, str]], boxes: dict[Any, list[Line]]) -> Iterator[Record]:
    for number, name in images:
        places = [folder / place / name for place in _PLACES] + [path.parent / name]
        file = next((place for place in places if place.exists()), places[0])  # a missing file is told when it is read
        reader = reader_of(file)
        if reader is None:
            raise UserError(f"{path.name}: no reader opens a {file.suffix or 'nameless'} file")
        yield Record(
            name=name_of(file, folder),
            reader=reader,
            files=(file,),
            split=split_of(file.relative_to(folder).parts[:-1]) if file.is_relative_to(folder) else "",
            boxes=tuple(value for line in boxes.get(number, []) for value in line),
            frame="file",
            boxed=True,
        )
