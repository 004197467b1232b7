"""One of nnU-Net's training commands with fewer steps, run by the Python that has nnunetv2; see ``benchmarks.nnunet``.

``python nnunet_client.py FOLDER REPORT SEED EPOCHS ITERATIONS COMMAND [arguments of the command]``. The command's own
entry point is called; only the length of the training is changed, and what it does is watched.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # pyright: ignore[reportMissingImports]

ENTRIES = {
    "nnUNetv2_train": ("nnunetv2.run.run_training", "run_training_entry"),
    "nnUNetv2_train_pretrained": ("nnunetv2.run.run_training_from_pretrained", "train_pretrained_entrypoint"),
}


def main() -> None:
    folder, report, seed, epochs, iterations, command, *arguments = sys.argv[1:]
    found = watch(Path(folder), int(epochs), int(iterations))
    np.random.seed(int(seed))  # noqa: NPY002 -- what nnU-Net draws from
    torch.manual_seed(int(seed))
    module, name = ENTRIES[command]
    entry = getattr(importlib.import_module(module), name)
    sys.argv = [command, *arguments]
    entry()
    Path(report).write_text(json.dumps(found))


def watch(folder: Path, epochs: int, iterations: int) -> dict[str, Any]:
    """Shorten all trainings of this process; what is learnt of them comes into the answer."""
    found: dict[str, Any] = {"losses": [], "iterations": iterations}
    start, step = nnUNetTrainer.on_train_start, nnUNetTrainer.train_step

    def begin(trainer: Any) -> None:
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = (
            epochs,
            iterations,
            1,
        )
        start(trainer)
        found.update(audit(trainer.network, folder))

    def once(trainer: Any, batch: dict) -> dict:
        result = step(trainer, batch)
        found["losses"].append(float(result["loss"]))
        return result

    nnUNetTrainer.on_train_start, nnUNetTrainer.train_step = begin, once
    nnUNetTrainer.perform_actual_validation = lambda *_: None  # minutes on a CPU, and nothing to see after a few steps
    return found


def audit(network: Any, folder: Path) -> dict[str, Any]:
    """How many tensors of our encoder the network holds, and how far its maps are from ours."""
    own, wanted = network.state_dict(), torch.load(folder / "checkpoint_nnunet.pth", weights_only=True)
    names = [name for name in wanted["network_weights"] if name.startswith("encoder.") and ".all_modules." not in name]
    taken = sum(torch.equal(own[name], wanted["network_weights"][name]) for name in names)
    kept = torch.load(folder / "maps.pt", weights_only=True)
    with torch.no_grad():
        maps = network.encoder(kept["image"])
    distance = max(float((a - b).abs().max()) for a, b in zip(maps, kept["maps"], strict=True))
    return {"taken": taken, "encoder": len(names), "distance": distance}


if __name__ == "__main__":
    main()
