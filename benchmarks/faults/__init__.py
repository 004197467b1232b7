"""Faults injected into runs of the command line, and what was lost: ``python -m benchmarks.faults``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))  # runs and stores are those of the tests
