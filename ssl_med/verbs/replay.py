"""``python -m ssl_med.verbs.replay RUN FILE``: a step that was skipped, again, with the weights of the last checkpoint.

It says what each loss is and which parameters get a gradient that is not finite.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
import yaml
from safetensors import safe_open

from ssl_med.callbacks import AtomicCheckpointIO, newest_whole
from ssl_med.errors import UserError
from ssl_med.recipe import build
from ssl_med.tasks import Task


def replay(run: str | Path, file: str | Path) -> dict[str, float]:
    """Compute the losses of a batch that :class:`ssl_med.callbacks.Guard` has kept, and print what is not finite.

    Args:
        run: folder of the run.
        file: one of its ``faults/*.safetensors``.

    Returns:
        The losses by name.

    Raises:
        UserError: the run has no whole checkpoint.
    """
    run = Path(run)
    task = build(yaml.safe_load((run / "config.yaml").read_text())["task"], Task)
    checkpoint = newest_whole(run / "checkpoints")
    if checkpoint is None:
        raise UserError(f"{run} has no whole checkpoint: the weights of that step are not known")
    load_weights(task, checkpoint)
    with safe_open(file, "pt") as stored:
        batch = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 it is no dictionary
        facts, batch["id"] = (json.loads(stored.metadata()[name]) for name in ("facts", "ids"))
    torch.manual_seed(facts["seed"])
    losses = task(batch, facts["progress"])
    losses["loss"].backward()
    print(f"step {facts['step']} of process {facts['rank']}, weights of {checkpoint.name}, {len(batch['id'])} images")
    numbers = {name: value.item() for name, value in losses.items()}
    for name, number in numbers.items():
        print(f"{name:<24}{number:.6g}")
    for name, parameter in task.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            print(f"gradient of {name} is not finite")
    return numbers


def load_weights(task: Task, checkpoint: Path) -> None:
    """Load the task's weights from a checkpoint of a run, one file or the shards of several processes."""
    if checkpoint.is_dir():
        state = {"state_dict": {f"task.{name}": value for name, value in task.state_dict().items()}}
        dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    else:
        state = AtomicCheckpointIO().load_checkpoint(checkpoint)
    task.load_state_dict({name.removeprefix("task."): value for name, value in state["state_dict"].items()})


if __name__ == "__main__":
    replay(*sys.argv[1:3])
