import pytest

from ssl_med.schedules import cosine, linear, warmup_cosine

STEPS = [i / 200 for i in range(201)]


def test_linear_by_hand() -> None:
    assert [linear(p, 2.0, 6.0) for p in (0.0, 0.25, 1.0)] == [2, 3, 6]


def test_cosine_is_that_of_lightly() -> None:
    from lightly.utils.scheduler import cosine_schedule

    for step in range(50):
        assert cosine(step / 49, 0.99, 1.0) == pytest.approx(cosine_schedule(step, 50, 0.99, 1.0), abs=1e-12)


def test_warmup_cosine_is_that_of_lightly() -> None:
    """Lightly counts the warm-up from its first step, so the two agree after it."""
    from lightly.utils.scheduler import cosine_warmup_schedule

    for step in range(20, 100):
        theirs = cosine_warmup_schedule(step, 101, 1.0, 0.0, 20, 0.0)
        assert warmup_cosine((step - 20) / 80 * 0.8 + 0.2, 0.2) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5])
def test_warmup_cosine_ends(warmup: float) -> None:
    assert warmup_cosine(0.0, warmup, 3.0, 0.5) == (0 if warmup else 3.0)
    assert warmup_cosine(warmup, warmup, 3.0, 0.5) == pytest.approx(3.0)
    assert warmup_cosine((1 + warmup) / 2, warmup, 3.0, 0.5) == pytest.approx(1.75)
    assert warmup_cosine(1.0, warmup, 3.0, 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5])
def test_warmup_cosine_rises_then_falls(warmup: float) -> None:
    values = [warmup_cosine(p, warmup) for p in STEPS]
    peak = values.index(max(values))
    assert STEPS[peak] == pytest.approx(warmup)
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_outside_the_training_the_ends_hold(schedule) -> None:
    assert schedule(-0.5, 1.0, 2.0) == 1.0
    assert schedule(1.5, 1.0, 2.0) == pytest.approx(2.0)
    values = [schedule(p, 1.0, 2.0) for p in STEPS]
    assert values == sorted(values)
