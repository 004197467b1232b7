"""What frozen features of each task know, beside random weights: ``python -m benchmarks.families STORE --out DIR``.

Every task trains the same small ViT on the training split of one store, with the same number of images seen and several
seeds; kNN and a linear probe are then scored on a split it never saw (each image with its label, or each cell of the
backbone's map with the mask's). The last column counts the runs that the watch called wrong; none has a fault, so each
is a false alarm or a task that fails by its own defaults. Repeating the command goes on where it stopped.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import ssl_med
from ssl_med.config import find_config
from ssl_med.files import write_json
from ssl_med.run_folder import is_finished


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--configs", nargs="+", default=["small/mae_2d", "small/genesis_2d", "small/dino_2d", "small/ssit_2d"]
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", default="test")
    parser.add_argument("--targets", choices=["label", "mask"], default="label")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of all runs")
    arguments = parser.parse_args()
    results = {
        config: [one_run(config, arguments, seed) for seed in range(arguments.seeds)] for config in arguments.configs
    }
    text = table(results)
    (arguments.out / "table.md").write_text(text)
    print(text)


def one_run(config: str, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train and probe once, or read what an earlier call found."""
    find_config(config, "pretrain")
    folder = arguments.out / f"{config.replace('/', '_')}_seed={seed}"
    overrides = asked_settings(arguments.set, arguments.steps, seed)
    scored = folder / "probe.json"
    if not is_finished(folder, {"seed": seed, "trainer": {"max_steps": arguments.steps}}):
        ssl_med.pretrain(config, arguments.store, folder, overrides)
    if not scored.exists():
        scores = ssl_med.probe(folder, arguments.store, targets=arguments.targets, split=arguments.split, seed=seed)
        write_json(scored, scores)
    state = json.loads((folder / "run.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    health = [line for line in lines if "health/effective_rank" in line][-1]
    alarm = " WARNING step " in (folder / "train.log").read_text()
    rank = health["health/effective_rank"]
    return {**json.loads(scored.read_text()), "seconds": state["seconds"], "rank": rank, "alarm": alarm}


def asked_settings(given: list[str], steps: int, seed: int) -> dict[str, Any]:
    """Settings of a run from those given as NAME=VALUE, its length and its seed."""
    settings = dict(item.split("=", 1) for item in given)
    overrides = {name: yaml.safe_load(value) for name, value in settings.items()}
    return overrides | {"trainer.max_steps": steps, "seed": seed, "watch.probes": 0}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Mean and standard deviation over seeds."""
    lines = [
        "| config | kNN | kNN, random weights | linear | linear, random weights | effective rank | minutes | alarms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for config, runs in results.items():
        cells = [spread([run[name] for run in runs]) for name in ("knn", "knn_random", "linear", "linear_random")]
        rank = np.mean([run["rank"] for run in runs])
        minutes = np.mean([run["seconds"] for run in runs]) / 60
        alarms = sum(run["alarm"] for run in runs)
        lines.append(f"| `{config}` | {' | '.join(cells)} | {rank:.1f} | {minutes:.1f} | {alarms} of {len(runs)} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):.3f} ({np.std(values, ddof=1):.3f})" if len(values) > 1 else f"{values[0]:.3f}"


if __name__ == "__main__":
    main()
