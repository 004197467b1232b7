"""Parameters in shards (FSDP2): the same weights, clipped alike; runs that change their number of processes."""

import errno
import json
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from contracts.test_tasks import cases, make_task
from double import in_double
from pytorch_lightning import Trainer
from stores import store_of, volumes
from torch.distributed.checkpoint import filesystem
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from trainings import whole_state
from worlds import image_batch, share, together

from ssl_med import sharding
from ssl_med.callbacks import Probes, checkpoint, newest_whole
from ssl_med.callbacks.checkpoint_io import is_whole, size_of
from ssl_med.cli import main
from ssl_med.learner import Learner
from ssl_med.optim import clip_all, clip_each, local
from ssl_med.tasks import MAE, PretextTask

ALL = {case.id: case.values for case in cases(PretextTask)}
SHARDED = {
    "DINO-ViT-2d": clip_each,
    "BYOL-UNetEncoder-3d": clip_all,
    "MAE-ViT-3d": clip_each,
    "ModelsGenesis-ViT-2d": None,
}
STEPS = 6


@pytest.fixture
def double_precision():
    with in_double():
        yield


def trained(case: str, rank: int = 0, world: int = 1) -> dict:
    """Weights after two clipped steps, put together, and the share of the numbers that a process held."""
    cls, name, space = ALL[case]
    task, clip = make_task(cls, name, space).double(), SHARDED[case]
    count = sum(p.numel() for p in task.parameters())
    if world > 1:
        sharding.shard(task, init_device_mesh("cpu", (world,)))
    held = sum(local(p).numel() for p in task.parameters()) / count
    optimiser = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    norms = []
    for step in range(2):
        optimiser.zero_grad()
        task(share(image_batch(space, seed=step, dtype=torch.float64), rank, world), step / 2)["loss"].backward()
        norms.append(clip(task.parameters(), 0.05) if clip else torch.zeros(()))
        optimiser.step()
        task.after_step((step + 1) / 2)
    return {"state": whole_state(task), "norms": norms, "held": held}


@pytest.mark.usefixtures("double_precision")
def test_shards_equal_one(tmp_path: Path) -> None:
    world = 4
    parts = together(world, tmp_path, lambda rank: {case: trained(case, rank, world) for case in SHARDED})
    for case in SHARDED:
        one = trained(case)
        for part in parts:
            torch.testing.assert_close(part[case]["state"], one["state"], atol=1e-10, rtol=0)
            torch.testing.assert_close(part[case]["norms"], one["norms"], atol=1e-10, rtol=0)
        assert sum(part[case]["held"] for part in parts) == pytest.approx(1)
        assert parts[1][case]["held"] < 1.3 / world


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    store_of(volumes(folder / "in", 10), folder / "store")
    return folder / "store"


def command(store: Path, out: Path, world: int, *more: str) -> list[str]:
    quiet = ["--watch.probes", "0", "--watch.pictures", "0", "--watch.health", "0"]
    fixed = ["--trainer.max_steps", str(STEPS), "--trainer.accelerator", "cpu", "--data.batch_size", "8"]
    fixed += ["--trainer.precision", "32-true", "--data.num_workers", "0", "--trainer.devices", str(world)]
    return ["pretrain", "smoke/mae_3d", "--data", str(store), "--out", str(out), *fixed, *quiet, *more]


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {int(line["step"]): line["loss"] for line in lines if "loss" in line}


def run_until(arguments: list[str], step: int) -> int:
    """The command, which is asked to stop in the middle of a step."""
    after_step, begun = MAE.after_step, []

    def stopped(self, progress: float) -> None:
        after_step(self, progress)
        if round(progress * STEPS) >= step and not begun:
            begun.append(step)
            signal.raise_signal(signal.SIGINT)

    MAE.after_step = stopped
    return main(arguments)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_goes_on_with_fewer_processes(strategy: str, store: Path, tmp_path: Path) -> None:
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert main(command(store, whole, 1)) == 0
    more = ["--trainer.strategy", strategy, "--watch.health", "1"]
    assert together(4, tmp_path / "4", lambda _: run_until(command(store, moved, 4, *more), 2), join=False) == [130] * 4
    assert together(2, tmp_path / "2", lambda _: run_until(command(store, moved, 2, *more), 4), join=False) == [130] * 2
    assert together(1, tmp_path / "1", lambda _: main(command(store, moved, 1, *more)), join=False) == [0]
    expected, found = losses(whole), losses(moved)
    assert sorted(found) == list(range(1, STEPS + 1))
    assert max(abs(found[step] / expected[step] - 1) for step in expected) < 1e-6
    assert (moved / "exports" / "backbone" / "backbone.safetensors").is_file()


def run_noting_weights(arguments: list[str], step: int) -> tuple[int, dict[str, torch.Tensor]]:
    """The same, with the weights, put together, that the run began with."""
    begin, found = Learner.on_train_start, {}

    def noting(self) -> None:
        begin(self)
        found.update({name: value.clone() for name, value in whole_state(self.task).items()})

    Learner.on_train_start = noting
    return run_until(arguments, step), found


