"""nnU-Net fine-tunes from our file: ``python -m benchmarks.nnunet --python VENV/bin/python --data MSD_FOLDER``.

The Python is that of an environment with nnunetv2. ``--network residual`` is a small ResEnc network, for which plans of
nnU-Net are changed; ``--network plain`` is the one of its own plan, of which nothing but the batch is changed. Half of
the images are pretrained on without labels (or ``--export`` names a native export), some of the others become a raw
folder of nnU-Net; its own commands plan, preprocess and train a few steps, from our weights and from none. Printed:
how many of our weights it holds before its first step, how far its maps are from ours, and its loss. Exit code 1 where
a weight is not taken.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import yaml

import ssl_med
from benchmarks.measure import table
from ssl_med.exports import load_backbone
from ssl_med.formats import convert

CLIENT = Path(__file__).with_name("nnunet_client.py")
DATASET, PLANS = "Dataset004_Hippocampus", "nnUNetPlans_from_ssl_med"
SMALL = {"spatial_dims": 3, "widths": [8, 16, 32], "blocks": [1, 2, 2]}
COMMON = {
    "data": {"crop": [32, 48, 32], "batch_size": 2},
    "learner": {"lr": 1.0e-3, "weight_decay": 1.0e-5, "warmup": 0.1},
    "trainer": {"log_every_n_steps": 10},
    "watch": {"probes": 0, "pictures": 0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, required=True, help="of an environment with nnunetv2")
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and labels/ of MSD Task04")
    parser.add_argument("--network", choices=("residual", "plain"), default="residual")
    parser.add_argument("--export", type=Path, help="native export to begin with; default: pretrain one here")
    parser.add_argument("--steps", type=int, default=150, help="of the pretraining")
    parser.add_argument("--images", type=int, default=20, help="labelled images for nnU-Net, four fifths to train on")
    parser.add_argument("--epochs", type=int, default=4, help="of nnU-Net")
    parser.add_argument("--iterations", type=int, default=10, help="of each epoch")
    parser.add_argument("--seeds", type=int, default=2, help="pairs of trainings by the standard command")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        sys.exit(proof(arguments, Path(place)))


def proof(arguments: argparse.Namespace, place: Path) -> int:
    """All of it; 1 where nnU-Net did not take what we wrote."""
    cases = sorted(path.name for path in (arguments.data / "images").glob("*.nii.gz"))
    labelled, unlabelled = cases[: len(cases) // 2][: arguments.images], cases[len(cases) // 2 :]
    client = Client(arguments, place)
    raw_folder(arguments.data, labelled, client.raw)
    client.run("nnUNetv2_extract_fingerprint", "-d", "4", "-np", "1")
    client.run("nnUNetv2_plan_experiment", "-d", "4")
    task = genesis() if arguments.network == "residual" else masked(client.plans())
    source = arguments.export or pretrain(arguments, task, unlabelled, place)
    folder = convert(source, place / "nnunet", "nnunet")
    keep_maps(source, folder)
    rows = [*standard(client, folder, arguments), *adapted(client, folder)]
    head = ["command", "weights", "seed", "ours in it", "maps differ by", "first loss", "last epoch"]
    print(table(head, [row[:-1] for row in rows]))
    return int(any(row[-1] for row in rows))


def genesis() -> dict[str, Any]:
    """Models Genesis for a small residual encoder."""
    backbone = {"class_path": "ssl_med.backbones.ResidualEncoder", "init_args": SMALL}
    return {"class_path": "ssl_med.tasks.ModelsGenesis", "init_args": {"backbone": backbone, "widths": SMALL["widths"]}}


def masked(plans: dict[str, Any]) -> dict[str, Any]:
    """Masked blocks for the plain encoder that nnU-Net has planned."""
    planned = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    settings = {
        "widths": planned["features_per_stage"],
        "convolutions": list(planned["n_conv_per_stage"]),
        "pooling": planned["strides"],
        "kernels": planned["kernel_sizes"],
    }
    backbone = {"class_path": "ssl_med.backbones.PlainEncoder", "init_args": settings}
    arguments = {"backbone": backbone, "mask_block": 8, "widths": [16, 32, 64, 128]}
    return {"class_path": "ssl_med.tasks.MaskedConv", "init_args": arguments}


def pretrain(arguments: argparse.Namespace, task: dict[str, Any], cases: list[str], place: Path) -> Path:
    """A short pretraining on images that nnU-Net never sees."""
    (place / "scans").mkdir()
    for name in cases:
        shutil.copyfile(arguments.data / "images" / name, place / "scans" / name)
    config = place / "pretraining.yaml"
    config.write_text(yaml.safe_dump({"task": task, **COMMON}))
    ssl_med.prepare(place / "scans", place / "store")
    return ssl_med.pretrain(str(config), place / "store", place / "run", {"trainer.max_steps": arguments.steps})


def keep_maps(source: Path, folder: Path) -> None:
    """An image and our maps of it, for nnU-Net's network to be held against."""
    encoder = load_backbone(str(source)).eval()
    image = torch.randn(1, encoder.in_channels, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.save({"image": image, "maps": encoder(image).maps}, folder / "maps.pt")


def raw_folder(data: Path, cases: list[str], raw: Path) -> None:
    """The labelled images as nnU-Net wants them; its reader turns them to RAS, as ours does."""
    for kind in ("imagesTr", "labelsTr"):
        (raw / DATASET / kind).mkdir(parents=True)
    for name in cases:
        shutil.copyfile(data / "images" / name, raw / DATASET / "imagesTr" / name.replace(".nii", "_0000.nii"))
        shutil.copyfile(data / "labels" / name, raw / DATASET / "labelsTr" / name)
    described = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "anterior": 1, "posterior": 2},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
    }
    (raw / DATASET / "dataset.json").write_text(json.dumps(described))


