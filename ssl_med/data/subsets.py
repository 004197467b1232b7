"""Splits and labelled subsets, always by patient: nested, stratified, and a function of the seed alone."""

from collections import defaultdict
from dataclasses import replace

import numpy as np

from ssl_med.data.store import Row
from ssl_med.errors import UserError


def assign_splits(rows: list[Row], seed: int = 0) -> list[Row]:
    """Give rows a split where the folder gave none.

    A folder with splits keeps them. Otherwise patients with labels or masks are dealt 70 / 10 / 20 % into train, val
    and test; patients without any label are train.
    """
    if any(row.split for row in rows):
        return [row if row.split else replace(row, split="train") for row in rows]
    labelled = list(dict.fromkeys(row.patient for row in rows if row.has_mask or row.label >= 0))
    order = np.random.default_rng((seed, 1)).permutation(len(labelled))
    test, val = round(0.2 * len(labelled)), round(0.1 * len(labelled))
    split = {labelled[i]: "test" if n < test else "val" if n < test + val else "train" for n, i in enumerate(order)}
    return [replace(row, split=split.get(row.patient, "train")) for row in rows]


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
