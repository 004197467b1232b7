"""``ssl-med pretrain ... --slurm / --torchrun / --supervise``: the same training, started in another way."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_med.errors import UserError
from ssl_med.launch import SlurmJob, Supervisor, command_line, torchrun_line, write_batch_file


def launch(
    verb: str,
    options: Mapping[str, Any],
    slurm: str | None = None,
    torchrun: bool = False,
    supervise: int | None = None,
) -> int:
    """Write a batch file, print a line for torchrun, or run and relaunch after crashes.

    Args:
        verb: ``pretrain``.
        options: its arguments.
        slurm: what a job asks for, such as ``nodes=2,gpus=8,time=12:00:00``; the file lies beside the run's folder.
        torchrun: print the line.
        supervise: relaunches, at most.

    Returns:
        The exit code.

    Raises:
        UserError: several of them at once, a config that does not fit, no store, or ``--overwrite`` where it would
            remove the run at every new start.
    """
    if sum([slurm is not None, torchrun, supervise is not None]) > 1:
        raise UserError("--slurm, --torchrun and --supervise are three ways to start a run: give one")
    if supervise is not None:
        return _supervise(verb, options, supervise)
    if options.get("overwrite") or options.get("resume") == "never":
        raise UserError("a job that is requeued or relaunched must resume: leave out --overwrite and --resume never")
    nodes, processes = _check(verb, options)
    words = command_line(verb, options)
    if torchrun:
        print(torchrun_line(words, processes, nodes))
        return 0
    path = Path(options["out"]).resolve().with_suffix(".sbatch")
    print(write_batch_file(path, SlurmJob.of(slurm or ""), words))
    print(f"written: {path}; start it with: sbatch {path}")
    return 0


def _check(verb: str, options: Mapping[str, Any]) -> tuple[int, int]:
    """Refuse now what the job would refuse when it starts; returns machines and processes on each of them."""
    from ssl_med.config import load_config
    from ssl_med.data.sections import folders_of
    from ssl_med.data.store import Store

    for folder in folders_of(options["data"]):
        Store(folder)
    trainer = load_config(options["config"], verb, options.get("overrides")).get("trainer") or {}
    devices = trainer.get("devices") or 1
    return int(trainer.get("num_nodes") or 1), devices if isinstance(devices, int) and devices > 0 else 1


def _supervise(verb: str, options: Mapping[str, Any], most: int) -> int:
    goes_on = {**options, "overwrite": False, "resume": "auto"}
    out = Path(options["out"]).resolve()
    return Supervisor(out, most).run(command_line(verb, goes_on), command_line(verb, options))
