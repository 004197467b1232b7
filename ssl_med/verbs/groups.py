"""Groups of test images for subgroup tables: from the columns of a store, the size of what is outlined, and a table."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ssl_med.data.rows import Row
from ssl_med.data.store import Store
from ssl_med.errors import UserError

_MOST_VALUES = 6
"""More different numbers than this in a column, and it is cut into bands."""
_NAMES = ("id", "patient", "image")
_UNKNOWN = {"", "na", "n/a", "nan", "none", "null", "unknown", "?", "-"}


def groups_of_rows(store: Store, rows: Sequence[Row], targets: str | None) -> dict[str, list[str]]:
    """Columns with more than one group among these images.

    Args:
        store: whose images.
        rows: the images.
        targets: of the fine-tuning; with ``mask`` the size of what is outlined is a column, with ``boxes`` the longest
            side of any box.
    """
    columns: dict[str, list[str]] = {
        "site": [row.site for row in rows],
        "modality": [row.modality for row in rows],
        "dataset": [row.dataset for row in rows],
        "class": [_class_name(store, row) for row in rows],
    }
    pairs = [dict(text.split("=", 1) for text in row.groups) for row in rows]
    for name in sorted({name for pair in pairs for name in pair}):
        columns[name] = [pair.get(name, "") for pair in pairs]
    if targets == "mask":
        unit = "ml" if store.spatial_dims == 3 else "mm2"
        columns[f"outlined size ({unit})"] = [f"{_size(store, row):.6g}" for row in rows]
    if targets == "boxes":
        columns |= _longest_sides(rows)
    codes = ("site", "modality", "dataset", "class")  # may look like numbers, and are none
    bands = {name: values if name in codes else banded(values) for name, values in columns.items()}
    return {name: cut for name, cut in bands.items() if len(set(cut) - {""}) > 1}


def _class_name(store: Store, row: Row) -> str:
    if row.label < 0:
        return ""
    return store.class_names[row.label] if row.label < len(store.class_names) else str(row.label)


def _size(store: Store, row: Row) -> float:
    """Volume in ml, or area in mm2, of all labels above 0."""
    voxel = 1.0
    for length in row.spacing:
        voxel *= length
    return float((store.read(row, "masks") > 0).sum()) * voxel / (1000.0 if store.spatial_dims == 3 else 1.0)


def _longest_sides(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The longest side of any known box of an image, in voxels if images have no spacing; empty without a box."""
    metric = all(row.affine or set(row.spacing) != {1.0} for row in rows)
    values = []
    for row in rows:
        axes = len(row.spacing)
        lines = np.array(row.boxes).reshape(-1, 2 * axes + 1)
        sides = (lines[:, axes : 2 * axes] - lines[:, :axes])[lines[:, -1] >= 0]
        longest = (sides * row.spacing if metric else sides).max(initial=0.0)
        values.append(f"{longest:.6g}" if longest else "")
    return {f"longest side of a box ({'mm' if metric else 'voxels'})": values}


def banded(values: Sequence[str]) -> list[str]:
    """A column as it is; one of many different numbers in three bands of about as many images each."""
    from ssl_med.evidence.subgroups import bands

    values = ["" if value.lower() in _UNKNOWN else value for value in values]
    known = {value for value in values if value}
    try:
        numbers = {value: float(value) for value in known}
    except ValueError:
        return values
    if len(known) <= _MOST_VALUES:
        return values
    return bands([numbers.get(value) for value in values])


def groups_of_table(path: str | Path, store: Store, rows: Sequence[Row]) -> dict[str, list[str]]:
    """Columns of a CSV file, for these images.

    A column ``id`` holds ids as the store and the predictions have them; ``patient`` or ``image`` hold the names that
    the store was prepared from, which are hashed with the store's private key and compared, and never written.

    Args:
        path: of the table.
        store: whose images.
        rows: the images.

    Raises:
        UserError: no such file or column, names without the key of the store, or no line that fits.
    """
    if not Path(path).is_file():
        raise UserError(f"--groups {path}: there is no such file")
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        lines = list(csv.DictReader(file))
    key = next((name for name in _NAMES if lines and name in lines[0]), None)
    if key is None:
        raise UserError(f"--groups {path}: one column must be named {', '.join(_NAMES[:-1])} or {_NAMES[-1]}")
    named = _by_name(lines, key, store)
    found = [named.get(row.patient if key == "patient" else row.id, {}) for row in rows]
    if not any(found):
        raise UserError(f"--groups {path}: no line names a {key} of the test split")
    columns = [name for name in lines[0] if name and name not in _NAMES]
    groups = {name: banded([(line.get(name) or "").strip() for line in found]) for name in columns}
    for name, values in groups.items():
        if _names_patients(values, rows):
            raise UserError(f"--groups {path}: column {name!r} tells nearly every patient apart; leave it out")
    return groups


def _names_patients(values: Sequence[str], rows: Sequence[Row]) -> bool:
    """A column of names or numbers of patients is no group, and must not come into a report."""
    known = {row.patient for row, value in zip(rows, values, strict=True) if value}
    return len(known) > _MOST_VALUES and len(set(values) - {""}) > 0.8 * len(known)


def _by_name(lines: Sequence[Mapping[str, str]], key: str, store: Store) -> dict[str, Mapping[str, str]]:
    from ssl_med.data.ingest import keyed

    if key == "id":
        return {line["id"]: line for line in lines}
    secret = store.folder / "private" / "key"
    if not secret.is_file():
        raise UserError(f"--groups: the key of {store.folder} is not here, so {key}s cannot be found: use a column id")
    content = secret.read_bytes()
    return {keyed(content, line[key].strip()): line for line in lines}
