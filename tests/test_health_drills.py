"""A collapse that is brought about is named within a stated number of steps; a sound training is left in peace."""

import pytest
import torch
from miniature import many

from benchmarks.health import FAMILIES, RATE, Drill, first_alarm, task_of
from ssl_med.backbones import ViT
from ssl_med.tasks.base import Plan

STEPS, EVERY = 20, 5


def trained(name: str, drill: Drill) -> tuple[int | None, str]:
    batches = many((16, 16), STEPS, 8)
    torch.manual_seed(0)
    backbone = ViT(2, 4, embed_dim=24, depth=2, heads=2, taps=1)
    task = task_of(FAMILIES[name], drill, backbone, Plan(STEPS * 8, 8, STEPS))
    return first_alarm(task, batches, STEPS, batches[0], RATE * drill.rate, EVERY)[:2]


@pytest.mark.parametrize("name", ["MAE", "SimCLR"])
def test_a_learning_rate_far_too_high_is_named_within_ten_steps(name) -> None:
    step, alarm = trained(name, next(drill for drill in FAMILIES[name].faults if drill.rate == 100))
    assert step is not None
    assert step <= 10
    assert "learning rate" in alarm or "learner.lr" in alarm


@pytest.mark.parametrize("name", ["MAE", "SimCLR", "VICReg"])
def test_a_sound_training_gives_no_alarm(name) -> None:
    assert trained(name, Drill("", {})) == (None, "")
