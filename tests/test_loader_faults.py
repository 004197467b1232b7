"""Loader processes that are killed or hang: no hang of the training, the image named, the order kept."""

import json
import os
import signal
import threading
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from jobs import code_of, command, losses, start
from stores import store_of, volumes

from ssl_med.cli import main
from ssl_med.data.dataset import CropDataset
from ssl_med.data.module import StoreData
from ssl_med.data.store import Store
from ssl_med.errors import UserError
from ssl_med.launch.supervise import FINAL
from ssl_med.learner import Learner
from ssl_med.memory import out_of_memory

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    store_of(volumes(folder / "in", 12), folder / "store")
    return folder / "store"


def data(store: Path, workers: int = 0, **settings) -> StoreData:
    return StoreData(str(store), 8, 4, num_workers=workers, **settings)


def batches(module: StoreData, count: int = 4) -> list[dict]:
    found = iter(module.loader())
    return [next(found) for _ in range(count)]


def hang(monkeypatch, image: str, position: int) -> threading.Event:
    """Reading this image for this position waits for the event, as on a file server that is gone."""
    region, wake = CropDataset._region, threading.Event()

    def stuck(self, row, place):
        if (row.id, place) == (image, position):
            wake.wait(60)
        return region(self, row, place)

    monkeypatch.setattr(CropDataset, "_region", stuck)
    return wake


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_hangs_is_replaced_by_the_next_of_the_order(store, tmp_path, monkeypatch, workers):
    plain = data(store)
    expected, order, rows = batches(plain), plain.crops().order, plain.rows("train")
    hung = rows[order(5)].id
    wake = hang(monkeypatch, hung, 5)
    module = data(store, workers, sample_timeout=0.5)
    module.ledger = tmp_path / "ledger.jsonl"
    begun = time.monotonic()
    found = batches(module)
    assert time.monotonic() - begun < 30
    assert found[1]["id"][1] == rows[order(5, 1)].id != hung
    for number, (batch, other) in enumerate(zip(found, expected, strict=True)):
        same = [i for i in range(4) if (number, i) != (1, 1)]
        assert torch.equal(batch["image"][same], other["image"][same])
        assert torch.equal(batch["key"], other["key"])
    lines = [json.loads(line) for line in module.ledger.read_text().splitlines()]
    assert {"id": hung, "reason": "reading took longer than 0.5 s", "position": 5, "attempt": 0} in lines
    wake.set()
    monkeypatch.undo()
    resumed = data(store)  # the server answers again, but the run has gone on without
    resumed.ledger = module.ledger
    again = batches(resumed)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(again, found, strict=True))


def test_a_killed_loader_process_ends_the_run_with_its_image(store, monkeypatch):
    module = data(store, 2, sample_timeout=60.0)
    rows, order = module.rows("train"), module.crops().order
    hung = rows[order(9)].id
    hang(monkeypatch, hung, 9)
    found = iter(module.loader())
    next(found), next(found)
    loader = module._loader
    begun = time.monotonic()
    while loader.dataset.desk.position(0) != 9:
        assert time.monotonic() - begun < 30
        time.sleep(0.01)
    os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="DataLoader worker") as caught:
        next(found)
    assert time.monotonic() - begun < 40
    said = str(module.explain(caught.value))
    assert said.startswith("loader process 1 of 2 was killed (SIGKILL: mostly the system, which is out of memory")
    assert f"while it read image {hung} (position 9)" in said
    assert str(store) not in said
    assert module.explain(RuntimeError("something else")) is None


def killed_at_position_9() -> None:
    """The loader process ends as if the system had killed it."""
    region, training = CropDataset._region, os.getpid()

    def killed(self, row, place):
        if place == 9 and os.getpid() != training:
            os.kill(os.getpid(), signal.SIGKILL)
        return region(self, row, place)

    CropDataset._region = killed


def test_a_killed_loader_process_is_no_mistake_of_a_person(store, tmp_path):
    """The exit code lets a supervisor start the job again, and it goes on without a saved step lost."""
    run, log = tmp_path / "run", tmp_path / "log"
    words = command(store, run, 6, "--watch.checkpoint_steps", "1", "--data.prefetch", "1", "--data.batch_size", "4")
    for _ in range(8):  # torch raises wherever the process is: within a type check of these tests it comes out as that
        assert code_of(start([*words, "--data.num_workers", "1"], log, killed_at_position_9)) == 1
        if "TypeCheckError" not in log.read_text():
            break
    assert "loader process 1 of 1 was killed (SIGKILL" in log.read_text()
    assert "Traceback" not in log.read_text().split("loader process")[-1]
    assert 1 not in FINAL
    assert main(words) == 0
    assert sorted(losses(run)) == list(range(1, 7))


@pytest.mark.parametrize(("free", "workers"), [(49151, 0), (49152, 2), (None, 2)])
def test_small_shared_memory_means_no_loader_processes(store, monkeypatch, caplog, free, workers):
    """4 samples of 8 ** 3 float32, in 3 batches for each of 2 processes."""
    monkeypatch.setattr("ssl_med.data.module.free_shared_memory", lambda: free)
    loader = data(store, 2).loader()
    assert loader.num_workers == workers
    assert caplog.text.count("no loader processes: ") == (workers == 0)
    if not workers:
        plain = batches(data(store), 2)
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(islice(loader, 2), plain, strict=True))


def test_errors_of_reading_come_through(store, monkeypatch):
    def broken(self, row, *args, **kwargs):
        raise UserError("the disk is gone")

    monkeypatch.setattr(Store, "read", broken)
    with pytest.raises(UserError, match="the disk is gone"):
        batches(data(store))


def test_too_little_memory_is_told_with_remedies(store, tiny_vit):
    import pytorch_lightning as pl

    from ssl_med.tasks import MAE

    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, max_steps=1)
    learner, module = Learner(MAE(tiny_vit(3), decoder_dim=24, decoder_heads=2, decoder_depth=1)), data(store)
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError()):
        said = str(out_of_memory(error, learner, module, trainer))
        assert "(1) learner.recompute: true" in said
        assert "(2) data.batch_size: 2 with trainer.accumulate_grad_batches: 2 instead of 4 with 1" in said
        assert "(3) data.crop: [4, 4, 4] instead of [8, 8, 8]" in said
    assert out_of_memory(RuntimeError("shapes"), learner, module, trainer) is None
