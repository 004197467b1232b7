"""What one backbone for images and volumes knows: ``python -m benchmarks.one_backbone IMAGES VOLUMES --out DIR``.

``small/one_backbone`` is trained on a store of images and one of volumes in turn; beside it stand BYOL on either alone,
with the same ViT, batches, rate and as many batches of that kind (half the steps), and random weights. kNN and a linear
probe are scored on a split that no training saw. Repeating the command goes on where it stopped.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ssl_med
from benchmarks.families import spread
from ssl_med.files import write_json
from ssl_med.run_folder import is_finished

VIT = "ssl_med.backbones.ViT"
SMALL = {"patch": 8, "embed_dim": 96, "depth": 4, "heads": 4}
LEARNER = {"lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.05, "warmup": 0.1}
CROPS, BATCHES = {2: 64, 3: 32}, {2: 32, 3: 16}


def alone(rank: int, steps: int) -> dict[str, Any]:
    """BYOL on images (2) or volumes (3) only, seeing as many batches of them as the shared training does."""
    backbone = {"class_path": VIT, "init_args": {"spatial_dims": rank, **SMALL}}
    return {
        "task": {"class_path": "ssl_med.tasks.BYOL", "init_args": {"backbone": backbone, "hidden_dim": 512}},
        "data": {"crop": CROPS[rank], "batch_size": BATCHES[rank]},
        "learner": LEARNER,
        "trainer": {"max_steps": steps // 2, "log_every_n_steps": 20},
        "watch": {"probes": 0},
    }


def trained(folder: Path, config: str | Path, data: str | Path, settings: dict[str, Any], steps: int) -> Path:
    """Train unless it is done."""
    if not is_finished(folder, {"seed": settings["seed"], "trainer": {"max_steps": steps}}):
        ssl_med.pretrain(config, data, folder, settings)
    return folder


def probed(export: Path, store: Path, seed: int, note: Path) -> dict[str, float]:
    """Score an export, or read what an earlier call found."""
    if not note.exists():
        write_json(note, ssl_med.probe(export, store, split="test", seed=seed))
    return json.loads(note.read_text())


def one_seed(stores: Mapping[int, Path], out: Path, steps: int, seed: int) -> dict[str, dict[str, float]]:
    """Scores of one seed: rank and arm -> kNN and linear."""
    found: dict[str, dict[str, float]] = {}
    both = f"{stores[2]},{stores[3]}"
    settings = {"seed": seed, "trainer.max_steps": steps}
    shared = trained(out / f"shared_seed={seed}", "small/one_backbone", both, settings, steps)
    for rank, store in stores.items():
        config = out / f"alone_{rank}d.yaml"
        write_json(config, alone(rank, steps))
        own = trained(out / f"alone_{rank}d_seed={seed}", config, store, {"seed": seed}, steps // 2)
        scores = probed(own, store, seed, own / "probe.json")
        found[f"{rank}D, alone"] = scores
        found[f"{rank}D, shared"] = probed(
            shared / "exports" / f"backbone_{rank}d", store, seed, shared / f"{rank}d.json"
        )
        found[f"{rank}D, random weights"] = {name: scores[f"{name}_random"] for name in ("knn", "linear")}
    return found


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("volumes", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    runs = [one_seed({2: asked.images, 3: asked.volumes}, asked.out, asked.steps, seed) for seed in range(asked.seeds)]
    lines = ["| backbone | kNN | linear |", "|---|---|---|"]
    for arm in runs[0]:
        cells = [spread([run[arm][name] for run in runs]) for name in ("knn", "linear")]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    text = "\n".join([*lines, "", f"{asked.steps} steps, half of them on either kind; {asked.seeds} seeds.", ""])
    (asked.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
