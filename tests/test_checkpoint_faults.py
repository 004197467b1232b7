"""No room, an interrupted folder, a write in the background: training goes on, and what was whole stays whole."""

import errno
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from jobs import code_of, command, losses, start
from stores import store_of, volumes

from ssl_med.callbacks import Saving, checkpoint_io, newest_whole, remove_leftovers
from ssl_med.callbacks.checkpoint_io import SEAL, check_room, hashes_of, is_whole, point_to, seal_folder, size_of
from ssl_med.callbacks.journal import append_line
from ssl_med.cli import main
from ssl_med.errors import UserError

STEPS = 12


def state(step: int) -> dict:
    return {"step": step, "weights": torch.full((2000,), float(step))}


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step={step:07d}.ckpt"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    store_of(volumes(folder / "in", 6, masks=False), folder / "store")
    return folder / "store"


# room


def test_the_size_counts_shared_memory_once():
    weights = torch.zeros(100)
    assert size_of({"a": weights, "b": [weights[:10], {"c": torch.zeros(3, dtype=torch.float64)}], "d": 1}) == 424


def test_what_does_not_fit_is_refused_before_a_byte_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 8050))
    check_room(tmp_path, 7900)
    with pytest.raises(OSError, match="are needed and") as refused:
        check_room(tmp_path, 8000)
    assert refused.value.errno == errno.ENOSPC
    saving = Saving()
    saving.save_checkpoint(state(1), path_of(tmp_path, 1))
    assert saving.failures == 1
    assert not list(tmp_path.iterdir())


