"""Reading in limited time: one thread that is used again, never one that hangs, and none taken over from a parent."""

import gc
import multiprocessing
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from ssl_med.data.patience import Desk, Stalled, in_time


def here() -> int:
    return threading.get_ident()


def readers() -> int:
    return sum(thread.name.startswith("reader") for thread in threading.enumerate())


def comes_true(fact: Callable[[], bool]) -> bool:
    """Another thread brings it about, however busy the machine is."""
    limit = time.monotonic() + 60
    while not fact() and time.monotonic() < limit:
        gc.collect()
        time.sleep(0.01)
    return fact()


def test_the_thread_is_used_again_after_an_error_too():
    desk = Desk(0)
    first = in_time(here, desk, 60)
    assert first != here()
    with pytest.raises(TimeoutError, match="of the disk"):  # the error of the work, not one of the wait
        in_time(lambda: (_ for _ in ()).throw(TimeoutError("of the disk")), desk, 60)
    assert in_time(here, desk, 60) == first


def test_a_thread_that_hangs_is_left_behind_and_ends_when_it_wakes():
    desk, wake = Desk(0), threading.Event()
    first, before = in_time(here, desk, 60), readers()
    with pytest.raises(Stalled, match=r"longer than 0\.05 s"):
        in_time(wake.wait, desk, 0.05)
    assert in_time(here, desk, 60) != first
    wake.set()
    assert comes_true(lambda: readers() <= before)  # there is a new one instead of it


def test_an_error_that_is_kept_keeps_no_thread():
    desk, wake = Desk(0), threading.Event()
    with pytest.raises(ValueError, match="kept") as kept:
        in_time(lambda: (_ for _ in ()).throw(ValueError("kept")), desk, 60)
    before = readers()
    with pytest.raises(Stalled):
        in_time(wake.wait, desk, 0.05)
    assert in_time(here, desk, 60) != here()
    wake.set()
    assert comes_true(lambda: readers() <= before)
    assert kept.value


def test_the_clock_begins_anew_with_every_sample():
    desk = Desk(0)

    def three_samples() -> str:
        for _ in range(3):
            time.sleep(2)
            desk.begin(1)
        return "done"

    assert in_time(three_samples, desk, 5) == "done"  # six seconds in all


def test_nothing_that_was_made_is_held():
    class Made:
        pass

    made = weakref.ref(in_time(Made, Desk(0), 60))
    assert comes_true(lambda: made() is None)


def ask(answers) -> None:
    answers.put(in_time(lambda: "read", Desk(0), 30))


def test_a_forked_process_has_a_thread_of_its_own():
    in_time(here, Desk(0), 60)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=ask, args=(answers,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert answers.get() == "read"
