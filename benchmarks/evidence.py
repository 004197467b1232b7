"""The label curves of docs/evidence: stores, pretraining and curve of each set of images, one command for all of it.

Every step goes on where it stopped, so the command is repeated after an interruption.

    python -m benchmarks.evidence $SSL_MED_DATA out --sets chula pneumonia
"""

import argparse
import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from ssl_med.config import load_config
from ssl_med.data.store import Store
from ssl_med.run_folder import is_finished

CURVES = Path(__file__).parent / "evidence.yaml"
SHOWN = ("curve.md", "curve.csv", "comparisons.csv", "subgroups.csv", "runs.csv", "curve.png")


def main() -> None:
    """Run what is asked for."""
    import yaml

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that holds the sets of images")
    parser.add_argument("out", type=Path, help="folder of stores, runs and curves")
    parser.add_argument("--sets", nargs="+", help="names in the table of studies; all by default")
    parser.add_argument("--studies", type=Path, default=CURVES, help="table of images, configs and options of each set")
    parser.add_argument("--processes", default="1", help="fine-tunings at a time")
    parser.add_argument("--docs", type=Path, help="folder that gets the tables and pictures of each set")
    asked = parser.parse_args()
    curves = yaml.safe_load(asked.studies.read_text())
    if unknown := set(asked.sets or []) - set(curves):
        parser.error(f"--sets {' '.join(sorted(unknown))}: expected some of {', '.join(curves)}")
    for name in asked.sets or curves:
        prove(asked.data, asked.out, name, curves, asked.processes)
        if asked.docs:
            (asked.docs / name).mkdir(parents=True, exist_ok=True)
            for file in SHOWN:
                shutil.copy(asked.out / "curve" / name / file, asked.docs / name / file)


def prove(data: Path, out: Path, name: str, curves: dict[str, dict], processes: str) -> None:
    """One set: prepare, pretrain and curve. A study ``like`` another differs from it in what it names itself.

    It shares the other's store, and its pretraining too unless it names a ``pretrain`` config or ``settings`` of it.
    """
    line = lineage(name, curves)
    study = {key: value for part in line for key, value in curves[part].items()}
    trained = next(part for part in reversed(line) if {"pretrain", "settings"} & curves[part].keys())
    store, run, source = out / "store" / line[0], out / "pretrain" / trained, data / study["images"]
    if study.get("drop_repeats"):
        source = without_repeats(source, out / "images")
    call("prepare", source, "--out", store, *options(study.get("prepare", {})))
    config = load_config(study["pretrain"], "pretrain", study.get("settings", {}))
    if not is_finished(run, config):
        call("pretrain", study["pretrain"], "--data", store, "--out", run, *options(study.get("settings", {})))
    command = ["curve", study["finetune"], "--data", store, "--init", run, "--out", out / "curve" / name]
    groups = ["--groups", classes_apart(store, study["apart"], out / "curve" / name)] if "apart" in study else []
    call(*command, "--processes", processes, *groups, *options(study["curve"]))


def lineage(name: str, curves: dict[str, dict]) -> list[str]:
    """The study that this one goes back to, those in between, and itself."""
    line = [name]
    while "like" in curves[line[0]]:
        line.insert(0, curves[line[0]]["like"])
    return line


def classes_apart(folder: Path, named: list[str], out: Path) -> Path:
    """A table of groups that sets the images of some classes apart from those of all others."""
    store = Store(folder)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "groups.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "classes"])
        for row in store.rows.where(split="test"):
            alone = (store.class_names[row.label] if store.class_names else str(row.label)) in named
            table.writerow([row.id, "alone: " + ", ".join(named) if alone else "without " + ", ".join(named)])
    return out / "groups.csv"


def options(values: dict) -> list[str]:
    """Options of the command line, repeated for a list."""
    listed = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    return [word for name, items in listed.items() for item in items for word in (f"--{name}", str(item))]


def without_repeats(folder: Path, out: Path) -> Path:
    """The MedMNIST-like file of a folder without the training images that are also validation or test images."""
    (file,) = folder.glob("*.npz")
    arrays = dict(np.load(file))
    held = {image.tobytes() for split in ("val", "test") for image in arrays[f"{split}_images"]}
    keep = np.array([image.tobytes() not in held for image in arrays["train_images"]])
    for name in ("train_images", "train_labels"):
        arrays[name] = arrays[name][keep]
    print(f"{file.name}: {(~keep).sum()} training images recur in validation or test and are left out", flush=True)
    (out / folder.name).mkdir(parents=True, exist_ok=True)
    np.savez(out / folder.name / file.name, **arrays)
    return out / folder.name


def call(*command: object) -> None:
    """Run ``ssl-med`` with these words and stop if it fails."""
    print("ssl-med", *command, flush=True)
    subprocess.run([sys.executable, "-m", "ssl_med.cli", *map(str, command)], check=True)


if __name__ == "__main__":
    main()
