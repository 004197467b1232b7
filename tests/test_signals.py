"""Asked to stop: the step ends, one checkpoint is written, every process leaves with the same code, and it goes on."""

import os
import signal
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
from jobs import code_of, command, losses, start, start_ranks, state_of, wait_for_step
from stores import store_of, volumes

from ssl_med.callbacks import newest_whole
from ssl_med.callbacks.signals import Agreement, Signals, leave_together, requeue
from ssl_med.cli import main

STEPS = 14
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    store_of(volumes(folder / "in", 6, masks=False), folder / "store")
    return folder / "store"


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory) -> dict[int, float]:
    """The losses of a run that nobody disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(command(store, run, STEPS)) == 0
    return losses(run)


def scontrol(folder: Path, then: str = "") -> dict[str, str]:
    """A program of that name on the path, which notes what it was asked for, and what it does after that."""
    program = folder / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/asked"\n{then}\n')
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "bash"}


def slow() -> None:
    """Steps long enough to be met by a signal."""
    from ssl_med.tasks import MAE

    forward = MAE.forward

    def waiting(self, batch, progress):
        time.sleep(0.05)
        return forward(self, batch, progress)

    MAE.forward = waiting


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"])
def test_a_signal_to_the_whole_group_saves_once_and_nothing_is_lost(store, whole, tmp_path, number, code):
    """The loader processes get it too, as from SLURM or a terminal."""
    run, log = tmp_path / "run", tmp_path / "log"
    child = start(command(store, run, STEPS, "--data.num_workers", "1"), log, slow)
    wait_for_step(run, 3, child)
    os.killpg(child, number)
    assert code_of(child) == code, log.read_text()
    reached = max(losses(run))
    assert 3 <= reached < STEPS
    assert [p.name for p in (run / "checkpoints").glob("step=*.ckpt")] == [f"step={reached:07d}.ckpt"]
    assert (state_of(run)["status"], state_of(run)["step"]) == ("stopped", reached)
    assert main(command(store, run, STEPS)) == 0
    assert losses(run) == whole


def test_slurm_is_asked_to_requeue_and_the_run_stays_the_same(store, whole, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    cluster, names = scontrol(tmp_path), set()
    for number in range(2):
        child = start(command(store, run, STEPS), log, slow, **cluster)
        wait_for_step(run, 3 + 3 * number, child)
        os.kill(child, signal.SIGUSR1)
        assert code_of(child) == 143, log.read_text()
        names.add(state_of(run)["run"])
    assert (tmp_path / "asked").read_text() == "requeue 4711\n" * 2
    assert main(command(store, run, STEPS)) == 0
    assert losses(run) == whole
    assert names == {state_of(run)["run"]}


def test_sigterm_does_not_requeue(store, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    child = start(command(store, run, STEPS), log, slow, **scontrol(tmp_path))
    wait_for_step(run, 2, child)
    os.kill(child, signal.SIGTERM)
    assert code_of(child) == 143
    assert not (tmp_path / "asked").exists()


@pytest.fixture
def on_slurm(tmp_path, monkeypatch):
    """This process is a job of SLURM."""

    def begin(then: str = "", **names: str) -> None:
        for name, value in {**scontrol(tmp_path, then), **names}.items():
            monkeypatch.setenv(name, value)

    return begin


@pytest.mark.parametrize("worked", [True, False])
def test_a_job_that_did_no_step_is_not_requeued(tmp_path, on_slurm, caplog, worked):
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    on_slurm()  # after the trainer, which would look for the rest of a cluster
    leave_together(trainer, signal.SIGUSR1, worked)
    assert (tmp_path / "asked").exists() == worked
    assert ("not requeued: no step was done" in caplog.text) != worked


def test_a_task_of_an_array_is_requeued_alone(tmp_path, on_slurm):
    on_slurm(SLURM_ARRAY_JOB_ID="12", SLURM_ARRAY_TASK_ID="3")
    requeue()
    assert (tmp_path / "asked").read_text() == "requeue 12_3\n"


@pytest.mark.parametrize("missing", [False, True], ids=["refused", "not on the path"])
def test_a_requeue_that_fails_is_told_and_nothing_else(tmp_path, on_slurm, caplog, monkeypatch, missing):
    on_slurm('echo "slurm_update error: Access denied" >&2; exit 1')
    if missing:
        monkeypatch.setenv("PATH", str(tmp_path))
    requeue()
    assert (tmp_path / "asked").exists() != missing
    assert "job 4711 is not requeued (" in caplog.text
    assert "submit it again to go on" in caplog.text
    assert ("Access denied" in caplog.text) != missing


def slow_saves() -> None:
    """A disk that takes its time, so that the second signal comes while a checkpoint is written."""
    from ssl_med.callbacks.checkpoint_io import os as system

    slow()
    fsync = os.fsync

    def waiting(handle: int) -> None:
        Path(os.environ["SAVING"]).touch()
        time.sleep(0.3)
        fsync(handle)

    system.fsync = waiting


def test_a_second_signal_while_saving_changes_nothing(store, tmp_path):
    run, log, mark = tmp_path / "run", tmp_path / "log", tmp_path / "saving"
    child = start(command(store, run, STEPS), log, slow_saves, SAVING=str(mark))
    wait_for_step(run, 2, child)
    os.kill(child, signal.SIGTERM)
    while not mark.exists():
        time.sleep(0.005)
    os.kill(child, signal.SIGTERM)
    os.kill(child, signal.SIGUSR1)
    assert code_of(child) == 143
    assert newest_whole(run / "checkpoints").stem == f"step={max(losses(run)):07d}"
    assert not list((run / "checkpoints").glob(".*.tmp"))


def test_a_signal_to_one_of_two_processes_stops_both_with_the_same_code(store, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    ranks = start_ranks(command(store, run, 400), log)
    wait_for_step(run, 2, ranks[0])
    os.kill(ranks[1], signal.SIGTERM)
    assert [code_of(rank) for rank in ranks] == [143, 143], log.read_text()
    assert state_of(run)["status"] == "stopped"
    assert newest_whole(run / "checkpoints").stem == f"step={max(losses(run)):07d}"


def test_the_first_signal_counts_and_the_second_ctrl_c_stops_at_once(capfd):
    signals = Signals()
    signals.listen()
    try:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert signals.asked == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signals.close()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert capfd.readouterr().err.count("once more stops at once") == 1


def test_alone_everything_is_agreed():
    together = Agreement()
    assert together.most(3, 0) == [3, 0]
    assert together.collect({"a": "b"}) == {"a": "b"}
