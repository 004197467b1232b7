"""The watch over a pretraining: signs are logged, and a collapse is named in words, once."""

import logging
import math
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch
from stores import pictures, store_of

from ssl_med.callbacks.watch import Health, judge_features
from ssl_med.data.module import StoreData
from ssl_med.tasks import SimCLR

HEALTHY = {"feature_spread": 0.8, "effective_rank": 12.0}


@pytest.mark.parametrize(
    ("signs", "word"),
    [
        ({}, ""),
        ({"feature_spread": 0.001}, "nearly the same for all images"),
        ({"effective_rank": 1.1}, "lie on a line"),
        ({"effective_rank": math.nan}, "not finite"),
        ({"feature_spread": math.inf}, "not finite"),
    ],
)
def test_features_are_judged_in_words(signs, word) -> None:
    verdict = judge_features({**HEALTHY, **signs})
    assert word in verdict
    assert bool(verdict) == bool(word)


class _Recorder:
    def __init__(self) -> None:
        self.lines: list[tuple[int, dict]] = []

    def log_metrics(self, metrics: dict, step: int) -> None:
        self.lines.append((step, metrics))


@pytest.fixture
def trainer(tmp_path) -> Mock:
    pictures(tmp_path / "scans")
    data = StoreData(str(store_of(tmp_path / "scans", tmp_path / "store").folder), crop=16, batch_size=4, seed=0)
    trainer = Mock(spec=pl.Trainer, datamodule=data, loggers=[_Recorder()], global_step=0)
    trainer.strategy.root_device = torch.device("cpu")
    return trainer


def test_the_tasks_own_signs_are_logged_and_its_collapse_said_once(trainer, tiny_vit, caplog) -> None:
    task = SimCLR(tiny_vit(2, in_channels=trainer.datamodule.store.channels), hidden_dim=8, out_dim=4).eval()
    health = Health(samples=8)
    with torch.no_grad(), caplog.at_level(logging.WARNING, "ssl_med"):
        task.head[-1].weight.mul_(1e-5)
        task.head[-1].bias.fill_(1.0)
        for step in range(3):  # at step 0 nothing is said: nothing has been trained
            trainer.global_step = step
            health.look(trainer, task)
    steps, metrics = zip(*trainer.loggers[0].lines, strict=True)
    assert steps == (0, 1, 2)
    names = {"feature_spread", "effective_rank", "embedding_spread", "embedding_rank"}
    assert all(set(line) == {f"health/{name}" for name in names} for line in metrics)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("step 1: the embedding is nearly the same for all images")
