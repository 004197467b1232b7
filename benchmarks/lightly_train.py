"""From a folder of 200 PNGs to an exported ResNet-18 by DINO, beside lightly-train.

    python -m benchmarks.lightly_train --python OTHER_ENVIRONMENT/bin/python [--rounds 3]

lightly-train (AGPL) is a peer only and lives in an environment of its own; without ``--python`` only ours is timed.
Both see every image once in batches of 16, as 2 crops of 224 and 6 of 96, with a head of 2048, 2048, 256 and 1024
prototypes (lightly-train's choice for small sets), in float32 on one core. Ours is ``prepare``, ``pretrain`` and its
export. Seconds of all processes, start to end, in turns.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from benchmarks.measure import machine, table

COUNT, SIZE, BATCH = 200, 256, 16
OURS = {
    "task": {
        "class_path": "ssl_med.tasks.DINO",
        "init_args": {
            "backbone": {"class_path": "ssl_med.backbones.TimmBackbone", "init_args": {"name": "resnet18"}},
            "views": {
                "class_path": "ssl_med.transforms.MultiCrop",
                "init_args": {"local_count": 6, "multiple": 32, "style": "colour"},
            },
            "prototypes": 1024,
            "hidden_dim": 2048,
        },
    },
    "data": {"crop": 224, "batch_size": BATCH, "num_workers": 1},
    "learner": {"lr": 5.0e-4, "weight_decay": 0.04, "warmup": 0.1, "clip": 3.0, "clip_each": True},
    "trainer": {"max_steps": COUNT // BATCH, "log_every_n_steps": 10},
    "watch": {"probes": 0},
}
THEIRS = """
import lightly_train
if __name__ == "__main__":
    lightly_train.pretrain(
        out={out!r}, data={data!r}, model="torchvision/resnet18", method="dino", epochs=1, batch_size={batch},
        num_workers=1, accelerator="cpu", precision="32-true", overwrite=True,
    )
"""


def pictures(folder: Path) -> None:
    """Colour photographs of nothing: smooth, with noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        low = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC
        )
        noisy = np.clip(np.asarray(low, np.int16) + rng.normal(0, 4, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number}.png")


def ours(images: Path, out: Path) -> list[list[str]]:
    """The commands, and their files."""
    out.mkdir()
    (out / "dino_2d.yaml").write_text(yaml.safe_dump(OURS))
    command = [sys.executable, "-m", "ssl_med.cli"]
    train = ["pretrain", str(out / "dino_2d.yaml"), "--data", str(out / "store"), "--out", str(out / "run")]
    return [[*command, "prepare", str(images), "--out", str(out / "store")], [*command, *train]]


def theirs(python: str, images: Path, out: Path) -> list[list[str]]:
    out.mkdir()
    (out / "run.py").write_text(THEIRS.format(out=str(out / "run"), data=str(images), batch=BATCH))
    return [[python, str(out / "run.py")]]


def timed(commands: list[list[str]], log: Path) -> tuple[float, float]:
    """Seconds of the clock and of the processors."""
    quiet = {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "OMP_NUM_THREADS": "1"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with log.open("w") as file:
        for command in commands:
            subprocess.run(command, check=True, stdout=file, stderr=file, env={**os.environ, **quiet})
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="of an environment that has lightly-train")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures(folder / "images")
        for number in range(asked.rounds):
            sides = {"ssl_med": ours(folder / "images", folder / "ours")}
            if asked.python:
                sides["lightly-train"] = theirs(asked.python, folder / "images", folder / "theirs")
            for side, commands in sides.items():
                found.setdefault(side, []).append(timed(commands, folder / f"{side}{number}.log"))
            for out in ("ours", "theirs"):
                shutil.rmtree(folder / out, ignore_errors=True)
    lines, first = [], np.median(found["ssl_med"], 0)
    for side, times in found.items():
        clock, busy = np.median(times, 0)
        spread = " to ".join(f"{value:.3g}" for value in (min(times)[1], max(times)[1]))
        lines.append([side, float(clock), float(busy), spread, float(busy / first[1])])
    print(f"{machine()}\n\n{table(['side', 'seconds', 'CPU seconds', 'spread', 'times ssl_med'], lines)}")


if __name__ == "__main__":
    main()
