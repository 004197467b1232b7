"""Images become patients: against pandas' means, and in a study of images whose patients have two each."""

import json

import numpy as np
import pytest
from stores import pictures

from ssl_med.cli import main
from ssl_med.errors import UserError
from ssl_med.evidence.patients import first_images, of_patients

PATIENTS = ["b", "a", "b", "c", "a", "b"]


def test_fractions_are_means_and_labels_stay():
    pandas = pytest.importorskip("pandas", reason="the reference")
    rng = np.random.default_rng(0)
    values = {"probability": rng.random((6, 3)), "dice_1": np.array([0.5, np.nan, 0.7, np.nan, np.nan, np.nan])}
    found = of_patients({**values, "label": np.array([1, 0, 1, -1, 0, 1])}, PATIENTS)
    expected = pandas.DataFrame(values["probability"]).groupby(np.array(PATIENTS), sort=False).mean()
    np.testing.assert_allclose(found["probability"], expected)
    np.testing.assert_allclose(found["dice_1"], [0.6, np.nan, np.nan])
    assert found["label"].tolist() == [1, 0, -1]
    assert first_images(PATIENTS) == [0, 1, 3]


def test_a_patient_with_two_labels_is_refused():
    with pytest.raises(UserError, match="several values of 'label'"):
        of_patients({"label": np.array([1, 0, 0, 1, 0, 1])}, PATIENTS)


def test_a_study_scores_patients(tmp_path):
    scans = pictures(tmp_path / "scans", 24)
    table = ["image,patient,label,split"]
    for number, image in enumerate(sorted(scans.rglob("*.png"))):
        person = number // 2
        split = ("train", "train", "test")[person % 3]
        table.append(f"{image.relative_to(scans)},p{person},{'ab'[person // 3 % 2]},{split}")
    (tmp_path / "table.csv").write_text("\n".join(table))
    run("prepare", scans, "--out", tmp_path / "store", "--manifest", tmp_path / "table.csv")
    small = ["--trainer.max_steps", 2, "--watch.pictures", 0]
    fast = [*small, "--watch.probes", 0, "--watch.health", 0]
    run("pretrain", "smoke/mae_2d", "--data", tmp_path / "store", "--out", tmp_path / "base", *fast)
    study = ["curve", "smoke/classify", "--data", tmp_path / "store", "--init", tmp_path / "base"]
    study += ["--out", tmp_path / "study", "--arms", "scratch", "--labels", "100%", "--draws", 1, "--seeds", 1]
    study += ["--resamples", 50, "--watch.validate", 0, *small]
    run(*study)
    images = json.loads((tmp_path / "study" / "curve.json").read_text())
    run(*study, "--unit", "patient")
    found = json.loads((tmp_path / "study" / "curve.json").read_text())
    assert (images["test_cases"], images["test_patients"], images["unit"]) == (8, 4, "image")
    assert (found["test_cases"], found["test_patients"], found["unit"]) == (4, 4, "patient")
    assert "4 test patients, each the mean over the own images" in " ".join(found["paragraph"])
    (kept,) = (tmp_path / "study" / "runs").glob("*/test.json")
    cases = json.loads(kept.read_text())["cases"]
    assert len(cases["id"]) == 8


def run(*arguments: object) -> None:
    assert main([str(part) for part in arguments]) == 0, arguments