def test_shards_of_four_are_taken_up_by_one_two_and_four(store: Path, tmp_path: Path) -> None:
    """The same bits on all of them, and the next loss of the run on one process."""
    whole, saved = tmp_path / "whole", tmp_path / "saved"
    assert together(1, tmp_path / "one", lambda _: main(command(store, whole, 1)), join=False) == [0]
    more = ["--trainer.strategy", "fsdp"]
    assert together(4, tmp_path / "0", lambda _: run_until(command(store, saved, 4, *more), 2), join=False) == [130] * 4
    held = newest_whole(saved / "checkpoints")
    reached = int(held.stem.removeprefix("step="))
    assert len(list(held.glob("__*"))) == 4
    weights = []
    for world in (1, 2, 4):
        run = tmp_path / f"on{world}"
        shutil.copytree(saved, run, symlinks=True)
        words = command(store, run, world, *more)
        further = partial(run_noting_weights, words, reached + 1)
        parts = together(world, tmp_path / f"{world}", lambda _, go=further: go(), join=False)
        assert [code for code, _ in parts] == [130] * world
        weights += [state for _, state in parts]
        assert losses(run)[reached + 1] == pytest.approx(losses(whole)[reached + 1], rel=1e-6)
    assert all(torch.equal(state[name], value) for state in weights for name, value in weights[0].items())
    assert weights[0]


def run_on_a_full_disk(arguments: list[str], rank: int) -> tuple[int, list[float]]:
    """No room for the second process: seen before step 4 is written, met while step 6 is; what each save needs."""
    save, room, write = checkpoint.Checkpoints._save_folder, checkpoint.check_room, filesystem._write_item
    now, needs = [0], []

    def watched(self, trainer: Trainer, path: Path) -> None:
        now.append(trainer.global_step)
        save(self, trainer, path)

    def checked(folder: Path, needed: int) -> None:
        needs.append(needed)
        room(folder, 2**60 if (rank, now[-1]) == (1, 4) else needed)

    def written(*arguments: object) -> object:
        if (rank, now[-1]) == (1, 6):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    checkpoint.Checkpoints._save_folder, checkpoint.check_room = watched, checked
    filesystem._write_item = written
    return main(arguments), needs


def test_a_full_disk_on_one_of_two_processes_leaves_the_older_folder(store: Path, tmp_path: Path) -> None:
    run, words = tmp_path / "run", ["--trainer.strategy", "fsdp", "--watch.checkpoint_steps", "2"]
    work = partial(run_on_a_full_disk, command(store, run, 2, *words))
    (code, needs), others = together(2, tmp_path / "2", work, join=False)
    assert (code, others[0]) == (0, 0)
    assert sorted(losses(run)) == list(range(1, STEPS + 1))
    held = run / "checkpoints" / "step=0000002.ckpt"
    assert newest_whole(run / "checkpoints") == held
    assert is_whole(run / "checkpoints" / "last.ckpt")
    assert sorted(item.name for item in (run / "checkpoints").iterdir()) == ["last.ckpt", held.name]
    told = (run / "train.log").read_text()
    assert told.count("CHECKPOINT NOT WRITTEN") == 2
    assert "step=0000004 (another process could not write its part; failure 1 in a row)" in told
    written = sum(part.stat().st_size for part in held.glob("__*"))
    assert needs == others[1]
    assert 0.5 < needs[0] / written < 1.01


def test_shards_are_not_written_beside_the_steps(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    more = ["--trainer.strategy", "fsdp", "--watch.checkpoint_async", "true"]
    assert main(command(store, tmp_path / "run", 1, *more)) == 2
    assert "watch.checkpoint_async: with trainer.strategy fsdp every process writes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_size_of_shards_is_that_of_all_of_them(tmp_path: Path) -> None:
    def size(rank: int) -> int:
        mesh = init_device_mesh("cpu", (2,))
        return size_of({"a": distribute_tensor(torch.zeros(7, 3), mesh, [Shard(0)]), "b": [torch.zeros(5)]})

    assert together(2, tmp_path, size) == [4 * (21 + 5)] * 2


@pytest.mark.parametrize("sharded", [False, True])
def test_the_best_state_is_kept_as_a_file_and_not_in_shards(sharded: bool, tmp_path: Path, caplog) -> None:
    saved: list[Path] = []
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_progress_bar=False)
    trainer.strategy._save_distributed_checkpoint, trainer.save_checkpoint = sharded, saved.append
    caplog.set_level("INFO")
    best = Probes()
    for _ in range(2):
        best._improved = True
        best.after_look(trainer)
    assert saved == ([] if sharded else [tmp_path / "checkpoints" / "best-knn.ckpt"] * 2)
    assert caplog.text.count("no best-knn.ckpt in this run") == int(sharded)
