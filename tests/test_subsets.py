"""Splits and labelled subsets: by patient, nested, stratified, and a function of the seed alone."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from ssl_med.data.store import Row
from ssl_med.data.subsets import assign_splits, labelled_subset
from ssl_med.errors import UserError

BLANK = Row("", "", "", "", "", -1, "", [1, 8, 8], [1.0, 1.0], [], "uint8", False, [], "", *(0.0, 1.0) * 3)


def rows(patients: int, classes: tuple[int, ...] = (0, 1), images: int = 2, key: str = "k") -> list[Row]:
    """``images`` of each patient; the ids look different under another ``key``, as in another store."""
    return [
        replace(BLANK, id=f"{key}.{p}.{i}", patient=f"{key}.{p}", label=classes[p % len(classes)])
        for p in range(patients)
        for i in range(images)
    ]


def places(all_rows: list[Row], chosen: list[Row]) -> list[int]:
    return [number for number, row in enumerate(all_rows) if row in chosen]


def test_a_smaller_subset_lies_in_a_larger_one():
    found = rows(30, (0, 0, 1))
    subsets = [set(places(found, labelled_subset(found, n, seed=3))) for n in (1, 2, 5, 11, 30)]
    assert [len(s) for s in subsets] == [2, 4, 10, 22, 60]
    assert all(a < b for a, b in pairwise(subsets))


def test_patients_are_never_cut():
    found = rows(20, images=3)
    chosen = labelled_subset(found, 7, 0)
    assert set(Counter(row.patient for row in chosen).values()) == {3}
    assert len({row.patient for row in chosen}) == 7


@pytest.mark.parametrize("seed", range(5))
def test_every_beginning_has_the_classes_in_proportion(seed):
    found = rows(40, (0, 0, 0, 1), images=1)  # three to one
    for count in (4, 8, 20, 40):
        shares = Counter(row.label for row in labelled_subset(found, count, seed))
        assert abs(shares[1] - count / 4) <= 1
    assert {row.label for row in labelled_subset(found, 4, seed)} == {0, 1}


def test_seeds_differ_and_repeat():
    found = rows(30)
    draws = [tuple(places(found, labelled_subset(found, 6, seed))) for seed in range(6)]
    assert len(set(draws)) == 6
    assert draws == [tuple(places(found, labelled_subset(found, 6, seed))) for seed in range(6)]


def test_another_key_of_the_store_changes_nothing():
    first, second = rows(30, key="a"), rows(30, key="b")
    assert {row.id for row in first}.isdisjoint({row.id for row in second})
    for count in (3, 10):
        assert places(first, labelled_subset(first, count, 1)) == places(second, labelled_subset(second, count, 1))
    assert [r.split for r in assign_splits(first)] == [r.split for r in assign_splits(second)]


def test_shares_and_all():
    found = rows(20)
    assert labelled_subset(found, None, 0) == found
    assert len({r.patient for r in labelled_subset(found, 0.25, 0)}) == 5
    assert len({r.patient for r in labelled_subset(found, 0.001, 0)}) == 1
    assert len(labelled_subset(found, 1.0, 0)) == len(found)


@pytest.mark.parametrize("count", [0, -1, 21, 0.0, -0.5, 1.5])
def test_what_cannot_be_had_is_refused(count):
    with pytest.raises(UserError, match="has 20"):
        labelled_subset(rows(20), count, 0)


def test_splits_are_by_patient_and_in_the_shares_named():
    found = assign_splits(rows(50))
    by_patient: dict[str, set[str]] = {}
    for row in found:
        by_patient.setdefault(row.patient, set()).add(row.split)
    assert all(len(splits) == 1 for splits in by_patient.values())
    assert Counter(next(iter(s)) for s in by_patient.values()) == {"train": 35, "test": 10, "val": 5}


def test_given_splits_stay_and_patients_without_labels_train():
    given = [replace(row, split="test" if number < 4 else "") for number, row in enumerate(rows(5))]
    assert [row.split for row in assign_splits(given)] == ["test"] * 4 + ["train"] * 6
    assert {row.split for row in assign_splits(rows(10, (-1,)))} == {"train"}


def test_one_patient_in_two_splits_is_refused_and_an_open_image_follows_its_patient():
    first, second, third = rows(1, images=3)
    found = assign_splits([replace(first, split="test"), second, replace(third, split="test")])
    assert {row.split for row in found} == {"test"}
    with pytest.raises(UserError, match="one patient has images in 'test' and in 'train'"):
        assign_splits([replace(first, split="test"), replace(second, split="train")])


def test_labelled_patients_are_dealt_where_the_test_split_has_no_labels():
    labelled = [replace(row, split="train") for row in rows(20)]
    unlabelled = [replace(row, split="test", label=-1) for row in rows(5, key="u")]
    found = assign_splits([*labelled, *unlabelled])  # as MSD and nnU-Net folders are
    assert Counter(row.split for row in found[:40]) == {"train": 28, "val": 4, "test": 8}
    assert {row.split for row in found[40:]} == {"test"}


def test_nobody_moves_between_splits_when_patients_are_added():
    first = assign_splits(rows(20))
    before = {row.patient: row.split for row in first}
    found = assign_splits(rows(30), before=before)
    assert [row.split for row in found[:40]] == [row.split for row in first]
    assert Counter(row.split for row in found[40:]) == {"train": 14, "val": 2, "test": 4}


@pytest.mark.parametrize("seed", range(4))
def test_every_split_has_the_classes_in_proportion(seed):
    found = assign_splits(rows(60, (0, 0, 1, 2)), seed=seed)  # 30, 15 and 15 patients
    for split, patients in (("test", 12), ("val", 6), ("train", 42)):
        of_split = {row.patient: row.label for row in found if row.split == split}
        shares = Counter(of_split.values())
        assert len(of_split) == patients
        assert abs(shares[0] - patients / 2) <= 1.5
        assert abs(shares[1] - patients / 4) <= 1.5


@pytest.mark.parametrize("seed", range(20))
def test_fractions_nest_for_any_patients_and_classes(seed):
    """Random tables: 5 % lies in 10 % lies in 50 %; no patient is cut; a class of many patients is never left out."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(20, 80))
    classes = tuple(int(c) for c in rng.integers(0, 4, count))
    found = rows(count, classes, images=int(rng.integers(1, 4)))
    found = [found[i] for i in rng.permutation(len(found))]
    subsets = [labelled_subset(found, share, seed) for share in (0.05, 0.1, 0.5, 1.0)]
    for small, large in pairwise(subsets):
        assert {row.id for row in small} <= {row.id for row in large}
    for share, subset in zip((0.05, 0.1, 0.5, 1.0), subsets, strict=True):
        patients = {row.patient for row in subset}
        assert len(patients) == max(1, round(share * count))
        assert {row.id for row in subset} == {row.id for row in found if row.patient in patients}
    half = Counter({row.patient: row.label for row in subsets[2]}.values())
    for label, size in Counter(classes).items():
        assert abs(half[label] - size / 2) <= 1.5
