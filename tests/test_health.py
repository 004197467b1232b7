"""The watch over a pretraining: signs are logged, and a collapse is named in words, once."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch
from stores import pictures, store_of

from ssl_med.callbacks.watch import Health, Pictures, judge_features
from ssl_med.data.module import StoreData
from ssl_med.data.record import BURNED_IN
from ssl_med.errors import UserError
from ssl_med.tasks import SimCLR

HEALTHY = {"feature_spread": 0.8, "effective_rank": 12.0}


@pytest.mark.parametrize(
    ("signs", "word"),
    [
        ({}, ""),
        ({"feature_spread": 0.006, "effective_rank": 7.0}, ""),  # an MAE on X-rays that learned
        ({"feature_spread": 0.0009}, "nearly the same for all images"),
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


@pytest.mark.parametrize(("batch_size", "samples", "judged"), [(1, 32, 8), (4, 6, 6), (12, 32, 12), (64, 16, 16)])
def test_a_small_batch_is_not_judged_by_itself(trainer, tiny_vit, batch_size, samples, judged) -> None:
    trainer.datamodule.batch_size = batch_size
    task, seen = SimCLR(tiny_vit(2), hidden_dim=8, out_dim=4).eval(), []
    task.vital_signs = lambda batch: seen.append({name: len(value) for name, value in batch.items()}) or {}
    with torch.no_grad():
        Health(samples=samples).look(trainer, task)
    assert set(seen[0].values()) == {judged}


def test_one_image_is_not_judged(tiny_vit) -> None:
    with pytest.raises(UserError, match="2 or more, got 1"):
        Health(samples=1)
    assert SimCLR(tiny_vit(2), hidden_dim=8, out_dim=4).verdict({"embedding_spread": math.nan}) == ""


def _flag(data: StoreData, monkeypatch: pytest.MonkeyPatch, flagged: Callable[[int], bool]) -> list[str]:
    """Mark rows as having text burned in; gives the ids of the others in the order of the training."""
    dataset = data.crops()
    rows = [replace(row, warnings=[BURNED_IN] if flagged(n) else ["other"]) for n, row in enumerate(dataset.rows)]
    dataset.rows = rows
    monkeypatch.setattr(data, "crops", lambda: dataset)
    order = [rows[dataset.order(position)] for position in range(len(rows))]
    return [row.id for row in order if BURNED_IN not in row.warnings]


def test_images_with_burned_in_text_are_not_drawn(trainer, tmp_path, monkeypatch) -> None:
    trainer.default_root_dir, seen = tmp_path, []
    clean = _flag(trainer.datamodule, monkeypatch, lambda number: number % 3 > 0)
    task = Mock(pictures=lambda batch: seen.append(batch["id"]) or {"input": batch["image"]})
    Pictures(samples=3).look(trainer, task)
    assert list(seen[0]) == clean[:3]
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["pictures_step=0000000.png"]


def test_without_a_clean_image_nothing_is_drawn_and_that_is_said_once(trainer, tmp_path, monkeypatch, caplog) -> None:
    trainer.default_root_dir, task, pictures = tmp_path, Mock(), Pictures()
    assert _flag(trainer.datamodule, monkeypatch, lambda number: True) == []
    with caplog.at_level(logging.INFO, "ssl_med"):
        pictures.look(trainer, task)
        pictures.look(trainer, task)
    task.pictures.assert_not_called()
    assert len(caplog.messages) == 1
    assert "text burned in" in caplog.messages[0]
    assert not (tmp_path / "plots").exists()
