"""What a training measures of its images before it begins, and what becomes of it."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from stores import pictures, store_of, volumes

from ssl_med import load_backbone, pretrain, run_data
from ssl_med.data.module import StoreData
from ssl_med.data.moments import image_moments
from ssl_med.errors import UserError

QUICK = {"trainer.max_steps": 2, "watch.pictures": 0, "watch.health": 0, "data.batch_size": 4}


@pytest.mark.parametrize(("made", "crop"), [(pictures, 16), (volumes, 12)])
def test_they_are_those_of_the_crops(tmp_path, made, crop) -> None:
    data = StoreData(str(store_of(made(tmp_path / "in"), tmp_path / "store").folder), crop=crop)
    crops = data.crops()
    values = np.concatenate([crops[position]["image"].numpy().ravel() for position in range(8)])
    mean, std = image_moments([data], 8)
    assert mean == pytest.approx([values.mean()], rel=5e-3)
    assert std == pytest.approx([values.std()], rel=5e-3)
    assert all(value == float(f"{value:.3g}") for value in mean + std)


def test_padding_does_not_count_and_stores_count_alike(tmp_path) -> None:
    store = store_of(pictures(tmp_path / "in"), tmp_path / "store").folder
    small, large = (StoreData(str(store), crop=crop) for crop in (40, 64))
    mean, std = image_moments([small], 16)
    assert image_moments([large], 16) == (pytest.approx(mean, rel=0.02), pytest.approx(std, rel=0.02))
    dark = StoreData(str(store), crop=40, intensity="foreground")
    both = image_moments([small, dark], 16)[0]
    assert both == pytest.approx([(mean[0] + image_moments([dark], 16)[0][0]) / 2], rel=0.02)


def test_a_channel_that_never_changes_is_left_as_it_is(tmp_path, monkeypatch) -> None:
    data = StoreData(str(store_of(pictures(tmp_path / "in"), tmp_path / "store").folder), crop=16)
    monkeypatch.setattr(data, "crops", lambda: [{"image": torch.full((1, 4, 4), 0.25)}] * 4)
    assert image_moments([data], 4) == ([0.25], [1.0])


def test_a_pretraining_measures_tells_and_keeps_them(tmp_path, capsys) -> None:
    store = store_of(pictures(tmp_path / "in"), tmp_path / "store").folder
    run = pretrain("smoke/mae_2d", store, tmp_path / "run", QUICK)
    settings = yaml.safe_load((run / "config.yaml").read_text())["task"]["init_args"]["backbone"]["init_args"]
    crop = yaml.safe_load((run / "config.yaml").read_text())["data"]["crop"]
    mean, std = image_moments([StoreData(str(store), crop=crop)])
    assert (settings["image_mean"], settings["image_std"]) == (mean, std)
    assert f"task.backbone.image_mean = {mean}: mean of 64 training crops" in (run / "train.log").read_text()
    backbone = load_backbone(str(run))
    assert backbone.image_mean == pytest.approx(mean)
    card = json.loads((run / "exports" / "backbone" / "card.json").read_text())
    assert card["parts"]["backbone"]["init_args"]["image_mean"] == mean


def test_what_a_person_says_is_kept(tmp_path) -> None:
    store = store_of(pictures(tmp_path / "in"), tmp_path / "store").folder
    asked = {"task.backbone.image_mean": [0.0], "task.backbone.image_std": [1.0]}
    run = pretrain("smoke/mae_2d", store, tmp_path / "run", {**QUICK, **asked})
    assert load_backbone(str(run)).image_mean == [0.0]
    assert "image_mean" not in (run / "train.log").read_text()
    with pytest.raises(UserError, match="image_std"):
        pretrain("smoke/mae_2d", store, tmp_path / "half", {**QUICK, "task.backbone.image_mean": [0.0]})


def test_a_run_goes_on_with_what_it_measured(tmp_path, monkeypatch) -> None:
    store = store_of(pictures(tmp_path / "in"), tmp_path / "store").folder
    monkeypatch.setattr(run_data, "image_moments", lambda stores: ([0.25], [0.5]))
    run = pretrain("smoke/mae_2d", store, tmp_path / "run", QUICK)
    state = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**state, "status": "stopped"}))
    monkeypatch.setattr(run_data, "image_moments", lambda stores: pytest.fail("measured again"))
    pretrain("smoke/mae_2d", store, tmp_path / "run", QUICK)
    assert load_backbone(str(run)).image_mean == [0.25]
    old = yaml.safe_load((run / "config.yaml").read_text())
    for name in ("image_mean", "image_std"):
        old["task"]["init_args"]["backbone"]["init_args"][name] = None  # as before there were moments
    (run / "config.yaml").write_text(yaml.safe_dump(old))
    (run / "run.json").write_text(json.dumps({**state, "status": "stopped"}))
    for folder in ("checkpoints", "exports"):
        shutil.rmtree(run / folder)
    (run / "train.log").unlink()
    pretrain("smoke/mae_2d", store, tmp_path / "run", QUICK)
    assert load_backbone(str(run)).image_mean is None
    assert "image_mean" not in (run / "train.log").read_text()
    monkeypatch.setattr(run_data, "image_moments", lambda stores: ([0.75], [0.5]))
    pretrain("smoke/mae_2d", store, tmp_path / "run", QUICK, overwrite=True)
    assert load_backbone(str(run)).image_mean == [0.75]
