"""Drills on runs: kills and signals at random steps, requeues, pauses, and the same run on other loaders."""

import os
import signal
import time
from pathlib import Path

from jobs import code_of, lines, losses, start, start_ranks, state_of

from benchmarks.faults.drill import STEPS, Place, Row, finish, newest_step

EVERY = 4
SAVES = ("--watch.checkpoint_steps", str(EVERY))


def _wait(run: Path, step: int, child: int) -> bool:
    """Until a run has logged a step; false if it ended before."""
    file = run / "metrics.jsonl"
    while not (file.exists() and file.read_text().count('"loss"') >= step):
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return False
        time.sleep(0.002)
    return True


def kills(place: Place, full: bool) -> Row:
    """F1: kill -9 at a random step, then the same command again, with several loaders and accumulation."""
    count, again, wrong = (50 if full else 4), 0, 0
    cases = [("--data.num_workers", w) for w in ("0", "2", "4")] + [("--trainer.accumulate_grad_batches", "2")]
    for number in range(count):
        more, run = (*SAVES, *cases[number % len(cases)]), place.new("kill")
        child = start(place.words(run, *more), run.parent / "log")
        if _wait(run, place.draw.randrange(1, STEPS), child):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        again = max(again, max(losses_so_far(run), default=0) - newest_step(run))
        if state_of(run)["status"] != "finished":
            finish(place.words(run, *more))
        wrong += bool(place.differs(run, *more))
    return Row("F1 kill -9 at a random step", count, wrong, f"at most {again} steps done again (saves every {EVERY})")


def losses_so_far(run: Path) -> list[int]:
    """Steps in the log of a run that was killed; its last line may be cut off."""
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    return [number + 1 for number in range(text.count('"loss"'))]


def terms(place: Place, full: bool) -> Row:
    """F7: SIGTERM to one of two processes, to both, and to the group of one with loaders."""
    count, slowest, lost = (30 if full else 3), 0.0, 0
    for number in range(count):
        run, log = place.new("term"), None
        log = run.parent / "log"
        ranks = start_ranks(place.words(run, steps=4000), log) if number % 3 else [_loaders(place, run, log)]
        _wait(run, place.draw.randrange(1, STEPS), ranks[0])
        asked = time.monotonic()
        if len(ranks) == 1:
            os.killpg(ranks[0], signal.SIGTERM)
        else:
            for rank in ranks[: number % 3] if number % 2 else ranks[-(number % 3) :]:
                os.kill(rank, signal.SIGTERM)
        codes = [code_of(rank) for rank in ranks]
        slowest = max(slowest, time.monotonic() - asked)
        lost += set(codes) != {143} or newest_step(run) != max(losses(run))
    return Row(
        "F7 SIGTERM at a random step", count, lost, f"exit 143 on all processes within {slowest:.1f} s; steps lost 0"
    )


def _loaders(place: Place, run: Path, log: Path) -> int:
    return start(place.words(run, "--data.num_workers", "2", steps=4000), log)


def requeues(place: Place, full: bool) -> Row:
    """F8: SIGUSR1, scontrol requeue, the next job goes on; F1's measure at the end."""
    count, run = (10 if full else 3), place.new("requeue")
    program = run.parent / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> "{run.parent}/asked"\n')
    program.chmod(0o755)
    cluster = {"PATH": f"{program.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "bash"}
    names, lost = set(), 0
    for number in range(count):
        child = start(place.words(run, steps=3 * count), run.parent / "log", **cluster)
        _wait(run, 2 * number + 2, child)
        os.kill(child, signal.SIGUSR1)
        lost += code_of(child) != 143
        names.add(state_of(run)["run"])
    finish(place.words(run, steps=3 * count))
    asked = (run.parent / "asked").read_text().count("requeue 1")
    lost += (asked != count) + (len(names) != 1) + bool(place.differs(run, steps=3 * count))
    return Row("F8 SIGUSR1 and requeue", count, lost, f"{asked} requeues, {len(names)} run id, 0 losses differ")


def second_signals(place: Place, full: bool) -> Row:
    """F9: a second SIGTERM at a random moment after the first."""
    count, bad = (50 if full else 4), 0
    for _ in range(count):
        run = place.new("second")
        child = start(place.words(run, steps=4000), run.parent / "log")
        _wait(run, 2, child)
        for _ in range(2):
            os.kill(child, signal.SIGTERM)
            time.sleep(place.draw.uniform(0, 0.05))
        bad += code_of(child) != 143 or newest_step(run) != max(losses(run))
    return Row("F9 second SIGTERM while saving", count, bad, "0 bad files")


def pause(place: Place, full: bool) -> Row:
    """F36: SIGSTOP, as when a laptop sleeps."""
    seconds, run = (60 if full else 2), place.new("pause")
    child = start(place.words(run), run.parent / "log")
    _wait(run, 3, child)
    os.kill(child, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(child, signal.SIGCONT)
    failed = code_of(child) != 0 or place.differs(run) or " -" in (run.parent / "log").read_text()
    return Row("F36 long pause", 1, int(failed), f"stopped for {seconds} s; goes on, no negative time left")


def repeats(place: Place, full: bool) -> Row:
    """F28: the same run again, on 2 and 4 loader processes."""
    del full
    wrong = 0
    for workers in ("0", "2", "4"):
        run = place.new("again")
        finish(place.words(run, "--data.num_workers", workers))
        wrong += bool(place.differs(run))
        assert lines(run)
    return Row("F28 hidden chance", 3, wrong, "0, 2 and 4 loader processes: losses and weights bit for bit the same")
