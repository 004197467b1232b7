"""A MONAI datalist: JSON with lists ``training``, ``validation``, ``test`` of ``{"image": ..., "label": ...}``."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ssl_med.data.layouts.base import SPLITS, Layout, Plan, name_of
from ssl_med.data.layouts.box_table import box_line
from ssl_med.data.layouts.dataset_json import load_json, read_dataset
from ssl_med.data.layouts.targets import finding, number_of
from ssl_med.data.readers import reader_of
from ssl_med.data.record import Record
from ssl_med.errors import UserError

MOST_BYTES = 1 << 28
"""Larger JSON files at the top of a folder are not opened to see whether they are a datalist."""


def plan_datalist(path: Path, folder: Path) -> Plan:
    """Understand a datalist that was asked for.

    Args:
        path: the JSON file.
        folder: what its paths are relative to; if they are not there, they are relative to the file.

    Raises:
        UserError: no list of images in it, an entry without image, or a label that is neither file nor class.
    """
    content = load_json(path)
    lists = _lists(content)
    if not lists:
        raise UserError(
            f"{path.name} holds no list of images, expected training, validation or test with "
            'entries such as {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}'
        )
    counts = ", ".join(f"{len(entries)} {name}" for name, entries in lists.items())
    dataset = read_dataset(path.parent)
    layout = Layout(
        f"MONAI datalist {path.name}: {counts}",
        mask_names=dict(dataset.mask_names),
        files=sum(map(len, lists.values())),
        ignored_labels=dataset.ignored,
    )
    return Plan(layout, partial(_records, path, folder, lists, dataset.modality))


def find_datalist(folder: Path) -> Path | None:
    """The only JSON file at the top of a folder that is a datalist of files that exist; None if there is none."""
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        if path.stat().st_size > MOST_BYTES:
            continue
        try:
            lists = _lists(load_json(path))
        except UserError:
            continue  # any JSON may lie in a data folder
        first = next((_images(entry) for entries in lists.values() for entry in entries), ())
        if first and _place(first[0], path, folder).is_file():
            found.append(path)
    return found[0] if len(found) == 1 else None


def _lists(content: Any) -> dict[str, list[Any]]:
    if not isinstance(content, dict):
        return {}
    lists = {key: value for key, value in content.items() if key.lower() in SPLITS and isinstance(value, list)}
    return {key: value for key, value in lists.items() if any(_images(entry) for entry in value)}


def _images(entry: Any) -> tuple[str, ...]:
    """Files of an entry in the order of its channels; a test list may hold bare file names."""
    value = entry.get("image") if isinstance(entry, dict) else entry
    values = value if isinstance(value, list) else [value]
    names = tuple(name for name in values if isinstance(name, str) and name)
    return names if len(names) == len(values) else ()


def _place(name: str, path: Path, folder: Path) -> Path:
    places = (folder / name, path.parent / name)
    return next((place for place in places if place.exists()), places[0])  # a missing file is told when it is read


def _records(path: Path, folder: Path, lists: dict[str, list[Any]], modality: str) -> Iterator[Record]:
    for key, entries in lists.items():
        for number, entry in enumerate(entries):
            where = f"{path.name}, entry {number} of {key}"
            files = tuple(_place(name, path, folder) for name in _images(entry))
            readers = {reader_of(file) for file in files}
            if not files or len(readers) > 1 or None in readers:
                raise UserError(f"{where} names no image that a reader opens: expected 'image' with a file or channels")
            facts = entry if isinstance(entry, dict) else {}
            mask, label = _label(facts.get("label"), path, folder, where)
            yield Record(
                name=name_of(files[0], folder),
                reader="stack" if len(files) > 1 else str(readers.pop()),
                files=files,
                mask=mask,
                label=label,
                patient=str(facts.get("patient") or facts.get("subject") or ""),
                split=SPLITS[key.lower()],
                modality=modality,
                site=str(facts.get("site") or ""),
                **_targets(facts, where),
            )


def _targets(facts: dict[str, Any], where: str) -> dict[str, Any]:
    """Findings (``labels``: a list of 1, 0 and -1), a number (``value``) and boxes (in voxels) of an entry."""
    found: dict[str, Any] = {}
    if isinstance(labels := facts.get("labels"), list):
        found["labels"] = tuple(finding(str(value), f"{where}, labels") for value in labels)
    if "value" in facts:
        found["value"] = number_of("" if facts["value"] is None else str(facts["value"]), f"{where}, value")
    if isinstance(boxes := facts.get("boxes"), list):
        found["boxes"] = tuple(number for entry in boxes for number in box_line(entry, f"{where}, boxes"))
        found["frame"], found["boxed"] = "file", True
    return found


def _label(value: Any, path: Path, folder: Path, where: str) -> tuple[Path | None, int]:
    """(mask, class) of what stands under ``label``: a file, a whole number, or nothing."""
    if value is None or value == "":
        return None, -1
    if isinstance(value, str):
        return _place(value, path, folder), -1
    if isinstance(value, int) and not isinstance(value, bool) and value >= -1:
        return None, value
    raise UserError(f"{where}: label is {value!r}, expected a mask file or a class 0, 1, 2 ...")
