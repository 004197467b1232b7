"""A collapse that is brought about is named within a stated number of steps; a sound training is left in peace."""

import inspect
import json
import sys

import pytest
import torch
from miniature import many, signs_of
from stores import pictures, store_of

from benchmarks import health
from ssl_med import tasks
from ssl_med.backbones import ViT
from ssl_med.callbacks.watch import judge_features
from ssl_med.optim import clip_each
from ssl_med.tasks import MAE, PretextTask, SimCLR, VICReg

STEPS, EVERY, RATE = 20, 5, 1e-3
SMALL = {
    MAE: {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
    SimCLR: {"hidden_dim": 64, "out_dim": 32, "temperature": 0.5},
    VICReg: {"out_dim": 64},
}


def first_alarm(
    kind: type[PretextTask], factor: float = 1.0, steps: int = STEPS, **fault: float
) -> tuple[int | None, str]:
    """Train; the step of the first alarm and its words."""
    torch.manual_seed(0)
    backbone, batches = ViT(2, 4, embed_dim=24, depth=2, heads=2, taps=1), many((16, 16), steps, 8)
    task = kind(backbone, **{**SMALL[kind], **fault})
    parameters = [p for p in task.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=RATE * factor)
    for step, batch in enumerate(batches, 1):
        optimiser.zero_grad()
        task(batch, (step - 1) / steps)["loss"].backward()
        clip_each(parameters, 3.0)
        optimiser.step()
        task.after_step(step / steps)
        if step % EVERY == 0:
            signs = signs_of(task, batches[0])
            if alarm := judge_features(signs) or task.verdict(signs):
                return step, alarm
    return None, ""


@pytest.mark.parametrize("kind", [MAE, SimCLR])
def test_a_learning_rate_far_too_high_is_named_within_ten_steps(kind) -> None:
    step, alarm = first_alarm(kind, 1000.0)
    assert step is not None
    assert step <= 10
    assert "learning rate" in alarm or "learner.lr" in alarm


def test_an_embedding_that_shrinks_though_its_shape_is_sound_is_named_within_thirty_steps() -> None:
    step, alarm = first_alarm(VICReg, 10.0, 30, variance=0.0, covariance=0.0)
    assert step is not None
    assert step <= 30
    assert alarm.startswith("the embedding shrinks to a point (standard deviation 0.0")


@pytest.mark.parametrize("kind", [MAE, SimCLR, VICReg])
def test_a_sound_training_gives_no_alarm(kind) -> None:
    assert first_alarm(kind) == (None, "")


def test_the_command_trains_sound_and_faulty_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys) -> None:
    store = store_of(pictures(tmp_path / "scans"), tmp_path / "store")
    command = ["health", str(store.folder), "--out", str(tmp_path / "out"), "--configs", "smoke/mae_2d"]
    monkeypatch.setattr(sys, "argv", [*command, "--steps", "4", "--seeds", "1", "--set", "watch.pictures=0"])
    health.main()
    sound, faulty = (tmp_path / "out" / "health.md").read_text().splitlines()[2:4]
    assert sound.startswith("| `smoke/mae_2d` | none, 1 runs | 0 alarms | at least ")
    assert faulty.startswith("| `smoke/mae_2d` | learning rate x 100 | ")
    rates = [
        json.loads((tmp_path / "out" / f"smoke_mae_2d_{name}" / "metrics.jsonl").read_text().splitlines()[-1])["lr"]
        for name in ("seed=0", "learning_rate_x_100")
    ]
    assert rates[1] == pytest.approx(100 * rates[0])
    first = capsys.readouterr().out
    health.main()
    again = capsys.readouterr().out
    assert again in first
    assert "training" not in again


def test_an_alarm_and_an_error_are_told_apart() -> None:
    quiet, alarm, ended = (health.Told(*told, 0.5, 4.0) for told in ((None, ""), (7, "collapsed"), (None, "no number")))
    head, *rest = health.rows_of("c", [quiet, alarm], {"a": quiet, "b": alarm, "c": ended})
    assert head == "| `c` | none, 2 runs | 1 alarms | at least 0.5, 4 | collapsed |"
    assert [line.split(" | ")[2] for line in rest] == ["no alarm", "step 7", "ended"]


@pytest.mark.parametrize("name", list(health.FAULTS))
def test_every_fault_changes_settings_that_its_task_has(name) -> None:
    known = inspect.signature(getattr(tasks, name).__init__).parameters
    for settings in health.FAULTS[name].values():
        assert settings
        assert {setting.removeprefix("task.") for setting in settings} <= set(known)


def test_the_faults_of_a_config_are_those_of_its_task() -> None:
    assert health.faults_of("small/mae_2d") == {"learning rate x 100": {"learner.lr": 0.1}}
    assert list(health.faults_of("small/byol_2d")) == ["momentum 0", "learning rate x 100"]
