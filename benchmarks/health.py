"""Does the watch see a collapse, and only a collapse? ``python -m benchmarks.health STORE --out DIR --configs ...``.

Every config is trained as it stands, with several seeds (no alarm is expected), and once with each fault that its task
can have: a learning rate a hundred times too high, a teacher without memory, no centring, no variance term. The table
says at which step the watch of the run gave its first alarm, with the features' spread and effective rank at the end: a
fault that did no harm shall give none. With the options of ``benchmarks.families`` and the same ``--out`` the sound
runs are those of that command. Repeating the command goes on where it stopped.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import ssl_med
from benchmarks.families import asked_settings
from ssl_med.config import find_config
from ssl_med.errors import UserError
from ssl_med.run_folder import is_finished

HIGH = "learning rate x 100"
NO_MEMORY = {"momentum 0": {"task.momentum": 0.0}}
FAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "MoCoV3": NO_MEMORY,
    "SSiT": NO_MEMORY,
    "BYOL": NO_MEMORY,
    "IJEPA": NO_MEMORY,
    "VICReg": {"no variance term": {"task.variance": 0.0, "task.covariance": 0.0}},
    "DINO": {
        **NO_MEMORY,
        "no centring": {"task.centre_momentum": 1.0, "task.koleo": 0.0},
        "no centring, momentum 0": {"task.centre_momentum": 1.0, "task.koleo": 0.0, "task.momentum": 0.0},
    },
}
"""Settings of each fault, by the task's class; all tasks also get a learning rate that is too high."""
_ALARM = re.compile(r" WARNING step (\d+): (.*)")


class Told(NamedTuple):
    """What came of a training.

    Attributes:
        step: of the first alarm; None without one.
        words: of it, or of the error that ended the training.
        spread, rank: of the features at the last look.
    """

    step: int | None
    words: str
    spread: float
    rank: float


def faults_of(config: str) -> dict[str, dict[str, Any]]:
    """Every fault that the task of a config can have, as settings."""
    content = yaml.safe_load(find_config(config, "pretrain").read_text())
    task = content["task"]["class_path"].rpartition(".")[2]
    return {**FAULTS.get(task, {}), HIGH: {"learner.lr": 100 * content["learner"]["lr"]}}


def trained(config: str, store: Path, folder: Path, settings: dict[str, Any]) -> Told:
    """Train, or read what an earlier call did."""
    steps, seed = settings["trainer.max_steps"], settings["seed"]
    stopped = ""
    if not is_finished(folder, {"seed": seed, "trainer": {"max_steps": steps}}):
        try:
            ssl_med.pretrain(config, store, folder, settings)
        except UserError as error:  # the guard ends a training whose losses are no numbers
            stopped = str(error)
    alarms = _ALARM.findall((folder / "train.log").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "health/effective_rank" in line][-1]
    step, words = (int(alarms[0][0]), alarms[0][1]) if alarms else (None, stopped)
    return Told(step, words, last["health/feature_spread"], last["health/effective_rank"])


def rows_of(config: str, sound: list[Told], faulty: dict[str, Told]) -> list[str]:
    """Rows of the table: all sound runs in one, each fault in one."""
    alarms = [told for told in sound if told.words]
    lowest = f"{min(told.spread for told in sound):.2g}, {min(told.rank for told in sound):.2g}"
    words = alarms[0].words if alarms else ""
    lines = [f"| `{config}` | none, {len(sound)} runs | {len(alarms)} alarms | at least {lowest} | {words} |"]
    for fault, told in faulty.items():
        at = f"step {told.step}" if told.step else "ended" if told.words else "no alarm"
        lines.append(f"| `{config}` | {fault} | {at} | {told.spread:.2g}, {told.rank:.2g} | {told.words} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--configs", nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3, help="sound runs of each config")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of all runs")
    asked = parser.parse_args()
    lines = ["| config | fault | first alarm | spread, rank | in words |", "|---|---|---|---|---|"]
    for config in asked.configs:
        called, sound = config.replace("/", "_"), []
        for seed in range(asked.seeds):
            folder = asked.out / f"{called}_seed={seed}"
            sound.append(trained(config, asked.store, folder, asked_settings(asked.set, asked.steps, seed)))
        faulty = {}
        for fault, settings in faults_of(config).items():
            folder = asked.out / f"{called}_{re.sub('[^a-z0-9]+', '_', fault)}"
            faulty[fault] = trained(config, asked.store, folder, asked_settings(asked.set, asked.steps, 0) | settings)
        lines += rows_of(config, sound, faulty)
    text = "\n".join([*lines, "", f"{asked.steps} steps, looked at ten times.", ""])
    (asked.out / "health.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
