"""The heart: a run that was killed and repeated is, bit for bit, the run that never was."""

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from stores import store_of, volumes

from ssl_med.callbacks import newest_whole
from ssl_med.cli import main

STEPS = 40
PLAIN = (dict, list, tuple, str, int, float, bool, type(None), torch.Tensor)
QUIET = ["--watch.probes", "0", "--watch.pictures", "0", "--watch.health", "2", "--watch.checkpoint_steps", "6"]
CASES = {
    "one process": ["--data.num_workers", "0"],
    "two loader processes": ["--data.num_workers", "2"],
    "accumulation and drop path": ["--trainer.accumulate_grad_batches", "2", "--task.backbone.drop_path", "0.2"],
}
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    store_of(volumes(folder / "in", 10), folder / "store")
    return folder / "store"


def command(store: Path, out: Path, case: str) -> list[str]:
    steps = ["--trainer.max_steps", str(STEPS), "--trainer.accelerator", "cpu"]
    return ["pretrain", "smoke/mae_3d", "--data", str(store), "--out", str(out), *steps, *QUIET, *CASES[case]]


def lines(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def start(arguments: list[str], log: Path) -> int:
    """A process that runs the command: a fork of this one, which has imported everything already."""
    child = os.fork()
    if child == 0:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os._exit(main(arguments))
    return child


def kill_in_the_middle(child: int, run: Path) -> None:
    """Wait for some steps after the second checkpoint, then kill -9."""
    metrics, needed = run / "metrics.jsonl", run / "checkpoints" / "step=0000012.ckpt"
    while not (needed.exists() and len(metrics.read_text().splitlines()) >= 15):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended by itself"
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def losses(run: Path) -> dict[int, tuple]:
    """Each step's loss and rate; a step that stands there twice is an error."""
    found = {}
    for line in lines(run):
        if "loss" in line:
            assert line["step"] not in found, f"step {line['step']} was logged twice"
            found[line["step"]] = (line["loss"], line["lr"])
    return found


def final_state(run: Path) -> dict:
    return torch.load(run / "checkpoints" / f"step={STEPS:07d}.ckpt", weights_only=True)


def same(first, second) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


@pytest.mark.parametrize("case", CASES)
def test_killed_and_repeated_equals_uninterrupted(store, tmp_path, case, capsys):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kill_in_the_middle(start(command(store, killed, case), tmp_path / "log"), killed)
    reached = max(losses(killed))
    assert 12 < reached < STEPS
    assert json.loads((killed / "run.json").read_text())["status"] == "running"
    assert main(command(store, killed, case)) == 0
    begun = int(capsys.readouterr().out.split(" at step ")[1].split(" ")[0])
    assert 12 <= begun <= reached
    assert main(command(store, whole, case)) == 0
    assert "resuming" not in capsys.readouterr().out

    assert sorted(losses(whole)) == list(range(1, STEPS + 1))
    assert losses(killed) == losses(whole)
    first, second = final_state(whole), final_state(killed)
    assert same(first["state_dict"], second["state_dict"])
    assert same(first["optimizer_states"], second["optimizer_states"])
    exports = [run / "exports" / "backbone" / "backbone.safetensors" for run in (whole, killed)]
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in exports}) == 1
    health = [[line for line in lines(run) if "health/effective_rank" in line] for run in (whole, killed)]
    assert health[0] == health[1]
    assert [line["step"] for line in health[0]] == [0, STEPS // 2, STEPS]
    assert newest_whole(killed / "checkpoints").name == f"step={STEPS:07d}.ckpt"
    assert len(list((killed / "checkpoints").glob("step=*.ckpt"))) == 2


def test_loader_processes_change_no_bit(store, tmp_path):
    runs = {case: tmp_path / case for case in ("one process", "two loader processes")}
    for case, run in runs.items():
        assert main([*command(store, run, case), "--trainer.max_steps", "8"]) == 0
    first, second = runs.values()
    assert sorted(losses(first)) == list(range(1, 9))
    assert losses(first) == losses(second)
    states = [torch.load(run / "checkpoints" / "step=0000008.ckpt", weights_only=True) for run in runs.values()]
    assert all(same(states[0][part], states[1][part]) for part in ("state_dict", "optimizer_states"))


def plain(value) -> bool:
    if isinstance(value, dict):
        return all(plain(k) and plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(plain(v) for v in value)
    return type(value) in PLAIN or isinstance(value, dict)


def test_ends_of_a_run(store, tmp_path, capsys):
    """Killed before the first checkpoint, killed before the export, repeated when finished, stopped by Ctrl+C."""
    run, arguments = tmp_path / "run", command(store, tmp_path / "run", "one process")
    arguments[arguments.index(str(STEPS))] = "8"
    assert main(arguments) == 0
    expected, weights = losses(run), (run / "exports" / "backbone" / "backbone.safetensors").read_bytes()
    assert plain(torch.load(run / "checkpoints" / "step=0000008.ckpt", weights_only=True))

    assert main(arguments) == 2
    assert "holds a finished run of 8 steps" in capsys.readouterr().err

    state = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**state, "status": "running"}))
    for path in (run / "exports" / "backbone").iterdir():
        path.unlink()
    assert main(arguments) == 0
    assert (run / "exports" / "backbone" / "backbone.safetensors").read_bytes() == weights
    assert losses(run) == expected

    (run / "run.json").write_text(json.dumps({**state, "status": "running"}))
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    assert main(arguments) == 0
    assert losses(run) == expected
    assert [line["step"] for line in lines(run) if "health/effective_rank" in line] == [0, 4, 8]


def test_ctrl_c_stops_and_the_command_goes_on(store, tmp_path, monkeypatch, capsys):
    from ssl_med.tasks import MAE

    run, arguments = tmp_path / "run", command(store, tmp_path / "run", "one process")
    forward, calls = MAE.forward, []

    def interrupted(self, batch, progress):
        calls.append(progress)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return forward(self, batch, progress)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(MAE, "forward", interrupted)
    try:
        assert main(arguments) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "repeat the command to go on" in capsys.readouterr().err
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    monkeypatch.undo()
    arguments += ["--watch.checkpoint_steps", "20"]  # what changes nothing may differ
    assert main([*arguments, "--resume", "must"]) == 0
    assert "at step 6 on" in capsys.readouterr().out
    assert sorted(losses(run)) == list(range(1, STEPS + 1))


def test_ctrl_c_waits_for_the_step_and_saves(store, tmp_path, monkeypatch, capsys):
    from ssl_med.tasks import MAE

    run, arguments = tmp_path / "run", command(store, tmp_path / "run", "one process")
    forward, calls = MAE.forward, []

    def pressed(self, batch, progress):
        calls.append(progress)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return forward(self, batch, progress)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(MAE, "forward", pressed)
    try:
        assert main(arguments) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert (run / "checkpoints" / "step=0000005.ckpt").exists()
    monkeypatch.undo()
    assert main(arguments) == 0
    assert "at step 5 on" in capsys.readouterr().out
    assert sorted(losses(run)) == list(range(1, STEPS + 1))
