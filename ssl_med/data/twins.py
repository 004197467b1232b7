"""Images of one store that are the same, or look alike, although they stand in other splits or under other patients.

A score on a test image that was trained on under another name is worth nothing, and folders of several sources are full
of such copies.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_med.data.likeness import near_duplicates
from ssl_med.data.rows import Rows

MOST_COMPARED = 50_000
"""Images up to which hashes that differ in a few bits are looked for, in seconds; beyond it equal ones only."""

_MOST_PAIRS = 100_000
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("first", "second", "first_split", "second_split", "kind")]
    + [("bits", pa.int64())]
)


@dataclass(frozen=True)
class Twins:
    """Pairs of images, as places in the rows that were looked at; a copy is listed with the first of its kind.

    Attributes:
        splits: the same voxels in different splits.
        patients: the same voxels in one split, under different patients.
        near: places and number of differing bits of images in different splits whose perceptual hashes are alike.
        distance: most bits in which these differ.
    """

    splits: tuple[tuple[int, int], ...] = ()
    patients: tuple[tuple[int, int], ...] = ()
    near: tuple[tuple[int, int, int], ...] = ()
    distance: int = 4

    def __bool__(self) -> bool:
        return bool(self.splits or self.patients or self.near)

    def sentence(self) -> str:
        """What a person should know; empty where there is nothing."""
        parts, same = [], _places(self.splits)
        if same:
            parts.append(f"{len(same)} images stand in more than one of train, val and test (same voxels)")
        if self.patients:
            parts.append(f"{len(_places(self.patients))} images stand under more than one patient (same voxels)")
        if alike := _places(self.near) - same:
            word = f"perceptual hashes within {self.distance} bits" if self.distance else "equal perceptual hashes"
            parts.append(f"{len(alike)} {'more ' if same else ''}images look alike across splits ({word})")
        return "; ".join(parts)


def _places(pairs: tuple[tuple[int, ...], ...]) -> set[int]:
    return {place for pair in pairs for place in pair[:2]}


def twins(rows: Rows, most: int = MOST_COMPARED) -> Twins:
    """Look for the same and for similar images among the rows of a store.

    Only columns are looked at; a million rows take seconds. One patient is in one split only, so what looks alike
    across splits belongs to different patients.

    Args:
        rows: with their splits.
        most: rows up to which hashes that differ in up to 4 bits are looked for; beyond it only equal ones.
    """
    splits, patients = _codes(rows, "split"), _codes(rows, "patient")
    contents = _codes(rows, "sha256")
    apart: dict[Literal["splits", "patients"], list[tuple[int, int]]] = {"splits": [], "patients": []}
    for group in _groups(contents):
        kind = "splits" if len(set(splits[group].tolist())) > 1 else "patients"
        for place in group[1:].tolist():
            first = int(group[0])
            if kind == "splits" or patients[place] != patients[first]:
                apart[kind].append((first, place))
    distance = 4 if len(rows) <= most else 0
    near = [(a, b, bits) for a, b, bits in _near(rows.column("phash"), splits, distance) if contents[a] != contents[b]]
    return Twins(tuple(apart["splits"]), tuple(apart["patients"]), tuple(near), distance)


def _codes(rows: Rows, name: str) -> np.ndarray:
    """A number for each different text of a column."""
    column = rows.table.column(name).combine_chunks()
    codes = column.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return codes if rows.chosen is None else codes[rows.chosen]


def _groups(codes: np.ndarray) -> Iterator[np.ndarray]:
    """Places of every number that occurs more than once, in order."""
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        yield order[start:end]


def _near(hashes: np.ndarray, splits: np.ndarray, distance: int) -> list[tuple[int, int, int]]:
    """Pairs of each split with all later ones; those of one split, often slices of one film, are never compared."""
    found: list[tuple[int, int, int]] = []
    for split in range(int(splits.max(initial=-1))):
        own, others = np.flatnonzero(splits == split), np.flatnonzero(splits > split)
        pairs = near_duplicates(hashes[own], distance, hashes[others], _MOST_PAIRS - len(found))
        for i, j, bits in pairs:
            one, other = int(own[i]), int(others[j])
            found.append((min(one, other), max(one, other), bits))
    return sorted(found)


def write_twins(found: Twins, rows: Rows, path: Path) -> None:
    """Write the pairs of ids, readable for their owner alone; a list of earlier goes where nothing is found.

    Args:
        found: places in ``rows``.
        rows: what was looked at.
        path: of a parquet file.
    """
    if not found:
        path.unlink(missing_ok=True)
        return
    ids, splits = rows.column("id"), rows.column("split")
    lines: list[dict[str, Any]] = []
    kinds = [("same voxels, other split", found.splits), ("same voxels, other patient", found.patients)]
    for kind, pairs in [*kinds, ("looks alike, other split", found.near)]:
        for first, second, *bits in pairs:
            places = {"first": ids[first], "second": ids[second]}
            where = {"first_split": splits[first], "second_split": splits[second]}
            lines.append({**places, **where, "kind": kind, "bits": bits[0] if bits else 0})
    path.touch(mode=0o600)
    pq.write_table(pa.Table.from_pylist(lines, _SCHEMA), path)
