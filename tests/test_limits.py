"""What no scanner makes is refused by its numbers: spacings without sense, and grids that would not fit in memory."""

import numpy as np
import pytest
from stores import build, save_nifti, volume

from ssl_med.data.readers.gate import admit
from ssl_med.data.record import Image, Unreadable
from ssl_med.data.resample import new_sizes, to_spacing
from ssl_med.data.settings import Settings

ARRAY = np.arange(4 * 4 * 4, dtype=np.int16).reshape(1, 4, 4, 4)


@pytest.mark.parametrize("step", [1e-7, 9999.0])
def test_a_spacing_that_cannot_be_true_is_refused(step):
    with pytest.raises(Unreadable, match=rf"spacing \(1, {step:g}, 1\) mm cannot be true: expected 1e-06 to 1000 mm"):
        admit(Image(ARRAY, (1.0, step, 1.0)))


@pytest.mark.parametrize("step", [4e-6, 2.5e-4, 1.0, 100.0])
def test_other_spacings_pass(step):
    assert admit(Image(ARRAY, (step, step, step))).spacing == (step, step, step)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_a_grid_that_is_too_large_is_refused_before_it_is_made(order):
    with pytest.raises(Unreadable, match=r"shape \(1, 4000, 4000, 4000\) at a spacing of .*: 64000000000 voxels"):
        to_spacing(Image(ARRAY, (1.0, 1.0, 1.0)), (0.001, 0.001, 0.001), order)
    assert new_sizes((4, 5, 1), (2.0, 0.5, 9.0)) == (2, 10, 1)


def test_prepare_names_them_and_keeps_the_rest(tmp_path):
    for number, (name, step) in enumerate({"tiny": 1e-7, "coarse": 1.0, "fine": 0.01}.items()):
        save_nifti(tmp_path / "in" / f"{name}.nii.gz", volume(number)[0], np.diag([step, step, step, 1.0]))
    counts = build(tmp_path / "in", tmp_path / "store", max_bad_share=1.0, settings=Settings(spacing=(0.01,) * 3))
    assert counts["images"] == 1
    shape, spacing = sorted(counts["refused"])
    assert shape.startswith("shape (1, 2400, 2200, 2000) at a spacing of (0.01, 0.01, 0.01) mm: 10560000000 voxels")
    assert spacing.startswith("spacing (1e-07, 1e-07, 1e-07) mm cannot be true")
