"""A run's folder is begun, resumed or refused, and never mixed up with anything else."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ssl_med import run_folder
from ssl_med.callbacks.settings import Watching
from ssl_med.errors import UserError
from ssl_med.run_folder import RunFolder, is_finished

CONFIG = {
    "task": {"class_path": "ssl_med.tasks.MAE", "init_args": {"mask_ratio": 0.75}},
    "data": {"folder": "store", "num_workers": 0},
    "trainer": {"max_steps": 20, "devices": "auto"},
    "watch": {"probes": 1},
    "seed": 0,
}
WAYS = ("repeating the command", "--overwrite", "another --out")


def begun(path: Path, status: str = "running", **changes) -> Path:
    folder = RunFolder(path, {**CONFIG, **changes})
    folder.write_state(status=status, step=5, steps=20)
    folder.close()
    (path / "metrics.jsonl").write_text("{}\n")
    return path


def state_of(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def opened(path: Path, config: dict | None = None, **arguments) -> RunFolder:
    folder = RunFolder(path, CONFIG if config is None else config, **arguments)
    folder.close()
    return folder


def test_a_new_folder_and_an_empty_one_are_begun(tmp_path):
    for path in (tmp_path / "new" / "run", tmp_path / "empty"):
        if path.name == "empty":
            path.mkdir()
        folder = opened(path)
        assert not folder.resumes
        assert yaml.safe_load((path / "config.yaml").read_text()) == CONFIG


def test_an_unfinished_run_goes_on(tmp_path):
    begun(tmp_path / "run")
    folder = opened(tmp_path / "run")
    assert folder.resumes
    assert folder.state["step"] == 5
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_must_and_never(tmp_path):
    with pytest.raises(UserError, match="holds no run to resume"):
        opened(tmp_path / "run", resume="must")
    assert not (tmp_path / "run").exists()
    begun(tmp_path / "run")
    assert opened(tmp_path / "run", resume="must").resumes
    with pytest.raises(UserError, match="holds a run already") as error:
        opened(tmp_path / "run", resume="never")
    assert all(way in str(error.value) for way in WAYS)
    assert not opened(tmp_path / "other", resume="never").resumes


def test_another_config_is_refused_with_what_differs(tmp_path):
    begun(tmp_path / "run")
    before = state_of(tmp_path / "run")
    with pytest.raises(UserError) as error:
        opened(tmp_path / "run", {**CONFIG, "seed": 1})
    assert "seed: 0 -> 1" in str(error.value)
    assert all(way in str(error.value) for way in WAYS)
    assert state_of(tmp_path / "run") == before
    opened(tmp_path / "run")  # the refusal gave the lock back


def test_what_changes_nothing_may_differ(tmp_path):
    begun(tmp_path / "run")
    data, trainer = {"folder": "store", "num_workers": 4}, {"max_steps": 20, "devices": 2}
    config = {**CONFIG, "data": data, "trainer": trainer, "watch": {"probes": 9, "online": True}}
    assert opened(tmp_path / "run", config).resumes
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == config


@pytest.mark.parametrize(
    "setting", [("skip_spikes", True), ("spike", 4.0), ("skip_patience", 3), ("patience", 2), ("validate", 9)]
)
def test_what_skips_steps_chooses_weights_or_ends_a_run_may_not_differ(tmp_path, setting):
    begun(tmp_path / "run")
    name, value = setting
    config = {**CONFIG, "watch": {"probes": 1, name: value}}
    with pytest.raises(UserError, match=rf"watch\.{name}: None -> {value}.*--resume force"):
        opened(tmp_path / "run", config)
    assert opened(tmp_path / "run", config, resume="force").resumes


def test_how_a_run_is_watched_is_known_for_every_setting():
    """A new setting is refused on a resume until somebody says that it changes nothing."""
    computes = {"skip_spikes", "spike", "skip_patience", "patience", "validate"}
    names = {field.name for field in dataclasses.fields(Watching)}
    assert {name for name in names if not f"watch.{name}".startswith(run_folder._SAFE)} == computes


def test_a_finished_run_is_refused(tmp_path):
    begun(tmp_path / "run", "finished")
    with pytest.raises(UserError, match="finished run of 20 steps") as error:
        opened(tmp_path / "run")
    assert all(way in str(error.value) for way in WAYS)


def test_overwrite_begins_anew(tmp_path):
    begun(tmp_path / "run", "finished")
    (tmp_path / "run" / "checkpoints").mkdir()
    folder = opened(tmp_path / "run", {**CONFIG, "seed": 7}, overwrite=True)
    assert not folder.resumes
    assert {p.name for p in (tmp_path / "run").iterdir()} == {".lock", "config.yaml"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["thesis.doc", "config.yaml"])
def test_a_foreign_folder_is_refused_and_left_as_it_was(tmp_path, overwrite, name):
    (tmp_path / "deep").mkdir()
    (tmp_path / name).write_text("years of work")
    before = state_of(tmp_path)
    with pytest.raises(UserError, match="holds no run of ssl-med; give another --out"):
        opened(tmp_path, overwrite=overwrite)
    assert state_of(tmp_path) == before


def test_a_start_that_failed_does_not_block_the_next(tmp_path):
    """Killed, or refused for its data, before the run began: only lock and config are there."""
    opened(tmp_path / "run")
    folder = opened(tmp_path / "run", {**CONFIG, "seed": 1})
    assert not folder.resumes


def test_the_state_is_kept_whole_and_seconds_add_up(tmp_path):
    folder = RunFolder(tmp_path / "run", CONFIG)
    folder.write_state(status="running")
    first = folder.state["seconds"]
    folder.write_state(step=3)
    folder.close()
    again = RunFolder(tmp_path / "run", CONFIG)
    again.write_state()
    again.close()
    assert again.state["seconds"] >= folder.state["seconds"] >= first >= 0
    assert (again.state["status"], again.state["step"]) == ("running", 3)
    assert again.read_state() == again.state
    assert not (tmp_path / "run" / ".run.json").exists()


def test_is_finished_asks_for_status_and_settings(tmp_path):
    assert not is_finished(tmp_path / "none", CONFIG)
    assert not is_finished(begun(tmp_path / "a"), CONFIG)
    done = begun(tmp_path / "b", "finished")
    assert is_finished(done, {"trainer": {"max_steps": 20}, "seed": 0})
    assert not is_finished(done, {"trainer": {"max_steps": 21}})


def test_is_finished_takes_defaults_in_lists_as_they_are(tmp_path):
    filled = {"views": [{"class_path": "Flip", "init_args": {"axes": [1], "probability_per_axis": 0.5}}]}
    done = begun(tmp_path / "a", "finished", **filled)
    assert is_finished(done, {"views": [{"class_path": "Flip", "init_args": {"axes": [1]}}]})
    assert not is_finished(done, {"views": [{"class_path": "Flip", "init_args": {"axes": [0]}}]})
    assert not is_finished(done, {"views": []})


HOLD = """
import sys, time
from ssl_med.run_folder import RunFolder
import yaml
folder = RunFolder(sys.argv[1], yaml.safe_load(sys.argv[2]))
folder.write_state(status="running")
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_processes_never_share_a_folder_and_a_kill_gives_it_back(tmp_path, overwrite):
    path = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(path), yaml.safe_dump(CONFIG)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        before = state_of(path)
        with pytest.raises(UserError, match="in use by another process"):
            opened(path, overwrite=overwrite)
        assert state_of(path) == before
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert opened(path, overwrite=overwrite).resumes is not overwrite


