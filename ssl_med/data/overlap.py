"""Who is in pretraining and in test: by patient, by content and by likeness, so that no score is quoted unseen.

Identifiers of patients are hashed with the private key of their store, so they tell something only within one store or
between stores prepared with the same key; content hashes and perceptual hashes can always be compared.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_med.data.likeness import near_duplicates, perceptual_hash
from ssl_med.data.manifest import locks_in, read_lock
from ssl_med.data.rows import Row
from ssl_med.errors import UserError

__all__ = ["Members", "Overlap", "check_overlap", "near_duplicates", "overlap", "perceptual_hash", "refuse_overlap"]

_MOST_LISTED = 10


@dataclass(frozen=True)
class Members:
    """The images of one set, by what can be compared.

    Attributes:
        ids: keyed hash of where each came from.
        patients: keyed hash of each image's patient.
        contents: SHA-256 of each image's voxels, hexadecimal.
        hashes: perceptual hashes, 0 where there is none; None if none were recorded.
        key: public name of the key behind ``ids`` and ``patients``; empty where it was not recorded.
    """

    ids: list[str]
    patients: list[str]
    contents: list[str]
    hashes: np.ndarray | None = None
    key: str = ""

    @classmethod
    def of_rows(cls, rows: Iterable[Row], key: str = "") -> "Members":
        """Rows of a store, and the name of its key where the store has one."""
        found = [(row.id, row.patient, row.sha256, row.phash) for row in rows]
        ids, patients, contents, hashes = (list(column) for column in zip(*found, strict=True)) if found else ([],) * 4
        return cls(ids, patients, contents, np.array(hashes, np.int64), key)

    @classmethod
    def of_lock(cls, path: Path) -> "Members":
        """What a run recorded in its ``manifest.lock``."""
        table, _ = read_lock(path)
        columns = {name: table.column(name).to_pylist() for name in ("id", "patient", "sha256")}
        contents = [value.hex() if isinstance(value, bytes) else str(value) for value in columns["sha256"]]
        hashes = table.column("phash").to_numpy() if "phash" in table.column_names else None
        key = (table.schema.metadata or {}).get(b"key", b"").decode()
        return cls(columns["id"], columns["patient"], contents, hashes, key)


@dataclass(frozen=True)
class Overlap:
    """What two sets share.

    Attributes:
        patients: keyed hashes of the patients that are in both.
        contents: pairs of ids with the same voxels, pretraining first.
        near: pairs of ids that look alike, with the number of differing bits; pairs of ``contents`` are not repeated.
        recorded: the pretraining says which images it used.
        patients_compared: an empty ``patients`` means that nobody is in both; False: the keys differ or are unknown.
        near_compared: both sets have perceptual hashes.
    """

    patients: tuple[str, ...] = ()
    contents: tuple[tuple[str, str], ...] = ()
    near: tuple[tuple[str, str, int], ...] = ()
    recorded: bool = True
    patients_compared: bool = True
    near_compared: bool = True

    def __bool__(self) -> bool:
        """The same patient or the same image is in both; likeness alone is no proof."""
        return bool(self.patients or self.contents)

    def sentences(self) -> list[str]:
        """What a person should read, without anything that names a patient."""
        if not self.recorded:
            return ["overlap with the pretraining cannot be checked: it recorded no manifest.lock"]
        lines = []
        if self.patients:
            lines.append(f"{len(self.patients)} patients of the test images are in the pretraining too")
        elif not self.patients_compared:
            lines.append(
                "patients cannot be compared with the pretraining: its store has another key, or an unknown one"
            )
        if self.contents:
            lines.append(
                f"{len(self.contents)} test images are in the pretraining too, voxel by voxel{_few(self.contents)}"
            )
        if self.near:
            lines.append(f"{len(self.near)} pairs of a pretraining and a test image look alike{_few(self.near)}")
        elif not self.near_compared:
            lines.append("near duplicates cannot be looked for: perceptual hashes were not recorded")
        return lines or ["no patient and no image of the test is in the pretraining"]

    def facts(self) -> dict[str, Any]:
        """Counts for a report or a table."""
        return {
            "patients": len(self.patients) if self.patients or self.patients_compared else None,
            "images": len(self.contents) if self.recorded else None,
            "near": len(self.near) if self.near_compared else None,
        }


def _few(pairs: tuple[tuple[Any, ...], ...]) -> str:
    shown = ", ".join(f"{pair[0]} and {pair[1]}" for pair in pairs[:_MOST_LISTED])
    return f" ({shown}{', ...' if len(pairs) > _MOST_LISTED else ''})"


def overlap(pretraining: Members, test: Members, distance: int = 4) -> Overlap:
    """Compare two sets of images.

    Args:
        pretraining: what a backbone has seen.
        test: what it is judged by.
        distance: most bits in which the perceptual hashes of near duplicates differ.
    """
    shared = sorted(set(pretraining.patients) & set(test.patients) - {""})
    seen: dict[str, str] = {}
    for content, name in zip(pretraining.contents, pretraining.ids, strict=True):
        seen.setdefault(content, name)
    same = [(seen[c], name) for c, name in zip(test.contents, test.ids, strict=True) if c in seen]
    return Overlap(
        patients=tuple(shared),
        contents=tuple(same),
        near=tuple(_near(pretraining, test, {name for _, name in same}, distance)),
        patients_compared=_same_key(pretraining, test),
        near_compared=pretraining.hashes is not None and test.hashes is not None,
    )


def _same_key(first: Members, second: Members) -> bool:
    """One key made both: by its name, or because an image has the same id in both."""
    if first.key and second.key:
        return first.key == second.key
    return not set(first.ids).isdisjoint(second.ids)


def _near(pretraining: Members, test: Members, known: set[str], distance: int) -> list[tuple[str, str, int]]:
    if pretraining.hashes is None or test.hashes is None:
        return []
    pairs = near_duplicates(pretraining.hashes, distance, test.hashes)
    return [(pretraining.ids[i], test.ids[j], bits) for i, j, bits in pairs if test.ids[j] not in known]


def refuse_overlap(found: Overlap, allow: bool = False) -> None:
    """Stop where a patient or an image is in pretraining and in test.

    Raises:
        UserError: there is such an overlap and it was not allowed.
    """
    if found and not allow:
        told = "; ".join(found.sentences())
        raise UserError(
            f"{told}: test on other patients, pretrain without them, or say --allow_overlap to list them only"
        )


def _locks_of(pretrained: Path) -> list[Path]:
    """In the folder of a run or an export, one of each store; an export inside a run belongs to that run."""
    places = [pretrained, *([pretrained.parent.parent] if pretrained.parent.name == "exports" else [])]
    return next((locks for place in places if (locks := locks_in(place))), [])


def _together(found: list[Overlap]) -> Overlap:
    """What the test shares with any of several stores."""
    return Overlap(
        patients=tuple(sorted({patient for one in found for patient in one.patients})),
        contents=tuple(pair for one in found for pair in one.contents),
        near=tuple(pair for one in found for pair in one.near),
        patients_compared=all(one.patients_compared for one in found),
        near_compared=all(one.near_compared for one in found),
    )


def check_overlap(
    pretrained: str | Path,
    test: Iterable[Row],
    key: str = "",
    allow: bool = False,
    distance: int = 4,
) -> Overlap:
    """Compare what a pretraining has seen with the rows that its fine-tuning will be tested on.

    Args:
        pretrained: folder of a run or an export, with the ``manifest.lock`` of each of its stores.
        test: rows of the test split.
        key: name of the key of the test store, see :class:`Members`.
        allow: only tell what is in both.
        distance: see :func:`overlap`.

    Returns:
        What is shared; ``recorded`` is False for a pretraining without ``manifest.lock``, of which nothing is known.

    Raises:
        UserError: a patient or an image is in both, and it was not allowed.
    """
    locks = _locks_of(Path(pretrained))
    if not locks:
        return Overlap(recorded=False, patients_compared=False, near_compared=False)
    tested = Members.of_rows(test, key)
    found = _together([overlap(Members.of_lock(lock), tested, distance) for lock in locks])
    refuse_overlap(found, allow)
    return found
