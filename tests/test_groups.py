"""Subgroups by the size of what is to be found, and the words of a comparison."""

import pytest
from stores import pictures, store_of

from ssl_med.data.rows import Row
from ssl_med.verbs.finetune import verdict
from ssl_med.verbs.groups import groups_of_rows

FACTS = {"patient": "", "study": "", "site": "", "split": "test", "label": -1, "modality": "CT", "dtype": "int16"}
NUMBERS = dict.fromkeys(("low", "high", "mean", "sd", "minimum", "maximum"), 0.0)


def row(number: int, boxes: list[float], spacing: list[float], affine: bool = True) -> Row:
    shape, world = [1] + [90] * len(spacing), [1.0] * 16 if affine else []
    more = {"shape": shape, "spacing": spacing, "affine": world, "has_mask": False, "mask_values": [], "sha256": ""}
    return Row(id=str(number), boxes=boxes, **FACTS, **NUMBERS, **more)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    return store_of(pictures(folder / "scans", 10), folder / "store")


def test_images_are_grouped_by_their_longest_box_in_mm(store):
    """Twelve scans with a box of 1 to 12 slices of 3 mm, and a smaller and an unknown one that do not count."""
    rows = [
        row(n, [0, 0, 0, n, 2, 3, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 80, 80, 80, -1], [3.0, 0.5, 0.5])
        for n in range(1, 13)
    ]
    rows += [row(13, [], [3.0, 0.5, 0.5]), row(14, [0, 0, 0, 9, 9, 9, -1], [3.0, 0.5, 0.5])]
    groups = groups_of_rows(store, rows, "boxes")["longest side of a box (mm)"]
    assert groups[12:] == ["", ""]
    assert len(set(groups[:12])) == 3
    assert [len(set(groups[first : first + 4])) for first in (0, 4, 8)] == [1, 1, 1]
    assert "36" in groups[11]
    assert groups_of_rows(store, rows, "label") == {}


def test_without_a_spacing_boxes_are_told_in_voxels(store):
    rows = [row(n, [0, 0, n, 2, n % 2], [1.0, 1.0], affine=False) for n in range(3, 15)]
    groups = groups_of_rows(store, rows, "boxes")
    assert list(groups) == ["longest side of a box (voxels)"]
    assert "14" in groups["longest side of a box (voxels)"][-1]


@pytest.mark.parametrize(
    ("low", "high", "begins"),
    [
        (0.01, 0.05, "Pretraining helped: "),
        (-0.05, -0.01, "Pretraining did harm: "),
        (-0.1, 0.1, "Pretraining did not help measurably: "),
    ],
)
def test_an_interval_over_seeds_says_nothing_of_new_patients(low, high, begins):
    said = verdict("balanced_accuracy", (low + high) / 2, low, high, 3)
    assert said.startswith(f"{begins}balanced accuracy (")
    assert "over 3 seeds) on these test images; " in said
    assert said.endswith("for new patients is told by ssl-med curve.")
