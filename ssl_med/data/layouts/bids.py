"""BIDS: ``sub-*/[ses-*/]anat/...``, patient facts in ``participants.tsv``, masks under ``derivatives``."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ssl_med.data.layouts.base import File, Layout, Plan, name_of, stem_of
from ssl_med.data.layouts.expand import image_records
from ssl_med.data.layouts.ignored import notes_of
from ssl_med.data.layouts.targets import group_of, is_target, targets_of
from ssl_med.data.layouts.walk import leaves
from ssl_med.data.record import Record
from ssl_med.errors import UserError

_SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")
_SESSION = re.compile(r"ses-[A-Za-z0-9]+")
_BESIDE_SUBJECTS = {"derivatives", "sourcedata", "code", "stimuli", "phenotype"}
_MODALITIES = {"anat": "MR", "func": "MR", "dwi": "MR", "fmap": "MR", "perf": "MR", "pet": "PT", "ct": "CT"}
_MASKS = ("dseg", "mask")
_GROUPS = ("sex", "age", "group")
_KNOWN = "label, site, labels, value, label:NAME and group:NAME"
_NOT_IDENTITY = {"desc", "label", "res", "den", "space"}
_SAME_GRID = {None, "orig", "T1w", "T2w", "FLAIR", "individual"}


def is_bids(folder: Path) -> bool:
    """A description with a BIDS version, or nothing but subjects at the top."""
    description = folder / "dataset_description.json"
    if description.is_file():
        try:
            return "BIDSVersion" in json.loads(description.read_text(encoding="utf-8"))
        except ValueError:
            return False
    tops = [p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."] if folder.is_dir() else []
    subjects = [name for name in tops if _SUBJECT.fullmatch(name)]
    return bool(subjects) and set(tops) <= {*subjects, *_BESIDE_SUBJECTS}


@dataclass(frozen=True)
class _People:
    """Facts of ``participants.tsv``: subject -> fields of a record."""

    facts: dict[str, dict[str, Any]]
    class_names: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    finding_names: tuple[str, ...] = ()


def plan_bids(folder: Path, columns: dict[str, str]) -> Plan:
    """Understand a BIDS data set.

    Args:
        folder: of the data set.
        columns: ``label``, ``site``, ``labels``, ``value``, ``label:NAME`` and ``group:NAME`` may name columns of
            ``participants.tsv``. Its sex, age (in bands of ten years) and group are subgroups by themselves.

    Raises:
        UserError: a column that is not there, or labels that are no classes.
    """
    people = _people(folder / "participants.tsv", columns)
    files = masks = locked = 0
    ignored: Counter[str] = Counter()
    for leaf in leaves(folder):
        inside = _is_raw(leaf.parts)
        files += len(leaf.images) if inside else 0
        ignored += leaf.ignored
        locked += leaf.locked
        masks += sum(_is_mask(file.path) for file in leaf.images) if leaf.parts[:1] == ("derivatives",) else 0
    name = f"BIDS, {masks} masks in derivatives" if masks else "BIDS"
    notes = ()
    if people.others and "label" not in columns:
        notes = (f"participants.tsv has {', '.join(people.others)}: say columns={{'label': ...}} to use one as label",)
    notes += notes_of(ignored, locked)
    layout = Layout(name, people.class_names, ignored.total(), notes, files=files, finding_names=people.finding_names)
    return Plan(layout, partial(_records, folder, people))


def _people(path: Path, columns: dict[str, str]) -> _People:
    unknown = {field for field in columns if field not in ("label", "site") and not _is_fact(field)}
    if unknown:
        raise UserError(f"columns: {', '.join(sorted(unknown))} cannot be set for BIDS, only {_KNOWN}")
    if not path.is_file():
        if columns:
            raise UserError(f"columns were given, but {path.name} does not exist")
        return _People({})
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    header = list(rows[0]) if rows else []
    for field in ("label", "site"):
        if columns.get(field) and columns[field] not in header:
            raise UserError(f"participants.tsv has no column {columns[field]!r}: it has {', '.join(header)}")
    site, label = columns.get("site", "site" if "site" in header else ""), columns.get("label", "")
    own = {f"group:{name}": name for name in _GROUPS if name in header and name != label}
    asked = {field: column for field, column in columns.items() if _is_fact(field)}
    targets = targets_of(path, header, own | asked, path.parent)
    targets.check_groups({name: [group_of(name, r[c] or "") for r in rows] for name, c in targets.groups.items()})
    words = sorted({row[label] for row in rows if label and row[label] not in ("", "n/a", None)})
    classes = {word: number for number, word in enumerate(words)}
    facts = {}
    for row in rows:
        subject = str(row.get("participant_id"))
        facts[subject] = targets.of(row, subject, path.name)
        facts[subject] |= {
            "site": row[site] or "" if site else "",
            "label": classes.get(row[label], -1) if label else -1,
        }
    others = tuple(name for name in header if name not in ("participant_id", site))
    return _People(facts, tuple(words), others, targets.finding_names)


def _is_fact(field: str) -> bool:
    return is_target(field) and not field.startswith("boxes")


def _is_raw(parts: tuple[str, ...]) -> bool:
    return bool(parts) and _SUBJECT.fullmatch(parts[0]) is not None


def _records(folder: Path, people: _People) -> Iterator[Record]:
    for leaf in leaves(folder):
        if not _is_raw(leaf.parts):
            continue
        subject = leaf.parts[0]
        facts = people.facts.get(subject, {})
        masks = _masks(folder, leaf.parts, leaf.images)
        for file in leaf.images:
            record = Record(
                name=name_of(file.path, folder),
                reader=file.reader,
                files=(file.path,),
                mask=leaf.beside.get(file.path) or masks.get(file.path),
                patient=subject,
                study=next((part for part in leaf.parts if _SESSION.fullmatch(part)), ""),
                modality=_MODALITIES.get(leaf.parts[-1], ""),
            )
            yield from image_records(replace(record, **facts))


def _is_mask(path: Path) -> bool:
    return stem_of(path).rsplit("_", 1)[-1] in _MASKS


def _masks(folder: Path, parts: tuple[str, ...], images: list[File]) -> dict[Path, Path]:
    """Masks under ``derivatives/*`` at the place of one folder of images, on the grid of the image they belong to.

    A mask belongs to the image of the same subject, session, run ...; among scans of different contrast to the one its
    ``space`` names, else to the T1w, else to the first.
    """
    found: dict[Path, Path] = {}
    for place in sorted(folder.glob("derivatives/*")):
        inside = place.joinpath(*parts)
        candidates = sorted(path for path in inside.iterdir() if _is_mask(path)) if inside.is_dir() else []
        for mask in sorted(candidates, key=lambda path: _MASKS.index(stem_of(path).rsplit("_", 1)[-1])):
            entities = _entities(mask)
            if entities.get("space") in _SAME_GRID and (image := _owner(entities, images)):
                found.setdefault(image, mask)
    return found


def _owner(entities: dict[str, str], images: list[File]) -> Path | None:
    identity = {key: value for key, value in entities.items() if key not in _NOT_IDENTITY}
    same = [file.path for file in images if _entities(file.path) == identity]
    for suffix in (entities.get("space"), "T1w"):
        for path in same:
            if suffix and stem_of(path).endswith(f"_{suffix}"):
                return path
    return same[0] if same else None


def _entities(path: Path) -> dict[str, str]:
    parts = (part.partition("-") for part in stem_of(path).split("_"))
    return {key: value for key, dash, value in parts if dash}
