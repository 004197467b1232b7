"""Splits and labelled subsets, always by patient; subsets are nested, stratified and a function of the seed."""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ssl_med.data.store import Row
from ssl_med.errors import UserError


def assign_splits(rows: list[Row], seed: int = 0, before: Mapping[str, str] | None = None) -> list[Row]:
    """The rows with the splits of their patients; see :func:`split_by_patient`."""
    split = split_by_patient(rows, seed, before)
    return [replace(row, split=split[row.patient]) for row in rows]


def split_by_patient(rows: Sequence[Row], seed: int = 0, before: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give every patient one split.

    A folder that tests on labelled images keeps its splits, and what it leaves open is train. Where no labelled image
    is in a test split (MSD and nnU-Net keep theirs unlabelled), labelled patients are dealt: 20 % to test and, unless
    the folder has labelled validation images, 10 % to val, each with the classes in proportion.

    Args:
        rows: of a store, in the order of the index.
        seed: of the deal.
        before: splits that patients were dealt earlier, which they keep, so that nobody moves from train to test.

    Returns:
        The split of every patient.

    Raises:
        UserError: the folder puts images of one patient into different splits.
    """
    split = {patient: given or "train" for patient, given in _given_splits(rows).items()}
    labelled = list(dict.fromkeys(row.patient for row in rows if row.has_target))
    if "test" not in {split[patient] for patient in labelled}:
        kept = {patient: (before or {}).get(patient) for patient in labelled if split[patient] == "train"}
        new = [patient for patient, earlier in kept.items() if earlier is None]
        share = 0.0 if "val" in {split[patient] for patient in labelled} else 0.1
        split |= {patient: earlier for patient, earlier in kept.items() if earlier}
        split |= _deal(_classes(rows, set(new)), share, seed)
    return split


def _given_splits(rows: Sequence[Row]) -> dict[str, str]:
    given: dict[str, str] = {}
    for row in rows:
        if row.split and given.get(row.patient) not in (None, "", row.split):
            raise UserError(
                f"one patient has images in {given[row.patient]!r} and in {row.split!r}: choose one of them"
            )
        given[row.patient] = given.get(row.patient) or row.split
    return given


def _deal(classes: Mapping[str, int], val_share: float, seed: int) -> dict[str, str]:
    """Deal patients; every split has the classes in proportion."""
    order = _in_proportion(classes, (seed, 1))
    test, val = round(0.2 * len(order)), round(val_share * len(order))
    return {name: "test" if n < test else "val" if n < test + val else "train" for n, name in enumerate(order)}


def _classes(rows: Iterable[Row], patients: Container[str] | None = None) -> dict[str, int]:
    """Class of each patient: that of their first image."""
    first: dict[str, int] = {}
    for row in rows:
        if patients is None or row.patient in patients:
            first.setdefault(row.patient, _class(row))
    return first


def _class(row: Row) -> int:
    """The class of an image; with several findings or boxes, whether there is any."""
    if row.label >= 0 or not (row.labels or row.boxes or row.boxed):
        return row.label
    return int(1 in row.labels or bool(row.boxes))


def _in_proportion(classes: Mapping[str, int], seed: tuple[int, int]) -> list[str]:
    """Patients in a random order of which every beginning has the classes in proportion.

    Drawn from the order of the index, since ids are keyed hashes and differ between stores.
    """
    groups: dict[int, list[str]] = defaultdict(list)
    for patient, label in classes.items():
        groups[label].append(patient)
    rng = np.random.default_rng(seed)
    shuffled = [[patients[i] for i in rng.permutation(len(patients))] for _, patients in sorted(groups.items())]
    places = sorted(((n + 0.5) / len(group), g, n) for g, group in enumerate(shuffled) for n in range(len(group)))
    return [shuffled[g][n] for _, g, n in places]


def labelled_subset(rows: Sequence[Row], labels: int | float | None, seed: int) -> Sequence[Row]:
    """Rows of a subset of the patients; a smaller subset of the same seed is contained in a larger one.

    Patients are ordered so that every beginning of the list has the classes in proportion (a patient counts as the
    class of their first image), then the first ones are taken.

    Args:
        rows: labelled rows.
        labels: number of patients (an integer of 1 or more), a share of them (a number below 1), or None for all.
        seed: of the draw.

    Raises:
        UserError: there are not that many patients.
    """
    if labels is None:
        return rows
    order = _in_proportion(_classes(rows), (seed, 2))
    count = labels if isinstance(labels, int) else max(1, round(labels * len(order)))
    if labels <= 0 or count > len(order):
        raise UserError(f"labels: asked for {labels} labelled patients, the training split has {len(order)}")
    chosen = set(order[:count])
    return [row for row in rows if row.patient in chosen]
