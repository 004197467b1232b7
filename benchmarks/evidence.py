"""The label curves of docs/evidence: stores, pretraining and curve of each set of images, one command for all of it.

Every step goes on where it stopped, so the command is repeated after an interruption.

    python -m benchmarks.evidence $SSL_MED_DATA out --sets chula pneumonia
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CURVES = Path(__file__).parent / "evidence.yaml"


def main() -> None:
    """Run what is asked for."""
    import yaml

    curves = yaml.safe_load(CURVES.read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that holds the sets of images")
    parser.add_argument("out", type=Path, help="folder of stores, runs and curves")
    parser.add_argument("--sets", nargs="+", choices=list(curves), default=list(curves))
    parser.add_argument("--processes", default="1", help="fine-tunings at a time")
    asked = parser.parse_args()
    for name in asked.sets:
        prove(asked.data, asked.out, name, curves[name], asked.processes)


def prove(data: Path, out: Path, name: str, study: dict, processes: str) -> None:
    """One set: prepare, pretrain and curve."""
    store, run = out / "store" / name, out / "pretrain" / name
    with tempfile.TemporaryDirectory() as temporary:
        source = data / study["images"]
        if study.get("drop_repeats"):
            source = without_repeats(source, Path(temporary))
        call("prepare", source, "--out", store)
    call("pretrain", study["pretrain"], "--data", store, "--out", run)
    options = [word for option, value in study["curve"].items() for word in words(option, value)]
    command = ["curve", study["finetune"], "--data", store, "--init", run, "--out", out / "curve" / name]
    call(*command, "--processes", processes, *options)


def words(option: str, value: object) -> list[str]:
    """One option of the command line, repeated for a list."""
    return [word for item in (value if isinstance(value, list) else [value]) for word in (f"--{option}", str(item))]


def without_repeats(folder: Path, out: Path) -> Path:
    """The MedMNIST-like file of a folder without the training images that are also validation or test images."""
    (file,) = folder.glob("*.npz")
    arrays = dict(np.load(file))
    held = {image.tobytes() for split in ("val", "test") for image in arrays[f"{split}_images"]}
    keep = np.array([image.tobytes() not in held for image in arrays["train_images"]])
    for name in ("train_images", "train_labels"):
        arrays[name] = arrays[name][keep]
    print(f"{file.name}: {(~keep).sum()} training images recur in validation or test and are left out", flush=True)
    (out / folder.name).mkdir()
    np.savez(out / folder.name / file.name, **arrays)
    return out / folder.name


def call(*command: object) -> None:
    """Run ``ssl-med`` with these words and stop if it fails."""
    print("ssl-med", *command, flush=True)
    subprocess.run([sys.executable, "-m", "ssl_med.cli", *map(str, command)], check=True)


if __name__ == "__main__":
    main()
