"""A batch file for SLURM: one process per GPU, a warning before the time is over, a requeue that goes on."""

import difflib
import re
import shlex
from dataclasses import dataclass, fields
from pathlib import Path

from ssl_med.errors import UserError

WARNING_SECONDS = 120
"""Before the end of its time a job is told to save: a step, a save and a requeue must fit in."""


@dataclass(frozen=True)
class SlurmJob:
    """What a job asks for.

    Args:
        nodes: machines.
        gpus: per machine, one process each.
        time: how long a job may take, as SLURM writes it; it goes on in the next one.
        partition, account: of the cluster; the cluster's own default if empty.
        cpus: cores per GPU.
        name: of the job.
    """

    nodes: int = 1
    gpus: int = 1
    time: str = "24:00:00"
    partition: str = ""
    account: str = ""
    cpus: int = 8
    name: str = "ssl-med"

    @classmethod
    def of(cls, text: str) -> "SlurmJob":
        """From ``nodes=2,gpus=8,time=12:00:00``.

        Raises:
            UserError: an unknown name, no number where one is needed, or a value that would break the file.
        """
        kinds = {field.name: field.type for field in fields(cls)}
        values: dict[str, int | str] = {}
        for part in filter(None, text.split(",")):
            name, equals, value = part.partition("=")
            if not equals or name not in kinds:
                near = difflib.get_close_matches(name, kinds, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(kinds)}"
                raise UserError(f"--slurm: {part!r} is no NAME=VALUE that is known; {hint}")
            values[name] = _checked(name, value, kinds[name] is int)
        return cls(**values)  # pyright: ignore[reportArgumentType]


def _checked(name: str, value: str, number: bool) -> int | str:
    if number and not (value.isdecimal() and int(value) > 0):
        raise UserError(f"--slurm: {name}={value} must be a whole number above 0")
    if not re.fullmatch(r"[\w.:-]+", value):
        raise UserError(f"--slurm: {name}={value!r} holds characters that no batch file takes")
    return int(value) if number else value


_FILE = """#!/bin/bash
#SBATCH --job-name={job.name}
#SBATCH --nodes={job.nodes}
#SBATCH --ntasks-per-node={job.gpus}
#SBATCH --gpus-per-node={job.gpus}
#SBATCH --cpus-per-task={job.cpus}
#SBATCH --time={job.time}
#SBATCH --signal=USR1@{warning}
#SBATCH --requeue
#SBATCH --open-mode=append
{options}
# {warning} seconds before the end every process gets SIGUSR1: the run saves, the job is requeued and goes on.
# One process that fails ends them all; a job that SLURM preempts goes on likewise.
set -euo pipefail
export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-1}}"
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
srun --kill-on-bad-exit=1 {command}
"""


def write_batch_file(path: Path, job: SlurmJob, words: list[str]) -> str:
    """Write the file, and return what it holds.

    Args:
        path: of the file; the job's output goes beside it.
        job: what to ask for.
        words: after ``ssl-med``; devices and machines are added.

    Raises:
        UserError: a path that no batch file can hold.
    """
    shape = ["--trainer.num_nodes", str(job.nodes), "--trainer.devices", str(job.gpus)]
    if "\n" in str(path):
        raise UserError("--out: a batch file takes no line break in a path")
    output = str(path.resolve().with_suffix("")).replace("%", "%%")
    options = [f"#SBATCH --output={shlex.quote(output + '-%j.log')}"]
    options += [f"#SBATCH --{name}={getattr(job, name)}" for name in ("partition", "account") if getattr(job, name)]
    command = shlex.join(["ssl-med", *words, *shape])
    text = _FILE.format(job=job, warning=WARNING_SECONDS, options="\n".join(options), command=command)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return text
