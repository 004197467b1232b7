"""Splits and labelled subsets, always by patient; subsets are nested, stratified and a function of the seed."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ssl_med.data.store import Row
from ssl_med.errors import UserError


def assign_splits(rows: list[Row], seed: int = 0, before: Mapping[str, str] | None = None) -> list[Row]:
    """Give every patient one split.

    A folder that tests on labelled images keeps its splits, and what it leaves open is train. Where no labelled image
    is in a test split (MSD and nnU-Net keep theirs unlabelled), labelled patients are dealt: 20 % to test and, unless
    the folder has labelled validation images, 10 % to val.

    Args:
        rows: of a store, in the order of the index.
        seed: of the deal.
        before: splits that patients were dealt earlier, which they keep, so that nobody moves from train to test.

    Raises:
        UserError: the folder puts images of one patient into different splits.
    """
    split = {patient: given or "train" for patient, given in _given_splits(rows).items()}
    labelled = list(dict.fromkeys(row.patient for row in rows if row.has_mask or row.label >= 0))
    if "test" not in {split[patient] for patient in labelled}:
        kept = {patient: (before or {}).get(patient) for patient in labelled if split[patient] == "train"}
        new = [patient for patient, earlier in kept.items() if earlier is None]
        share = 0.0 if "val" in {split[patient] for patient in labelled} else 0.1
        split |= {patient: earlier for patient, earlier in kept.items() if earlier} | _deal(new, share, seed)
    return [replace(row, split=split[row.patient]) for row in rows]


def _given_splits(rows: list[Row]) -> dict[str, str]:
    given: dict[str, str] = {}
    for row in rows:
        if row.split and given.get(row.patient) not in (None, "", row.split):
            raise UserError(
                f"one patient has images in {given[row.patient]!r} and in {row.split!r}: choose one of them"
            )
        given[row.patient] = given.get(row.patient) or row.split
    return given


def _deal(patients: list[str], val_share: float, seed: int) -> dict[str, str]:
    order = np.random.default_rng((seed, 1)).permutation(len(patients))
    test, val = round(0.2 * len(patients)), round(val_share * len(patients))
    return {patients[i]: "test" if n < test else "val" if n < test + val else "train" for n, i in enumerate(order)}


def labelled_subset(rows: list[Row], labels: int | float | None, seed: int) -> list[Row]:
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
    groups: dict[int, list[str]] = defaultdict(list)
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(row.patient, row.label)
    for patient, label in first.items():  # in the order of the index: ids are keyed hashes and differ between stores
        groups[label].append(patient)
    rng = np.random.default_rng((seed, 2))
    shuffled = [[patients[i] for i in rng.permutation(len(patients))] for _, patients in sorted(groups.items())]
    places = sorted(((n + 0.5) / len(group), g, n) for g, group in enumerate(shuffled) for n in range(len(group)))
    order = [shuffled[g][n] for _, g, n in places]
    count = labels if isinstance(labels, int) else max(1, round(labels * len(order)))
    if labels <= 0 or count > len(order):
        raise UserError(f"labels: asked for {labels} labelled patients, the training split has {len(order)}")
    chosen = set(order[:count])
    return [row for row in rows if row.patient in chosen]
