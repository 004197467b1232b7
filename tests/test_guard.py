"""A step that must not count changes nothing, on any process; the same run without faults is untouched."""

import copy
import itertools
import json
import logging
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from pytorch_lightning import Trainer
from safetensors import SafetensorError
from stores import store_of, volumes
from test_resume import same
from worlds import together

from ssl_med.callbacks import Guard
from ssl_med.cli import main
from ssl_med.errors import UserError
from ssl_med.learner import Learner
from ssl_med.tasks import DINO
from ssl_med.verbs.replay import replay

STEPS = 8
CONFIG = {
    "task": {
        "class_path": "ssl_med.tasks.DINO",
        "init_args": {
            "backbone": {
                "class_path": "ssl_med.backbones.ViT",
                "init_args": {"spatial_dims": 3, "patch": 4, "embed_dim": 24, "depth": 1, "heads": 2, "taps": 1},
            },
            "prototypes": 32,
            "hidden_dim": 16,
            "bottleneck_dim": 8,
        },
    },
    "data": {"crop": 16, "batch_size": 4, "num_workers": 0},
    "learner": {"clip": 3.0},
    "trainer": {"max_steps": STEPS, "accelerator": "cpu", "precision": "32-true", "log_every_n_steps": 1},
    "watch": {"probes": 0, "pictures": 0, "health": 0, "checkpoint_steps": 4},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guard")
    store_of(volumes(folder / "in", 8), folder / "store")
    return folder / "store"


def command(store: Path, out: Path, *more: str) -> list[str]:
    config = store.parent / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    return ["pretrain", str(config), "--data", str(store), "--out", str(out), *more]


def poison(monkeypatch, steps: dict[int, str], on_rank: int = 0) -> list[tuple[dict, dict]]:
    """Make the loss or a gradient of these calls infinite, or the loss leap; returns the state before and after each
    step that was skipped.
    """
    forward, finish, calls, seen = DINO.forward, Learner.optimizer_step, [], []

    def poisoned(self, batch, progress):
        losses = dict(forward(self, batch, progress))
        what = steps.get(len(calls), "")
        calls.append(progress)
        here = not torch.distributed.is_initialized() or torch.distributed.get_rank() == on_rank
        if what == "loss" and here:
            losses["loss"] = losses["loss"] * torch.nan
        if what == "leap" and here:
            losses["loss"] = losses["loss"] * 2 + 1e6
        if what == "gradient" and here:
            losses["loss"] = losses["loss"] + 0 * (losses["loss"] - losses["loss"].detach()).sqrt()
        return losses

    def watched(self, *args, **kwargs):
        before = copy.deepcopy((self.task.state_dict(), self.optimizers().state_dict()["state"]))
        finish(self, *args, **kwargs)
        if self.skipping:
            seen.append((before, (self.task.state_dict(), self.optimizers().state_dict()["state"])))
            seen[-1] = copy.deepcopy(seen[-1])

    monkeypatch.setattr(DINO, "forward", poisoned)
    monkeypatch.setattr(Learner, "optimizer_step", watched)
    return seen


def test_a_bad_step_moves_nothing_and_can_be_replayed(store, tmp_path, monkeypatch, capsys):
    seen = poison(monkeypatch, {3: "loss", 5: "gradient"})
    run = tmp_path / "run"
    assert main(command(store, run)) == 0
    assert len(seen) == 2
    for before, after in seen:
        assert same(before[0], after[0])
        assert same(dict(before[1]), dict(after[1]))
    told = (run / "train.log").read_text()
    assert "step 4 is skipped: the loss is not finite" in told
    assert "step 6 is skipped: a gradient is not finite" in told
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "skipped_steps" in line] == [4, 6]
    rates = [line["lr"] for line in lines if "lr" in line]
    assert len(rates) == STEPS
    assert all(a != b for a, b in itertools.pairwise(rates))  # the schedule goes on over skipped steps
    files = sorted((run / "faults").iterdir())
    assert [file.name for file in files] == [f"step={n:07d}_part=0_rank=0.safetensors" for n in (4, 6)]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    monkeypatch.undo()
    losses = replay(run, files[0])  # the poison is gone: the batch itself is sound
    assert 0 < losses["loss"] < 20
    assert "4 images" in capsys.readouterr().out