class Client:
    """nnU-Net in its own environment, with folders of its own.

    Args:
        arguments: of the command line.
        place: empty folder for all of it.
    """

    def __init__(self, arguments: argparse.Namespace, place: Path) -> None:
        self.python, self.raw, self.preprocessed = arguments.python, place / "raw", place / "preprocessed"
        self.length = [str(arguments.epochs), str(arguments.iterations)]
        self.report, results = place / "report.json", place / "results"
        folders = {"nnUNet_raw": self.raw, "nnUNet_preprocessed": self.preprocessed, "nnUNet_results": results}
        self.environment = {**os.environ, "nnUNet_compile": "f", "nnUNet_def_n_proc": "1"}
        self.environment |= {name: str(path) for name, path in folders.items()}

    def plans(self) -> dict[str, Any]:
        """What it planned for the images."""
        return json.loads((self.preprocessed / DATASET / "nnUNetPlans.json").read_text())

    def has(self, command: str) -> bool:
        """Whether this nnU-Net has a command."""
        return self.python.with_name(command).is_file()

    def run(self, command: str, *more: str) -> None:
        """One of its commands."""
        self._call([str(self.python.with_name(command)), *more])

    def train(self, command: str, folder: Path, seed: int, *more: str) -> dict[str, Any]:
        """The same training by one of its commands, few steps long; what :mod:`benchmarks.nnunet_client` reports."""
        told = [str(folder), str(self.report), str(seed), *self.length]
        alone = {"nnUNet_n_proc_DA": "0"}  # no second process draws the augmentations, so that a seed repeats them
        self._call([str(self.python), str(CLIENT), *told, command, *more], alone)
        return json.loads(self.report.read_text())

    def _call(self, words: list[str], more: Mapping[str, str] = MappingProxyType({})) -> None:
        done = subprocess.run(words, env={**self.environment, **more}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{Path(words[0]).name} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")


def standard(client: Client, folder: Path, arguments: argparse.Namespace) -> list[list[Any]]:
    """``nnUNetv2_train`` with and without ``-pretrained_weights``, two images at once."""
    plans, described = client.plans(), json.loads((folder / "architecture.json").read_text())
    planned = plans["configurations"]["3d_fullres"]
    if arguments.network == "residual":
        planned |= {**described, "data_identifier": PLANS}
    elif planned["architecture"] != described["architecture"]:
        sys.exit(f"nnU-Net planned {planned['architecture']}, the export is for {described['architecture']}")
    plans |= {"plans_name": PLANS, "configurations": {"3d_fullres": {**planned, "batch_size": 2}}}
    (client.preprocessed / DATASET / f"{PLANS}.json").write_text(json.dumps(plans))
    client.run("nnUNetv2_preprocess", "-d", "4", "-plans_name", PLANS, "-c", "3d_fullres", "-np", "1")
    weights = ["-pretrained_weights", str(folder / "checkpoint_nnunet.pth")]
    rows, common = [], ["4", "3d_fullres", "0", "-p", PLANS, "-device", "cpu"]
    for seed in range(arguments.seeds):
        for name, more in (("ours", weights), ("none", [])):
            found = client.train("nnUNetv2_train", folder, seed, *common, *more)
            rows.append(_row("nnUNetv2_train", name, seed, found))
    return rows


def adapted(client: Client, folder: Path) -> list[list[Any]]:
    """``nnUNetv2_train_pretrained`` with the plan that nnU-Net makes of ours, and its twin from scratch."""
    command = "nnUNetv2_train_pretrained"
    if not client.has(command):
        print(f"this nnU-Net has no {command}: the adaptation plan was not tried")
        return []
    checkpoint = str(folder / "checkpoint_nnunet.pth")
    client.run("nnUNetv2_preprocess_like_nnssl", "-d", "4", "-n", "ssl_med", "-pc", checkpoint, "-np", "1")
    plans = next((client.preprocessed / DATASET).glob("ptPlans__*.json")).stem
    common, rows = ["4", "3d_fullres", "0", "-p", plans, "-device", "cpu"], []
    for name, more in (("ours", []), ("none", ["--from_scratch"])):
        rows.append(_row(command, name, 0, client.train(command, folder, 0, *common, *more)))
    return rows


def _row(command: str, weights: str, seed: int, found: dict[str, Any]) -> list[Any]:
    """A line of the table, and whether it is a failure."""
    taken = f"{found['taken']} of {found['encoder']}"
    failed = weights == "ours" and (found["taken"] < found["encoder"] or found["distance"] > 1e-4)
    last = sum(found["losses"][-found["iterations"] :]) / found["iterations"]
    return [command, weights, seed, taken, f"{found['distance']:.1e}", found["losses"][0], last, failed]


if __name__ == "__main__":
    main()