def full(checkpoint, file) -> None:
    file.write(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_failures_are_told_counted_and_forgotten_with_the_next_whole_one(tmp_path, monkeypatch, caplog):
    saving = Saving()
    saving.save_checkpoint(state(1), path_of(tmp_path, 1))
    with monkeypatch.context() as disk:
        disk.setattr(torch, "save", full)
        for step in (2, 3):
            saving.save_checkpoint(state(step), path_of(tmp_path, step))
    assert saving.failures == 2
    assert "CHECKPOINT NOT WRITTEN: step=0000003" in caplog.text
    assert "failure 2 in a row). Training goes on; step=0000001 is there" in caplog.text
    assert newest_whole(tmp_path) == path_of(tmp_path, 1)
    assert is_whole(tmp_path / "last.ckpt")
    saving.save_checkpoint(state(4), path_of(tmp_path, 4))
    assert saving.failures == 0
    assert newest_whole(tmp_path) == path_of(tmp_path, 4)


def no_room_at_steps_4_to_8() -> None:
    save = torch.save

    def sometimes(checkpoint, file) -> None:
        save(checkpoint, file)
        if 4 <= checkpoint["global_step"] <= int(os.environ["FULL_UNTIL"]):
            raise OSError(errno.ENOSPC, "No space left on device")

    checkpoint_io.torch.save = sometimes


def test_training_goes_on_without_room_and_saves_again_when_there_is_some(store, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    words = command(store, run, STEPS, "--watch.checkpoint_steps", "2")
    assert code_of(start(words, log, no_room_at_steps_4_to_8, FULL_UNTIL="8")) == 0, log.read_text()
    assert sorted(losses(run)) == list(range(1, STEPS + 1))
    assert log.read_text().count("CHECKPOINT NOT WRITTEN") == 3
    assert newest_whole(run / "checkpoints") == path_of(run / "checkpoints", STEPS)


def test_a_disk_that_stays_full_stops_the_run_with_the_last_checkpoint_kept(store, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    words = command(store, run, STEPS, "--watch.checkpoint_steps", "1")
    assert code_of(start(words, log, no_room_at_steps_4_to_8, FULL_UNTIL="99")) == 2
    assert "5 saves in a row failed" in log.read_text()
    assert newest_whole(run / "checkpoints") == path_of(run / "checkpoints", 3)
    assert main(words) == 0
    assert sorted(losses(run)) == list(range(1, STEPS + 1))


def test_a_log_that_cannot_grow_keeps_its_whole_lines(tmp_path, monkeypatch, caplog):
    path = tmp_path / "metrics.jsonl"
    append_line(path, "one")
    opened = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, text):
            self.file.write(text[:2])
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "open", lambda self, *arguments: Full(opened(self, *arguments)))
        append_line(path, "two")
        append_line(path, "three")
    append_line(path, "four")
    assert path.read_text() == "one\nfour\n"
    assert caplog.text.count("cannot be written") == 1


# in the background


class Slow(Saving):
    """Writes when it is told to."""

    def __init__(self) -> None:
        super().__init__(background=True)
        self.go = threading.Event()
        self.under_way = 0

    def _write(self, checkpoint, path):
        self.under_way += 1
        assert self.under_way == 1
        assert self.go.wait(10)
        super()._write(checkpoint, path)
        self.under_way -= 1


def test_the_state_is_that_of_the_step_and_one_save_is_under_way(tmp_path):
    saving, weights = Slow(), torch.ones(5)
    saving.save_checkpoint({"step": 1, "weights": weights, "deep": [(weights,)]}, path_of(tmp_path, 1))
    weights += 1
    assert newest_whole(tmp_path) is None
    threading.Timer(0.1, saving.go.set).start()
    saving.save_checkpoint({"step": 2, "weights": weights}, path_of(tmp_path, 2))
    assert newest_whole(tmp_path) == path_of(tmp_path, 1)
    saving.teardown()
    first, second = (saving.load_checkpoint(path_of(tmp_path, step)) for step in (1, 2))
    assert first["weights"].tolist() == first["deep"][0][0].tolist() == [1.0] * 5
    assert second["weights"].tolist() == [2.0] * 5
    assert is_whole(tmp_path / "last.ckpt")


def test_a_full_disk_in_the_background_is_counted_and_a_defect_is_raised(tmp_path, monkeypatch):
    saving = Saving(background=True)
    monkeypatch.setattr(torch, "save", full)
    saving.save_checkpoint(state(1), path_of(tmp_path, 1))
    saving.wait()
    assert saving.failures == 1
    monkeypatch.setattr(torch, "save", lambda checkpoint, file: 1 / 0)
    saving.save_checkpoint(state(2), path_of(tmp_path, 2))
    with pytest.raises(ZeroDivisionError):
        saving.wait()
    saving.check()


def test_a_run_that_saves_in_the_background_ends_with_its_last_state(store, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(command(store, one, 6)) == 0
    assert main(command(store, two, 6, "--watch.checkpoint_async", "true", "--watch.checkpoint_steps", "2")) == 0
    assert losses(one) == losses(two)
    states = [torch.load(path_of(run / "checkpoints", 6), weights_only=True)["state_dict"] for run in (one, two)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# folders


def save_folder(folder: Path, step: int) -> Path:
    path = path_of(folder, step)
    temporary = path.with_name(f".{path.name}.tmp")
    dcp.save(state(step), checkpoint_id=temporary, no_dist=True)
    seal_folder(temporary, path, hashes_of(temporary))
    point_to(path)
    return path


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_folder_is_whole_until_anything_in_it_changes(tmp_path):
    for step in (1, 2):
        save_folder(tmp_path, step)
    loaded = {"step": 0, "weights": torch.zeros(2000)}
    dcp.load(loaded, checkpoint_id=tmp_path / "last.ckpt", no_dist=True)
    assert torch.equal(loaded["weights"], torch.full((2000,), 2.0))
    path = newest_whole(tmp_path)
    assert path == path_of(tmp_path, 2)
    with pytest.raises(UserError, match="is in shards"):
        Saving().load_checkpoint(path)
    part = next(path.glob("__0_*"))
    content = part.read_bytes()
    for damaged in (content[:-1], bytes([content[0] ^ 1]) + content[1:]):
        part.write_bytes(damaged)
        assert newest_whole(tmp_path) == path_of(tmp_path, 1)
    part.write_bytes(content)
    (path / "more").touch()
    assert not is_whole(path)
    (path / "more").unlink()
    (path / ".metadata").unlink()
    assert not is_whole(path)
    Saving().remove_checkpoint(path)
    assert not path.exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_folder_that_its_job_removes_while_it_is_looked_at_is_passed_over(tmp_path, monkeypatch):
    for step in (1, 2):
        save_folder(tmp_path, step)
    real = checkpoint_io.sha256_of

    def removing(path: Path) -> str:
        shutil.rmtree(path_of(tmp_path, 2), ignore_errors=True)
        return real(path)

    monkeypatch.setattr(checkpoint_io, "sha256_of", removing)
    assert newest_whole(tmp_path) == path_of(tmp_path, 1)


MOMENTS = {  # what the process dies at, and the newest whole folder afterwards
    "while writing": (dcp, "save", 1),
    "before the seal": (os, "fsync", 1),
    "before the rename": (Path, "replace", 1),
    "before the pointer": (Path, "symlink_to", 2),
}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_while_a_folder_is_saved_leaves_a_whole_one(tmp_path, moment):
    save_folder(tmp_path, 1)
    *replaced, expected = MOMENTS[moment]
    child = os.fork()
    if child == 0:
        setattr(*replaced, lambda *arguments, **more: os.kill(os.getpid(), signal.SIGKILL))
        save_folder(tmp_path, 2)
        os._exit(0)
    assert code_of(child) == -signal.SIGKILL
    assert newest_whole(tmp_path) == path_of(tmp_path, expected)
    assert is_whole(tmp_path / "last.ckpt")
    remove_leftovers(tmp_path)
    assert not list(tmp_path.glob(".*"))
    save_folder(tmp_path, 2)
    assert newest_whole(tmp_path) == path_of(tmp_path, 2)
    assert (tmp_path / "last.ckpt" / SEAL).is_file()


# kills at any time


def keep_saving(folder: Path, background: bool) -> None:
    saving, found = Saving(background=background), newest_whole(folder)
    first = int(found.stem[5:]) + 1 if found else 1
    for step in range(first, first + 1000):
        saving.save_checkpoint({"step": step, "weights": torch.full((20_000,), float(step))}, path_of(folder, step))


def newest(folder: Path) -> int:
    return max((int(path.stem[5:]) for path in folder.glob("step=*.ckpt")), default=0)


def wait_for(folder: Path, step: int) -> None:
    """Until this checkpoint, or a later one, is there."""
    end = time.monotonic() + 60
    while newest(folder) < step:
        assert time.monotonic() < end, "nothing is saved"
        time.sleep(0.002)


@pytest.mark.parametrize("background", [False, True])
def test_twelve_kills_at_random_moments_leave_no_bad_file(tmp_path, background):
    last = tmp_path / "last.ckpt"
    for number in range(12):
        remove_leftovers(tmp_path)
        before, child = newest(tmp_path), os.fork()
        if child == 0:
            keep_saving(tmp_path, background)
            os._exit(0)
        wait_for(tmp_path, before + 2)  # so that the one before it has been pointed to
        time.sleep(0.007 * number)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = newest_whole(tmp_path)
        assert Saving().load_checkpoint(found)["weights"][0] == int(found.stem[5:])
        assert is_whole(last)
        assert int(found.stem[5:]) - Saving().load_checkpoint(last)["step"] in (0, 1)  # saved, not yet pointed to
    remove_leftovers(tmp_path)
    assert not list(tmp_path.glob(".*"))
