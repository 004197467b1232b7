"""The command behind docs/evidence, from a folder of images to its tables, on a set of seconds."""

import csv
import json
import sys

import numpy as np
import pytest
import yaml

from benchmarks import evidence
from ssl_med.cli import main
from ssl_med.config import find_config

FAST = {"trainer.max_steps": 2, "watch.validate": 0, "watch.pictures": 0, "resamples": 100}
STUDY = {
    "images": "faces",
    "drop_repeats": True,
    "finetune": "smoke/classify",
    "apart": ["1"],
    "curve": {"labels": "100%", "draws": 1, "seeds": 1, "arms": "pretrained,scratch", "floor": "guess=0.5", **FAST},
}


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise, brighter on the left for class 1."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count)[:, None] % 2
    found = rng.integers(0, 120, (count, 32, 32))
    found[:, :, :16] += 100 * labels[:, :, None]
    return found.astype(np.uint8), labels


@pytest.fixture
def called(monkeypatch):
    """The words of every call; each runs in this process, which has imported everything already."""
    calls = []

    def call(*command: object) -> None:
        calls.append([str(word) for word in command])
        assert main(calls[-1]) == 0

    monkeypatch.setattr(evidence, "call", call)
    return calls


def test_one_command_from_images_to_tables_and_again_for_nothing(tmp_path, monkeypatch, called, capsys):
    arrays = {}
    for seed, (split, count) in enumerate({"train": 24, "val": 8, "test": 12}.items()):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images(count, seed)
    arrays["train_images"][3] = arrays["test_images"][5]
    (tmp_path / "data" / "faces").mkdir(parents=True)
    np.savez(tmp_path / "data" / "faces" / "faces.npz", **arrays)
    settings = yaml.safe_load(find_config("smoke/mae_2d", "pretrain").read_text())
    settings |= {"trainer": {"max_steps": 2}, "watch": {"probes": 0, "health": 0, "pictures": 0}}
    (tmp_path / "short_2d.yaml").write_text(yaml.safe_dump(settings))
    study = {**STUDY, "pretrain": str(tmp_path / "short_2d.yaml")}
    again = {"like": "faces", "curve": {**STUDY["curve"], "arms": "scratch", "trainer.max_steps": 1}}
    longer = {"like": "scratch", "settings": {"trainer.max_steps": 3}}
    (tmp_path / "studies.yaml").write_text(yaml.safe_dump({"faces": study, "scratch": again, "longer": longer}))
    words = ["evidence", tmp_path / "data", tmp_path / "out", "--studies", tmp_path / "studies.yaml"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in [*words, "--docs", tmp_path / "docs"]])

    evidence.main()

    assert "1 training images recur" in capsys.readouterr().out
    assert [call[0] for call in called] == ["prepare", "pretrain", "curve"] * 2 + ["prepare", "curve"]
    longer = yaml.safe_load((tmp_path / "out" / "pretrain" / "longer" / "config.yaml").read_text())
    assert longer["trainer"]["max_steps"] == 3
    assert sorted(path.name for path in (tmp_path / "docs" / "faces").iterdir()) == sorted(evidence.SHOWN)
    found = json.loads((tmp_path / "out" / "curve" / "faces" / "curve.json").read_text())
    assert found["test_patients"] == 12
    assert found["labels"] == [23]
    with (tmp_path / "docs" / "faces" / "subgroups.csv").open(newline="") as file:
        assert {"alone: 1", "without 1"} <= {line["group"] for line in csv.DictReader(file)}
    scores = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("test.json")}
    assert len(scores) == 4
    with (tmp_path / "docs" / "scratch" / "curve.csv").open(newline="") as file:
        assert {line["arm"] for line in csv.DictReader(file)} == {"scratch"}

    called.clear()
    evidence.main()

    assert [call[0] for call in called] == ["prepare", "curve"] * 3
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("test.json")} == scores


def test_a_study_like_another_shares_what_it_does_not_name():
    curves = {"a": {"pretrain": "x", "images": "i"}, "b": {"like": "a", "settings": {"lr": 1}}, "c": {"like": "b"}}
    assert evidence.lineage("c", curves) == ["a", "b", "c"]


def test_an_unknown_set_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evidence", str(tmp_path), str(tmp_path / "out"), "--sets", "moon"])
    with pytest.raises(SystemExit):
        evidence.main()
    assert "moon" in capsys.readouterr().err
