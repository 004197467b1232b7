"""Processes that prepare keep the memory of large arrays; the process of somebody else does not."""

import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
{setup}
def faults():
    np.ones(100 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
faults()
before = faults()
print(faults() - before)
"""


def faults(setup: str) -> int:
    """Pages that the system has to hand out for an array as large as one that was freed before."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(setup=setup)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has this setting")
def test_memory_is_used_again_where_it_is_asked_for():
    assert faults("from ssl_med.data.heap import keep_memory; assert keep_memory()") <= 2
    assert faults("") >= 40  # 100 MB in pages of at most 2 MB


def test_without_glibc_nothing_happens(monkeypatch):
    from ssl_med.data import heap

    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    assert not heap.keep_memory()
