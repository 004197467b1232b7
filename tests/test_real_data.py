"""Real scans, where they are at hand: set SSL_MED_DATA to their folder. Never copied into the repository."""

import os
import shutil
from pathlib import Path

import pytest
from stores import build

from ssl_med.data.module import StoreData
from ssl_med.data.store import Store
from ssl_med.verbs.inspect import inspect

FOLDER = Path(os.environ.get("SSL_MED_DATA", Path(__file__).parents[2] / "shared" / "data"))
pytestmark = pytest.mark.real_data


def real(name: str) -> Path:
    if not (FOLDER / name).is_dir():
        pytest.skip(f"{name} is not in {FOLDER}: set SSL_MED_DATA")
    return FOLDER / name


@pytest.mark.parametrize(
    ("name", "limit", "expected"),
    [
        ("hippocampus_msd", 8, {"ranks": {"3D": 8}, "channels": {"1": 8}}),
        ("sunnybrook_lv", 20, {"ranks": {"2D": 20}, "types": {"uint8": 20}}),
        ("pneumoniamnist", 20, {"ranks": {"2D": 20}, "splits": {"train": 20}}),
        ("chula_rbc12", 20, {"ranks": {"2D": 20}, "channels": {"3": 20}}),
        ("mednist_64", 20, {"ranks": {"2D": 20}}),
        ("covid19_hannover_cxr", 20, {"ranks": {"2D": 20}}),
        ("dicom_t1_series", None, {"ranks": {"3D": 1}, "modalities": {"MR": 1}, "images": 1}),
        ("ct_example", None, {"ranks": {"3D": 1}, "images": 1}),
    ],
)
def test_every_set_is_understood(name, limit, expected, capsys):
    facts = inspect(real(name), limit=limit)
    assert facts["broken"] == []
    assert facts["usable"] == facts["images"] > 0
    assert {key: facts[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "layout", "patients"),
    [
        ("hippocampus_msd", "table index.csv: image from `file`, patient from `inferred_subject`", 133),
        ("sunnybrook_lv", "table index.csv: image from `file`, patient from `patient`", 45),
        ("covid19_hannover_cxr", "table index.csv: image from `file`, patient from `patient`", 71),
        ("chula_rbc12", "array files", 571),
        ("pneumoniamnist", "array files", 5856),
        ("dicom_t1_series", "DICOM tree, grouped into series", 1),
        ("ct_example", "tree of nifti images", 1),
    ],
)
def test_every_layout_is_its_own(name, layout, patients, capsys):
    """All headers, voxels of three: no conversion script, and the patients that the README of the data counts."""
    facts = inspect(real(name), sample=3)
    assert facts["layout"]["name"].startswith(layout)
    assert (facts["patients"], facts["broken"], facts["set_aside"]) == (patients, [], {})


def test_what_the_sets_say_of_themselves(capsys):
    assert inspect(real("hippocampus_msd"), limit=6)["masks"] == {"count": 6, "values": {"0": 6, "1": 6, "2": 6}}
    assert inspect(real("sunnybrook_lv"), limit=6)["masks"]["count"] == 6
    assert inspect(real("covid19_hannover_cxr"), limit=4)["patients"] == 2


def test_a_dozen_hippocampi_become_crops(tmp_path):
    source = real("hippocampus_msd")
    files = sorted((source / "images").glob("*.nii.gz"))[:12]
    for path in files:
        for part in ("images", "labels"):
            (tmp_path / "in" / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(source / part / path.name, tmp_path / "in" / part / path.name)
    counts = build(tmp_path / "in", tmp_path / "store")
    assert (counts["images"], counts["refused"]) == (12, {})
    store = Store(tmp_path / "store")
    assert {tuple(row.mask_values) for row in store.rows} == {(0, 1, 2)}
    assert all(row.spacing == pytest.approx([1, 1, 1]) for row in store.rows)
    data = StoreData(str(tmp_path / "store"), [16, 24, 16], 4, targets="mask", foreground=1.0)
    dataset = data.crops()
    batch = dataset.collate([dataset[position] for position in range(4)])
    assert batch["image"].shape == batch["mask"].shape == (4, 1, 16, 24, 16)
    assert (batch["mask"].flatten(1) > 0).any(1).all()
    assert batch["image"].isfinite().all()
