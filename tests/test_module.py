"""The data module: weights, targets of every kind, settings as plain data, and how long training waits for it."""

from collections import Counter
from itertools import islice

import pytest
import pytorch_lightning as pl
import torch
from stores import pictures, store_of, volumes

from ssl_med.callbacks.waiting import Waiting
from ssl_med.data.index import find_images
from ssl_med.data.module import StoreData
from ssl_med.data.prepare import build_store
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
    with pytest.raises(UserError, match="every dataset of the training images: ''"):
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


def annotated(folder):
    """Pictures with two findings, a number and boxes in a table; of every second image nothing is known."""
    pictures(folder, 12)
    lines = ["image,split,label:edema,label:effusion,age,boxes"]
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        facts = f"1,uncertain,{number}.5" if number % 2 else ",,"
        split = "test" if number > 9 else "train"
        lines.append(f"{path.relative_to(folder)},{split},{facts},{BOXES[number % 3] if number % 2 else ''}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder


BOXES = ('"[[2, 3, 8, 10, 1]]"', '"[[2, 3, 8, 10, 1], [0, 0, 40, 40, 0]]"', '"[[30, 30, 9, 9, 2]]"')


def test_findings_numbers_and_boxes_are_read_where_there_are_any(tmp_path):
    columns = {"value": "age", "boxes": "boxes"}
    records = list(find_images(annotated(tmp_path / "in"), columns=columns))
    build_store(records, tmp_path / "store", [], say=lambda text: None)
    several, number, boxes = (
        StoreData(str(tmp_path / "store"), 40, 5, targets=kind) for kind in ("labels", "value", "boxes")
    )
    batch = next(iter(several.train_dataloader()))
    assert batch["labels"].tolist() == [[1, -1]] * 5
    assert sorted(next(iter(number.train_dataloader()))["value"].tolist()) == [1.5, 3.5, 5.5, 7.5, 9.5]
    batch = next(iter(boxes.train_dataloader()))
    assert batch["boxes"].shape == (5, 2, 4)  # x, y, w, h of the table are y, x, y, x here
    found = sorted(zip(batch["boxes"].tolist(), batch["box_labels"].tolist(), strict=True))
    assert found[0] == ([[3, 2, 13, 10], [0, 0, 0, 0]], [1, -1])
    assert ([[3, 2, 13, 10], [0, 0, 40, 40]], [1, 0]) in found
    assert found[-1] == ([[30, 30, 39, 39], [0, 0, 0, 0]], [2, -1])
    assert len(StoreData(str(tmp_path / "store"), 40, 5, targets="boxes", labels=2).rows("train")) == 2


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
