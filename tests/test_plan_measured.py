"""``ssl-med plan`` against a step that is done: FLOPs and kept memory of a sample within 15 %."""

import pytest

from benchmarks.plan_check import CASES, measured, planned, task_of


@pytest.mark.parametrize("name", CASES)
def test_the_plan_is_near_the_measurement(name: str) -> None:
    crop = CASES[name]
    flops, kept = measured(task_of(name, crop), crop)
    assert flops == pytest.approx(planned(name, crop).flops, rel=0.15)
    assert kept == pytest.approx(planned(name, crop).activations, rel=0.15)
