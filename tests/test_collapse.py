import math

import pytest
import torch

from ssl_med.ops.collapse import effective_rank, feature_spread


def test_rank_of_equal_directions_is_their_number() -> None:
    cross = torch.cat([torch.eye(5), -torch.eye(5)])  # centred, five equal singular values
    assert float(effective_rank(cross)) == pytest.approx(5, rel=1e-5)


def test_rank_of_unequal_directions_is_exp_of_the_entropy() -> None:
    cross = torch.cat([torch.eye(2), -torch.eye(2)]) * torch.tensor([3.0, 1.0])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(effective_rank(cross)) == pytest.approx(math.exp(entropy), rel=1e-5)


def test_rank_is_one_on_a_line_and_zero_at_a_point() -> None:
    line = torch.arange(6.0)[:, None] * torch.tensor([[1.0, 2.0, -1.0]]) + 100
    assert float(effective_rank(line)) == pytest.approx(1, rel=1e-5)
    assert float(effective_rank(torch.full((6, 3), 1e6))) == 0


def test_rank_does_not_see_scale_or_shift() -> None:
    features = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    assert float(effective_rank(features * 1e-3 + 5)) == pytest.approx(float(effective_rank(features)), rel=1e-2)


def test_spread_of_a_cross_by_hand() -> None:
    """Rows +-e_i of length 7: each column is +1, -1 and 2(d-1) zeros, unbiased variance 2 / (2d - 1)."""
    cross = 7 * torch.cat([torch.eye(4), -torch.eye(4)])
    assert float(feature_spread(cross)) == pytest.approx((2 / 7) ** 0.5 * 4**0.5, rel=1e-5)


def test_spread_is_about_one_for_noise_and_zero_for_constants() -> None:
    noise = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0))
    assert float(feature_spread(noise)) == pytest.approx(1, abs=0.02)
    assert float(feature_spread(torch.ones(10, 8))) == pytest.approx(0, abs=1e-6)
