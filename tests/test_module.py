"""The data module: weights, targets of every kind, settings as plain data, and how long training waits for it."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import pytorch_lightning as pl
import torch
from stores import pictures, store_of, volumes

from ssl_med.callbacks.waiting import Waiting
from ssl_med.data import module as module_file
from ssl_med.data.module import StoreData
from ssl_med.data.rows import Rows
from ssl_med.errors import UserError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("module")
    return store_of(volumes(folder / "in", 10), folder / "store")


def test_weights_by_modality(store, monkeypatch):
    data = StoreData(str(store.folder), 8, 4, weights={"CT": 3, "MR": 1})
    kinds = ["CT", "MR", "MR", "MR", "MR", "MR"]
    monkeypatch.setattr(Rows, "column", lambda self, name: kinds)
    dataset = data.crops()
    shown = Counter(kinds[dataset.order(position)] for position in range(64))
    assert shown == {"CT": 48, "MR": 16}


def test_weights_that_do_not_fit_are_refused(store):
    with pytest.raises(UserError, match="every modality of the training images: ''"):
        StoreData(str(store.folder), 8, weights={"CT": 1}).crops()
    with pytest.raises(UserError, match="says nothing about dataset"):
        StoreData(str(store.folder), 8, weights={"a": 1}, weights_by="dataset").crops()
    with pytest.raises(UserError, match="must be positive"):
        StoreData(str(store.folder), 8, crops_per_image=0)


def test_settings_come_as_plain_data(store):
    data = StoreData(str(store.folder), 8, 2, affine={"rotate": 30, "scale": [0.7, 1.4]})
    batch = next(iter(data.train_dataloader()))
    assert batch["valid"].shape == batch["image"].shape == (2, 1, 8, 8, 8)
    with pytest.raises(UserError, match=r"data.affine: .*'turn'.*rotate and scale"):
        StoreData(str(store.folder), 8, affine={"turn": 30})
    with pytest.raises(UserError, match=r"crop_mm: \[10, 10\] needs one size"):
        StoreData(str(store.folder), 8, crop_mm=[10, 10])


def test_crops_of_an_image_follow_each_other_closely(store):
    data = StoreData(str(store.folder), 8, 4, crops_per_image=4, window=2)
    first = [sample for batch in islice(data.train_dataloader(), 2) for sample in batch["id"]]
    assert sorted(Counter(first).values()) == [4, 4]


def test_findings_and_boxes_are_read_where_there_are_any(tmp_path, monkeypatch):
    store = store_of(pictures(tmp_path / "in", 10), tmp_path / "store")
    first, second = (row.id for row in store.rows.where(split="train")[:2])
    boxes = {first: [2, 3, 10, 12, 1, 0, 0, 40, 40, 0], second: [30, 30, 39, 39, 2]}
    monkeypatch.setattr(
        Rows,
        "__getitem__",
        lambda self, n: replace(
            row := plain(self, n), labels=[1, 0, -1] if n % 2 else [-1] * 3, boxes=boxes.get(row.id, [])
        ),
    )
    monkeypatch.setattr(Rows, "__iter__", lambda self: (self[n] for n in range(len(self))))
    monkeypatch.setattr(module_file, "labelled_subset", lambda rows, labels, seed: rows)
    several = StoreData(str(tmp_path / "store"), 40, 3, targets="labels")
    assert len(several.rows("train")) == 3  # every second of six has a finding that is known
    data = StoreData(str(tmp_path / "store"), 40, 2, targets="boxes")
    batch = next(iter(data.train_dataloader()))
    lines = dict(zip(batch["id"], batch["boxes"].tolist(), strict=True))
    assert lines == {
        first: [[2, 3, 10, 12, 1], [0, 0, 40, 40, 0]],
        second: [[30, 30, 39, 39, 2], [-1] * 5],
    }


plain = Rows.__getitem__


class Slow(pl.LightningModule):
    """A step that takes no time, after data that took three hundredths of a second."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Notes(pl.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *args):
        self.seen.append(dict(trainer.logged_metrics))


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec", "ignore:.*does not have many workers")
def test_the_share_of_waiting_is_logged(monkeypatch):
    """On a clock of its own: every wait takes 3, every step 1."""
    clock = iter([0, *(4 * (n // 2) + (1 if n % 2 == 0 else 4) for n in range(100))])
    monkeypatch.setattr("ssl_med.callbacks.waiting.time", type("T", (), {"perf_counter": lambda: next(clock)}))
    notes, quiet = Notes(), {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    loader = torch.utils.data.DataLoader(torch.ones(8, 1), batch_size=1)
    trainer = pl.Trainer(
        max_steps=8, accelerator="cpu", logger=False, log_every_n_steps=4, callbacks=[notes, Waiting()], **quiet
    )
    trainer.fit(Slow(), loader)
    assert float(trainer.callback_metrics["data_wait"]) == pytest.approx(75.0)
