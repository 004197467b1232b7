"""What the workers of test_engines.py do, in a module that a new process imports in no time."""

import os
import signal
import time


def double(number: int) -> int:
    return 2 * number


def die_at_five(number: int) -> int:
    """A worker that the system kills at one item; the others take their time, so that some are in hand then."""
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    return 2 * number


def refuse_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number
