import pytest
import torch

from ssl_med import presets
from ssl_med.ops.masking import random_order, visible_count
from ssl_med.ops.random import Draws, sample_keys


def draws(*positions: int) -> Draws:
    return Draws(sample_keys(7, torch.tensor(positions)))


@pytest.mark.parametrize(
    ("count", "ratio", "visible"), [(196, 0.75, 49), (216, 0.75, 54), (5, 0.5, 2), (8, 0.0, 8), (3, 0.9, 1)]
)
def test_visible_count(count: int, ratio: float, visible: int) -> None:
    assert visible_count(count, ratio) == visible
    assert presets.visible_count(count, ratio) == visible


@pytest.mark.parametrize("ratio", [1.0, -0.1])
def test_ratio_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="mask_ratio"):
        visible_count(10, ratio)


def test_order_and_inverse_are_inverse_permutations() -> None:
    order, inverse = random_order(draws(*range(16)), 30)
    everything = torch.arange(30).expand(16, -1)
    assert torch.equal(order.gather(1, inverse), everything)
    assert torch.equal(inverse.gather(1, order), everything)
    assert torch.equal(order.sort(1).values, everything)


def test_order_of_a_sample_does_not_depend_on_its_neighbours() -> None:
    together, _ = random_order(draws(3, 9, 4), 20)
    alone, _ = random_order(draws(9), 20)
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together[0], together[1])


def test_every_token_comes_first_equally_often() -> None:
    order, _ = random_order(draws(*range(6000)), 6)
    counts = order[:, 0].bincount(minlength=6)
    assert (counts - 1000).abs().max() < 5 * (6000 * (1 / 6) * (5 / 6)) ** 0.5


def test_marked_tokens_come_last_and_the_rest_stays_random() -> None:
    last = torch.zeros(8, 12, dtype=torch.bool)
    last[:, 2:7] = True
    order, _ = random_order(draws(*range(8)), 12, last)
    assert last.gather(1, order)[:, 7:].all()
    assert not last.gather(1, order)[:, :7].any()
    assert len({tuple(row) for row in order[:, :7].tolist()}) == 8