def test_other_ranks_neither_lock_nor_write(tmp_path, monkeypatch):
    leader = RunFolder(tmp_path / "run", CONFIG)
    leader.write_state(status="running")
    monkeypatch.setenv("NODE_RANK", "1")
    before = state_of(tmp_path / "run")
    follower = RunFolder(tmp_path / "run", CONFIG)
    follower.write_state(status="broken")
    follower.close()
    assert not follower.leads
    assert state_of(tmp_path / "run") == before
    leader.close()


def test_force_goes_on_under_another_config_and_notes_it(tmp_path):
    begun(tmp_path / "run")
    changed = {**CONFIG, "seed": 1, "data": {"folder": "elsewhere", "num_workers": 0}}
    folder = opened(tmp_path / "run", changed, resume="force")
    assert folder.resumes
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == changed
    with pytest.raises(UserError, match="another config"):
        opened(tmp_path / "run")


def test_what_was_changed_stays_in_the_state(tmp_path):
    begun(tmp_path / "run")
    for seed in (1, 2):
        data = {"folder": f"/home/doe/{seed}", "num_workers": seed}
        folder = RunFolder(tmp_path / "run", {**CONFIG, "seed": seed, "data": data}, resume="force")
        folder.write_state(status="running", step=10 * seed)
        folder.close()
    notes = folder.read_state()["changes"]
    assert [note["step"] for note in notes] == [5, 10]
    assert [note["changed"] for note in notes] == [
        ["data.num_workers: 0 -> 1", "seed: 0 -> 1"],
        ["data.num_workers: 1 -> 2", "seed: 1 -> 2"],
    ]


