"""Runs of the command line in processes of their own: forks of the test, which has imported everything already."""

import json
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from ssl_med.cli import main

QUIET = ["--watch.probes", "0", "--watch.pictures", "0", "--watch.health", "0"]


def command(store: Path, out: Path, steps: int, *more: str) -> list[str]:
    """A small MAE on a CPU, nothing looked at."""
    some = ["--trainer.max_steps", str(steps), "--trainer.accelerator", "cpu", *QUIET, *more]
    return ["pretrain", "smoke/mae_3d", "--data", str(store), "--out", str(out), *some]


def start(arguments: list[str], log: Path, before: Callable = lambda: None, **environment: str) -> int:
    """Begin the command; ``before()`` is called in the process first. Its output goes to ``log``."""
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    os.environ.update(environment)
    file = log.open("a", buffering=1)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file  # a test's own are not those of the system
    warnings.simplefilter("default")  # as for a user; the test's own processes raise them
    before()
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start_ranks(arguments: list[str], log: Path, world: int = 2, strategy: str = "ddp") -> list[int]:
    """Begin the command on several processes, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    marks = {**shared, "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    words = [*arguments, "--trainer.devices", str(world), "--trainer.strategy", strategy]
    return [start(words, log, **marks, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(world)]


def code_of(child: int, seconds: float = 60) -> int:
    """Wait for the end; the exit code, negative for a signal. A job that is stuck is killed and fails the test."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the process is stuck")


def lines(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(run: Path) -> dict[int, float]:
    """Each step's loss; a step that stands there twice is an error."""
    found: dict[int, float] = {}
    for line in lines(run):
        if "loss" in line:
            assert line["step"] not in found, f"step {line['step']} was logged twice"
            found[line["step"]] = line["loss"]
    return found


def wait_for_step(run: Path, step: int, child: int) -> None:
    """Until a run has logged a step."""
    file = run / "metrics.jsonl"
    while not (file.exists() and file.read_text().count('"loss"') >= step):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended by itself"
        time.sleep(0.005)


def state_of(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())
