"""``ssl-med export``: the parts of a run worth keeping, in a folder of their own."""

import json
import shutil
from pathlib import Path


def export(run: str | Path, out: str | Path, checkpoint: str | Path | None = None, to: str = "native") -> Path:
    """Write the backbone (or the fine-tuned task) of a run as safetensors with its card.

    Args:
        run: folder of a run, finished or not.
        out: folder of the export.
        checkpoint: which checkpoint; the newest whole one by default.
        to: format; ``native`` is loaded by ``ssl_med.load_backbone`` and ``ssl_med.load_task``.

    Returns:
        The folder.

    Raises:
        UserError: no run, no checkpoint, or a folder that is not empty.
    """
    import yaml

    from ssl_med.callbacks import AtomicCheckpointIO, newest_whole
    from ssl_med.data.manifest import LOCK
    from ssl_med.data.module import StoreData
    from ssl_med.errors import UserError
    from ssl_med.fit import build_parser, export_task
    from ssl_med.recipe import instantiate

    run, out = Path(run), Path(out)
    if to != "native":
        raise UserError(f"--to {to}: this version writes 'native' exports")
    if not (run / "run.json").is_file():
        raise UserError(f"{run} holds no run of ssl-med (run.json is missing)")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; give another folder")
    path = Path(checkpoint) if checkpoint else newest_whole(run / "checkpoints")
    if path is None:
        raise UserError(f"{run} has no whole checkpoint yet")
    config = yaml.safe_load((run / "config.yaml").read_text())
    task = instantiate(build_parser(), config).task
    state = AtomicCheckpointIO().load_checkpoint(path)["state_dict"]
    task.load_state_dict({name.removeprefix("task."): tensor for name, tensor in state.items()})
    facts = json.loads((run / "run.json").read_text())
    written = export_task(task, StoreData(**config["data"]), out, facts)[0]
    if (run / LOCK).is_file():  # which images it has seen, so that a later test on them is noticed
        shutil.copyfile(run / LOCK, written / LOCK)
    print(f"exported: {written}")
    return written