def test_other_versions_are_refused_and_patches_are_not(tmp_path, monkeypatch):
    begun(tmp_path / "run")
    folder = RunFolder(tmp_path / "run", CONFIG)
    folder.write_state(versions={"torch": "2.10.0+cpu", "numpy": "2.1.0"})
    folder.close()
    monkeypatch.setattr("ssl_med.run_folder.versions", lambda: {"torch": "2.10.3", "numpy": "2.1.9"})
    assert opened(tmp_path / "run").resumes
    monkeypatch.setattr("ssl_med.run_folder.versions", lambda: {"torch": "2.11.0", "numpy": "2.1.0"})
    with pytest.raises(UserError, match=r"torch: '2.10' -> '2.11'.*--resume force"):
        opened(tmp_path / "run")
    assert opened(tmp_path / "run", resume="force").resumes


def test_another_version_of_this_library_is_refused_and_a_run_that_does_not_say_is_not(tmp_path, monkeypatch):
    begun(tmp_path / "run")
    for noted in ({}, {"numpy": run_folder.versions()["numpy"]}, run_folder.versions()):
        folder = RunFolder(tmp_path / "run", CONFIG)
        folder.write_state(versions=noted)
        folder.close()
    assert opened(tmp_path / "run").resumes
    monkeypatch.setattr("ssl_med.run_folder.__version__", "99.1.0")
    with pytest.raises(UserError, match=r"ssl-med: '\d+\.\d+' -> '99\.1'.*--resume force"):
        opened(tmp_path / "run")
    assert opened(tmp_path / "run", resume="force").resumes


def test_a_run_keeps_its_id(tmp_path):
    begun(tmp_path / "run")
    first, second = (opened(tmp_path / "run").state["run"] for _ in range(2))
    assert first == second
    assert opened(tmp_path / "run", overwrite=True).state["run"] != first


def test_a_full_disk_at_a_stop_is_a_warning(tmp_path, monkeypatch, caplog):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    folder = RunFolder(tmp_path / "run", CONFIG)
    monkeypatch.setattr("ssl_med.run_folder.write_json", full)
    folder.note_stop(3)
    folder.close()
    assert "run.json cannot be written: No space left" in caplog.text


def test_a_run_that_lost_its_config_is_refused_and_left_alone(tmp_path):
    path = begun(tmp_path / "run")
    (path / "config.yaml").unlink()
    before = state_of(path)
    with pytest.raises(UserError, match=r"without its config.yaml; put that back, or use --overwrite"):
        opened(path)
    assert state_of(path) == before
    assert not is_finished(path, CONFIG)
    assert not opened(path, overwrite=True).resumes
