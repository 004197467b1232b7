"""Two processes that train together lose one: the other ends too, and the job goes on where it was saved."""

import os
import signal
import time
from pathlib import Path

import pytest
from jobs import code_of, command, losses, start_ranks, wait_for_step
from stores import store_of, volumes

from ssl_med.callbacks import newest_whole

STEPS = 400
SAVES = ("--watch.checkpoint_steps", "2")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    store_of(volumes(folder / "in", 6, masks=False), folder / "store")
    return folder / "store"


def saved_step(run: Path) -> int:
    return int(newest_whole(run / "checkpoints").stem.removeprefix("step="))


@pytest.mark.parametrize("killed", [0, 1], ids=["the first", "the second"])
def test_a_killed_process_ends_the_other_and_the_job_goes_on(store: Path, tmp_path: Path, killed: int) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = command(store, run, STEPS, *SAVES)
    ranks = start_ranks(words, log)
    wait_for_step(run, 4, ranks[0])
    os.kill(ranks[killed], signal.SIGKILL)
    assert code_of(ranks[killed]) == -signal.SIGKILL
    assert code_of(ranks[1 - killed]) not in (0, 143)
    before, saved = losses(run), saved_step(run)
    assert 2 <= saved <= max(before)
    again = start_ranks(words, log)
    wait_for_step(run, saved + 3, again[0])
    for rank in again:
        os.kill(rank, signal.SIGTERM)
    assert [code_of(rank) for rank in again] == [143, 143], log.read_text()
    after = losses(run)
    assert sorted(after) == list(range(1, max(after) + 1))
    assert all(after[step] == loss for step, loss in before.items() if step in after)


@pytest.mark.parametrize("limit", ["step_timeout", "collective_timeout"])
def test_a_process_that_hangs_is_noticed_with_stacks(store: Path, tmp_path: Path, limit: str) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    ranks = start_ranks(command(store, run, STEPS, *SAVES, f"--watch.{limit}", "3"), log)
    wait_for_step(run, 3, ranks[0])
    os.kill(ranks[1], signal.SIGSTOP)
    began = time.monotonic()
    try:
        assert code_of(ranks[0]) == 1
    finally:
        os.kill(ranks[1], signal.SIGKILL)
    assert time.monotonic() - began > 1
    assert code_of(ranks[1]) == -signal.SIGKILL
    stacks = (run / "stacks-rank=0.txt").read_text()
    assert "all_reduce" in stacks or "backward" in stacks
    if limit == "collective_timeout":  # nothing but the collective itself ends the process, with an error of its own
        assert "imed out" in log.read_text()
    assert saved_step(run) >= 2
