"""Drills on several processes: one is killed or hangs, all end, the job is relaunched."""

import os
import signal
import threading
import time
from pathlib import Path

from jobs import code_of, losses, start_ranks

from benchmarks.faults.drill import STEPS, Place, Row, newest_step
from ssl_med.callbacks.checkpoint_io import is_whole
from ssl_med.launch import Supervisor

PAIR = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--watch.checkpoint_steps", "4")


def rank_killed(place: Place, full: bool) -> Row:
    """F10: one of two processes is killed under the supervisor; the curve is that of the undisturbed run."""
    count, lost, recoveries = (50 if full else 1), 0, []
    whole = place.new("pair")
    Supervisor(whole, 0).run(place.words(whole, *PAIR))
    for number in range(count):
        run = place.new("killed")
        supervisor = Supervisor(run, 3)
        killer = threading.Thread(target=_kill_one, args=(run, place.draw.randrange(5, STEPS - 4), number % 2))
        killer.start()
        lost += supervisor.run(place.words(run, *PAIR)) != 0 or losses(run) != losses(whole)
        killer.join()
        recoveries += supervisor.recoveries
    longest = max(recoveries, default=float("nan"))
    return Row("F10 one of two processes killed", count, lost, f"training again after at most {longest:.0f} s; 0 stuck")


def _kill_one(run: Path, step: int, child: int) -> None:
    """Kill the first process of a job or the one that it started."""
    file = run / "metrics.jsonl"
    while not (file.exists() and file.read_text().count('"loss"') >= step):
        time.sleep(0.002)
    ranks = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal() and _is_rank(p, str(run))]
    os.kill(sorted(ranks)[-1 if child else 0], signal.SIGKILL)


def _is_rank(process: Path, run: str) -> bool:
    try:
        words = (process / "cmdline").read_text().split("\0")
    except OSError:
        return False
    return "ssl_med.cli" in words and run in words


def rank_hangs(place: Place, full: bool) -> Row:
    """F11: one of two processes stops for ever."""
    count, lost, slowest = (10 if full else 1), 0, 0.0
    for number in range(count):
        run = place.new("hangs")
        ranks = start_ranks(place.words(run, "--watch.step_timeout", "2", steps=4000), run.parent / "log")
        while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count('"loss"') < 3:
            time.sleep(0.01)
        os.kill(ranks[number % 2], signal.SIGSTOP)
        began, waiting = time.monotonic(), ranks[1 - number % 2]
        lost += code_of(waiting) == 0
        slowest = max(slowest, time.monotonic() - began)
        stacks = [file.read_text() for file in run.glob("stacks-rank=*.txt")]
        lost += not any("all_reduce" in text or "backward" in text for text in stacks)
        os.kill(ranks[number % 2], signal.SIGKILL)
        os.kill(ranks[number % 2], signal.SIGCONT)
        code_of(ranks[number % 2])
    return Row(
        "F11 one of two processes hangs", count, lost, f"noticed after {slowest:.1f} s with step_timeout 2; stacks kept"
    )


def shards_killed(place: Place, full: bool) -> Row:
    """F40: both processes of a sharded run, which saves after every step, are killed at any moment, again and again."""
    count, lost, inside, reached = (50 if full else 3), 0, 0, 0
    run = place.new("shards")
    words, folder = place.words(run, "--watch.checkpoint_steps", "1", steps=10**6), run / "checkpoints"
    for _ in range(count):
        ranks = start_ranks(words, run.parent / "log", strategy="fsdp")
        while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count('"loss"') < reached + 4:
            time.sleep(0.01)
        time.sleep(place.draw.uniform(0, 1))
        for rank in place.draw.sample(ranks, 2):
            os.kill(rank, signal.SIGKILL)
            time.sleep(place.draw.uniform(0, 0.05))
        for rank in ranks:
            code_of(rank)
        inside += any(folder.glob(".step=*"))
        pointed, before = (folder / "last.ckpt").resolve(), reached
        reached = newest_step(run)
        lost += not is_whole(pointed) or reached <= before
    return Row("F40 kill inside a sharded save", count, lost, f"{inside} of the kills came inside a save")
