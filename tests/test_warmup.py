"""The warm-up that is chosen from the number of steps: its law, and that a run prints and keeps it."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch
import yaml
from stores import store_of, volumes

from ssl_med.cli import main
from ssl_med.learner import Learner, fitting_warmup
from ssl_med.schedules import warmup_cosine
from ssl_med.tasks import VICReg

SHARES = {1: 0.5, 20: 0.5, 79: 0.5, 80: 0.5, 100: 0.4, 400: 0.1, 799: 0.0501, 800: 0.05, 100_000: 0.05}


@pytest.mark.parametrize(("steps", "share"), SHARES.items())
def test_the_share_is_maes_but_forty_steps_at_least_and_half_at_most(steps: int, share: float) -> None:
    value, reason = fitting_warmup(steps)
    assert value == share
    assert f"{round(share * steps)} of {steps} steps" in reason


@pytest.mark.parametrize(("given", "share"), [(None, 0.4), (0.1, 0.1), (0.0, 0.0)])
def test_the_rate_follows_what_was_given_or_chosen(tiny_vit, given: float | None, share: float) -> None:
    learner = Learner(VICReg(tiny_vit(2), out_dim=8), lr=2.0, warmup=given)
    learner.trainer = Mock(spec=pl.Trainer, precision="32-true", max_steps=100, _logger_connector=Mock())
    learner.log = Mock()
    optimiser = learner.configure_optimizers()
    for step in (0, 5, 10, 30, 40, 70):
        learner.trainer.global_step = step
        learner.on_before_optimizer_step(optimiser)
        wanted = 2.0 * warmup_cosine(step / 100, share)
        assert [group["lr"] for group in optimiser.param_groups] == pytest.approx(
            [wanted] * len(optimiser.param_groups), abs=1e-12
        )


@pytest.mark.parametrize(("given", "kept"), [("null", 0.5), ("0.25", 0.25)])
def test_a_run_says_what_was_chosen_and_keeps_it(tmp_path: Path, given: str, kept: float) -> None:
    store = store_of(volumes(tmp_path / "in", 4), tmp_path / "store")
    run = tmp_path / "run"
    changes = ["--learner.warmup", given, "--trainer.max_steps", "2", "--data.num_workers", "0"]
    quiet = ["--watch.probes", "0", "--watch.pictures", "0", "--watch.health", "0", "--trainer.accelerator", "cpu"]
    with torch.random.fork_rng():
        assert main(["pretrain", "smoke/mae_3d", "--data", str(store.folder), "--out", str(run), *changes, *quiet]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["learner"]["warmup"] == kept
    said = [line for line in (run / "train.log").read_text().splitlines() if "learner.warmup" in line]
    assert len(said) == (given == "null")
    assert all("learner.warmup = 0.5: 1 of 2 steps, half of the training at most" in line for line in said)
