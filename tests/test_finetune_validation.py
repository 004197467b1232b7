"""Validation chooses the weights that are exported, exactly resumably, and never sees the test split."""

import copy
import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stores import pictures, store_of

from ssl_med.callbacks import AtomicCheckpointIO, validation
from ssl_med.config import load_config
from ssl_med.data.module import StoreData
from ssl_med.errors import UserError
from ssl_med.fit import fit

STEPS = 8
BACKBONE = {
    "class_path": "ssl_med.backbones.UNetEncoder",
    "init_args": {"spatial_dims": 2, "widths": [4, 8], "blocks": 1},
}
TASK = {"backbone": BACKBONE, "classes": 2, "window": [16, 16], "tuning": "linear_then_full"}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("validation")
    store_of(pictures(folder / "in", 30), folder / "store")
    return folder / "store"


def config(**watch) -> dict:
    found = load_config("smoke/classify", "finetune", {"trainer.max_steps": STEPS, "trainer.accelerator": "cpu"})
    found["task"]["init_args"] = copy.deepcopy(TASK)
    found["data"] |= {"crop": 16}
    found["watch"] = {"pictures": 0, "validate": 4, "checkpoint_steps": 2, **watch}
    return found


def exported(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "exports" / "task" / "task.safetensors")


def weights(path: Path) -> dict[str, torch.Tensor]:
    state = AtomicCheckpointIO().load_checkpoint(path)
    return {name.removeprefix("task."): value for name, value in state["state_dict"].items()}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def scripted(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Scores as they might come, so that the best is known to stand in the middle."""
    left = list(values)
    monkeypatch.setattr(validation, "evaluate", lambda task, loader: ({task.metric: left.pop(0)}, {}))


def test_the_best_moment_is_exported(store, tmp_path, monkeypatch) -> None:
    scripted(monkeypatch, [0.2, 0.9, 0.9, 0.5])
    run = fit("finetune", config(), str(store), tmp_path / "run")
    best = AtomicCheckpointIO().load_checkpoint(run / "checkpoints" / "best-val.ckpt")
    assert best["global_step"] == 4  # the first of two equals
    assert same(exported(run), weights(run / "checkpoints" / "best-val.ckpt"))
    assert not same(exported(run), weights(run / "checkpoints" / "last.ckpt"))
    assert "kept are the weights of step 4" in (run / "train.log").read_text()


def test_a_best_that_could_not_be_saved_is_not_said_to_be_kept(store, tmp_path, monkeypatch) -> None:
    scripted(monkeypatch, [0.2, 0.4, 0.9, 0.5])
    save = AtomicCheckpointIO.save_checkpoint

    def full(self, checkpoint, path, *more):
        if Path(path).name == validation.BEST and checkpoint["global_step"] == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, checkpoint, path, *more)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", full)
    run = fit("finetune", config(), str(store), tmp_path / "run")
    assert same(exported(run), weights(run / "checkpoints" / "best-val.ckpt"))
    told = (run / "train.log").read_text()
    assert "CHECKPOINT NOT WRITTEN: best-val" in told
    assert (
        "kept are the weights of step 4: those of step 6, the best on validation (0.9000), could not be saved" in told
    )
    assert "kept are the weights of step 6" not in told


def test_a_score_that_is_no_number_is_never_the_best(store, tmp_path, monkeypatch) -> None:
    scripted(monkeypatch, [float("nan")] * 4)
    run = fit("finetune", config(), str(store), tmp_path / "run")
    assert not (run / "checkpoints" / "best-val.ckpt").exists()
    assert same(exported(run), weights(run / "checkpoints" / "last.ckpt"))


def test_without_looks_the_last_weights_are_exported(store, tmp_path) -> None:
    run = fit("finetune", config(validate=0), str(store), tmp_path / "run")
    assert not (run / "checkpoints" / "best-val.ckpt").exists()
    assert same(exported(run), weights(run / "checkpoints" / "last.ckpt"))


def test_a_resumed_run_chooses_and_ends_as_the_uninterrupted_one(store, tmp_path) -> None:
    """Two phases of tuning, real scores; the second run loses its last checkpoint, as by a kill, and goes on."""
    whole, cut = (fit("finetune", config(), str(store), tmp_path / name) for name in ("whole", "cut"))
    (cut / "checkpoints" / f"step={STEPS:07d}.ckpt").unlink()
    state = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps({**state, "status": "running"}))
    (cut / "exports" / "task" / "card.json").unlink()
    (cut / "exports" / "task" / "task.safetensors").unlink()
    fit("finetune", config(), str(store), cut)
    assert "resuming" in (cut / "train.log").read_text()
    assert same(exported(cut), exported(whole))
    scores = [
        [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "val/accuracy" in line]
        for run in (whole, cut)
    ]
    assert scores[0] == scores[1]
    assert [line["step"] for line in scores[0]] == [2, 4, 6, 8]


def test_patience_ends_the_run_and_a_resumed_one_ends_there_too(store, tmp_path, monkeypatch) -> None:
    scripted(monkeypatch, [0.9, 0.5, 0.4])
    run = fit("finetune", config(patience=2), str(store), tmp_path / "run")
    state = json.loads((run / "run.json").read_text())
    assert (state["status"], state["step"]) == ("finished", 6)
    assert same(exported(run), weights(run / "checkpoints" / "best-val.ckpt"))
    before = exported(run)
    (run / "run.json").write_text(json.dumps({**state, "status": "running"}))  # killed before it had exported
    (run / "exports" / "task" / "card.json").unlink()
    (run / "exports" / "task" / "task.safetensors").unlink()
    fit("finetune", config(patience=2), str(store), run)
    assert json.loads((run / "run.json").read_text())["step"] == 6
    assert same(exported(run), before)


def test_a_patience_of_nothing_is_refused(store, tmp_path) -> None:
    with pytest.raises(UserError, match=r"watch\.patience: 0 must be 1 or more"):
        fit("finetune", config(patience=0), str(store), tmp_path / "run")


def test_only_the_validation_split_is_read(store, tmp_path, monkeypatch) -> None:
    asked, whole = [], StoreData.whole
    monkeypatch.setattr(StoreData, "whole", lambda self, split, *rest: asked.append(split) or whole(self, split, *rest))
    fit("finetune", config(validate=1), str(store), tmp_path / "run")
    assert asked == ["val"]


def test_counts_of_classes_are_filled_in_and_written_down(store, tmp_path) -> None:
    plan = config(validate=0)
    plan["task"]["init_args"] |= {"balance": "logit_adjustment"}
    run = fit("finetune", plan, str(store), tmp_path / "run")
    assert "class_counts = [9, 9]" in (run / "train.log").read_text()
    card = json.loads((run / "exports" / "task" / "card.json").read_text())
    assert card["parts"]["task"]["init_args"]["class_counts"] == [9, 9]


def test_a_later_export_has_the_same_weights_as_the_run_s_own(store, tmp_path, monkeypatch) -> None:
    from ssl_med.verbs.export import export

    scripted(monkeypatch, [0.2, 0.9, 0.9, 0.5])
    run = fit("finetune", config(), str(store), tmp_path / "run")
    again = export(run, tmp_path / "again")
    assert same(load_file(again / "task.safetensors"), exported(run))
    assert json.loads((again / "card.json").read_text())["training"]["steps"] == 4