def test_all_processes_skip_together(store, tmp_path, monkeypatch):
    poison(monkeypatch, {2: "loss"}, on_rank=1)
    run = tmp_path / "run"
    more = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    assert together(2, tmp_path / "2", lambda _: main(command(store, run, *more)), join=False) == [0, 0]
    assert [f.name for f in (run / "faults").iterdir()] == ["step=0000003_part=0_rank=1.safetensors"]
    state = torch.load(run / "checkpoints" / f"step={STEPS:07d}.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in state["state_dict"].values())
    assert {int(value["step"]) for value in state["optimizer_states"][0]["state"].values()} == {STEPS - 1}


def test_a_batch_that_cannot_be_kept_is_told_and_nobody_waits(store, tmp_path, monkeypatch):
    poison(monkeypatch, {2: "loss", 4: "loss"}, on_rank=1)

    def full(tensors, path, facts):
        Path(path).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("ssl_med.callbacks.guard.save_file", full)
    run, more = tmp_path / "run", ["--trainer.devices", "2", "--trainer.strategy", "ddp"]

    def work(rank: int) -> int:
        logging.getLogger("ssl_med").addHandler(logging.FileHandler(tmp_path / f"{rank}.txt"))
        return main(command(store, run, *more))

    assert together(2, tmp_path / "2", work, join=False) == [0, 0]
    assert not list((run / "faults").iterdir())
    assert (run / "checkpoints" / f"step={STEPS:07d}.ckpt").is_file()
    told = (tmp_path / "1.txt").read_text()
    assert told.count("is not kept for a replay (I/O error: No space left on device)") == 1


def test_faults_that_cannot_be_a_folder_are_told(tmp_path, caplog):
    (tmp_path / "faults").touch()
    guard, batch = Guard(), {"image": torch.zeros(2, 1, 4, 4), "id": ["a", "b"]}
    guard._parts = [(batch, torch.tensor(torch.nan))]
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_progress_bar=False)
    guard._save(trainer, SimpleNamespace(progress=0.5, part_seed=lambda part: part), 3, everything=False)
    assert "the batch of step 3 is not kept for a replay (File exists)" in caplog.text


def test_too_many_in_a_row_end_the_run(store, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, dict.fromkeys(range(2, 9), "loss"))
    assert main(command(store, tmp_path / "run", "--watch.skip_patience", "3")) == 2
    assert "step 5: 3 steps in a row were skipped, the last because the loss is not finite" in capsys.readouterr().err


@pytest.mark.parametrize("skip", [True, False], ids=["skipped", "only told"])
def test_a_loss_that_leaps_in_a_run(store, tmp_path, monkeypatch, skip):
    monkeypatch.setattr("ssl_med.callbacks.guard.KNOWN", 4)
    seen = poison(monkeypatch, {5: "leap"})
    run = tmp_path / "run"
    assert main(command(store, run, "--watch.skip_spikes", str(skip).lower())) == 0
    told = (run / "train.log").read_text()
    assert told.count("the loss leaps to") == told.count("step 6: the loss leaps to ") == 1
    assert len(seen) == int(skip)
    assert all(same(before[0], after[0]) and same(dict(before[1]), dict(after[1])) for before, after in seen)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "skipped_steps" in line] == [6] * skip
    assert (run / "faults" / "step=0000006_part=0_rank=0.safetensors").exists() == skip
    state = torch.load(run / "checkpoints" / f"step={STEPS:07d}.ckpt", weights_only=True)
    assert {int(value["step"]) for value in state["optimizer_states"][0]["state"].values()} == {STEPS - skip}


def test_leaps_are_seen_and_nothing_else():
    guard = Guard(spike=8.0)
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0))
    losses = [float(3 * torch.exp(-step / 200 + 0.1 * noise[step])) for step in range(400)]
    found = []
    for step, loss in enumerate([*losses[:200], 40.0, *losses[200:]]):
        if guard._leaps(loss):
            found.append(step)
        guard.history = [*guard.history, loss][-101:]
    assert found == [200]
    twin = Guard()
    twin.load_state_dict(guard.state_dict())
    assert twin.state_dict() == guard.state_dict()
    negative = Guard()
    negative.history = [-1.0 + 0.01 * (i % 7) for i in range(50)]
    assert negative._leaps(0.5)
    assert not negative._leaps(-0.95)


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match="skip_patience"):
        Guard(patience=0)
