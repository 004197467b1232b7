"""The gate is light: reading an image never loads the deep-learning stack."""

import subprocess
import sys
from pathlib import Path


def test_reading_needs_no_torch():
    code = "import ssl_med.verbs.inspect, ssl_med.data.readers.nifti, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
