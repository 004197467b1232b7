"""A step that does not end, a pause, a home that cannot be written: noticed, outlived, not needed."""

import os
import signal
import time
from pathlib import Path

import pytest
from jobs import code_of, command, losses, start, wait_for_step
from stores import store_of, volumes

from ssl_med.cli import main

STEPS = 10


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("häng en")
    store_of(volumes(folder / "in", 6, masks=False), folder / "st ore")
    return folder / "st ore"


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory) -> dict[int, float]:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(command(store, run, STEPS)) == 0
    return losses(run)


def hang_at_step_5() -> None:
    from ssl_med.tasks import MAE

    forward, calls = MAE.forward, []

    def waits_for_ever(self, batch, progress):
        calls.append(progress)
        if len(calls) == 6:
            time.sleep(1000)
        return forward(self, batch, progress)

    MAE.forward = waits_for_ever


def test_a_hanging_step_ends_with_the_stacks_of_all_threads(store, whole, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    words = command(store, run, STEPS, "--watch.step_timeout", "2", "--watch.checkpoint_steps", "2")
    assert code_of(start(words, log, hang_at_step_5)) == 1
    assert "waits_for_ever" in (run / "stacks-rank=0.txt").read_text()
    assert main([*words, "--watch.step_timeout", "600"]) == 0
    assert losses(run) == whole
    assert not list(run.glob("stacks*"))


def test_a_pause_loses_nothing_and_shows_no_negative_time(store, whole, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    child = start(command(store, run, STEPS), log)
    wait_for_step(run, 2, child)
    os.kill(child, signal.SIGSTOP)
    time.sleep(1)
    os.kill(child, signal.SIGCONT)
    assert code_of(child) == 0
    assert losses(run) == whole
    assert " left" in log.read_text()
    assert "-" not in log.read_text().split(" left")[0].split("samples/s")[-1]


def nowhere() -> None:
    """No network, and no home."""
    import socket

    def refused(*arguments):
        raise OSError("there is no network here")

    socket.socket.connect = refused
    socket.getaddrinfo = refused


def test_odd_folders_without_a_home_and_without_a_network(store, whole, tmp_path):
    run, log = tmp_path / "Käse 猫" / "r u n", tmp_path / "log"
    homes = {"HOME": "/proc/nobody", "XDG_CACHE_HOME": "/proc/nobody", "MPLCONFIGDIR": "/proc/nobody"}
    assert code_of(start(command(store, run, STEPS), log, nowhere, **homes)) == 0, log.read_text()
    assert losses(run) == whole
    assert (run / "exports" / "backbone" / "backbone.safetensors").is_file()
