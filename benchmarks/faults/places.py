"""Drills on where a run lives: full disks for its logs, odd folders, no network, two jobs, a changed config."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from jobs import code_of, lines, start, state_of
from stores import pictures

from benchmarks.faults.drill import STEPS, Place, Row, _mount, _unmount, finish, may_mount, newest_step
from benchmarks.faults.stops import _wait


def full_logs(place: Place, full: bool) -> Row:
    """F4: the disk of logs and pictures fills up; the checkpoints are on another one."""
    del full
    folder, kept = place.folder / "logs", place.new("kept")
    if not may_mount(folder):
        return Row("F4 disk full for logs and pictures", 0, 0, "not held: needs the right to mount a file system")
    _mount(folder, 4)
    try:
        run, log = folder / "run", kept.parent / "log"
        more = ("--watch.pictures", "4")
        child = start(place.words(run, *more, steps=200), log)
        _wait(run, 2, child)
        os.kill(child, signal.SIGTERM)
        code_of(child)
        shutil.move(run / "checkpoints", kept)
        (run / "checkpoints").symlink_to(kept)
        child = start(place.words(run, *more, steps=200), log)
        _wait(run, newest_step(run) + 3, child)
        _fill(folder)
        code_of(child, 300)  # the export has no room either: repeating the command makes it
        lost = 200 - newest_step(run)
        told = log.read_text().count("metrics.jsonl cannot be written")
    finally:
        _unmount(folder)
    return Row(
        "F4 disk full for logs and pictures", 1, int(lost > 0 or told != 1), f"steps lost {lost}; {told} warning"
    )


def _fill(folder: Path) -> None:
    """Not a byte is left."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def _run(words: list[str], *before: str, **environment: str) -> int:
    """The command as a person starts it."""
    command = [*before, sys.executable, "-m", "ssl_med.cli", *words]
    names = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    return subprocess.run(command, env=names, capture_output=True, check=False).returncode


def odd_places(place: Place, full: bool) -> Row:
    """F37: a home that cannot be written, spaces and letters beyond ASCII."""
    del full
    run = place.new("ö d") / "Käse 猫" / "run"
    store = run.parent / "st ore ü"
    shutil.copytree(place.store, store)
    words = place.words(run)
    words[words.index("--data") + 1] = str(store)
    homes = {"HOME": "/proc/nobody", "XDG_CACHE_HOME": "/proc/nobody", "TORCH_HOME": "/proc/nobody"}
    failed = _run(words, **homes) != 0 or not lines(run)
    return Row("F37 home not writable, odd folders", 1, int(failed), "a whole run with its export")


def no_network(place: Place, full: bool) -> Row:
    """F35: a name space of its own without any network; every verb that works on what is here."""
    del full
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode:
        return Row("F35 no network", 0, 0, "not held: needs the right to leave the network")
    tried = _verbs(place.new("lonely").parent)
    codes = dict.fromkeys(tried, 0) | {"doctor": _run(tried["doctor"])}  # this machine may not be fit for training
    failing = [name for name, words in tried.items() if _run(words, "unshare", "-rn") != codes[name]]
    return Row("F35 no network", len(tried), len(failing), ", ".join(failing) or "all verbs tried work")


def _verbs(folder: Path) -> dict[str, list[str]]:
    """Command lines of all verbs but ``demo``, whose data come with the package: each goes on with what the ones
    before it made.
    """
    pictures(folder / "scans", 60)
    store, base, tuned = folder / "store", folder / "base", folder / "tuned"
    chosen = ["--data", store, "--init", base]
    steps = ["--trainer.max_steps", 2, "--trainer.accelerator", "cpu"]
    export = ["export", base, "--license", "CC-BY-4.0", "--data_license", "CC-BY-4.0"]
    study = ["--labels", 4, "--draws", 1, "--seeds", 1, "--arms", "pretrained,scratch", "--resamples", 100]
    lines = {
        "inspect": ["inspect", folder / "scans"],
        "prepare": ["prepare", folder / "scans", "--out", store],
        "pretrain": ["pretrain", "smoke/mae_2d", "--data", store, "--out", base, *steps],
        "pretrain with wandb": [
            *("pretrain", "smoke/mae_2d", "--data", store, "--out", folder / "tracked"),
            *(*steps, "--watch.track", "[wandb]"),
        ],
        "probe": ["probe", base, "--data", store],
        "embed": ["embed", base, "--data", store, "--out", folder / "features.npz"],
        "finetune": ["finetune", "smoke/classify", *chosen, "--out", tuned, *steps],
        "predict": ["predict", tuned / "pretrained_labels=all_seed=0", folder / "scans", "--out", folder / "guesses"],
        "curve": ["curve", "smoke/classify", *chosen, "--out", folder / "study", *study, *steps],
        "export": [*export, "--out", folder / "export"],
        "export to timm": [*export, "--out", folder / "timm", "--to", "timm"],
        "card": ["card", "check", folder / "export"],
        "push to a folder": ["push", folder / "export", "--to", folder / "shelf", "--yes"],
        "pull from a folder": ["pull", folder / "shelf", "--out", folder / "pulled"],
        "report": ["report", base],
        "plan": ["plan", "mae_3d"],
        "doctor": ["doctor", "--out", folder],
    }
    return {name: [str(word) for word in words] for name, words in lines.items()}


def two_jobs(place: Place, full: bool) -> Row:
    """F38: the same folder twice at once; the lock of a killed job holds nobody up."""
    count, lost = (20 if full else 2), 0
    for _ in range(count):
        run = place.new("twice")
        first = start(place.words(run, steps=4000), run.parent / "log")
        _wait(run, 2, first)
        second = run.parent / "second"
        lost += code_of(start(place.words(run, steps=4000), second)) != 2 or "in use" not in second.read_text()
        os.kill(first, signal.SIGKILL)
        code_of(first)
        third = start(place.words(run, steps=4000), run.parent / "log")
        time.sleep(0.01)
        lost += not _wait(run, len(lines(run)) + 2, third)
        os.kill(third, signal.SIGKILL)
        code_of(third)
    return Row("F38 two jobs on one folder", count, lost, "the second is refused; after a kill the next one goes on")


def drift(place: Place, full: bool) -> Row:
    """F39: another learning rate, seed, batch or version at a resume."""
    del full
    changes = [("--learner.lr", "0.1"), ("--seed", "7"), ("--data.batch_size", "2"), ("--task.mask_ratio", "0.5")]
    run = place.new("drift")
    child = start(place.words(run), run.parent / "log")
    _wait(run, 3, child)
    os.kill(child, signal.SIGTERM)
    code_of(child)
    lost = 0
    for name, value in changes:
        said = run.parent / name.strip("-")
        lost += code_of(start(place.words(run, name, value), said)) != 2
        lost += f"{name.strip('-').split('.')[-1]}:" not in said.read_text()
    finish([*place.words(run, *changes[0]), "--resume", "force"])
    lost += not any("learner.lr" in line for note in state_of(run)["changes"] for line in note["changed"])
    assert len(lines(run)) >= STEPS
    return Row("F39 config drift", len(changes), lost, "refused with what differs; --resume force is noted in run.json")
