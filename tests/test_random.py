import numpy as np
import pytest
import scipy.stats
import torch

from ssl_med.ops import random
from ssl_med.ops.random import Draws, fold, mix, sample_keys

WORD = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
"""First outputs of splitmix64 for the seed 1234567, as given with the reference implementation's ports."""


# key of positions 0, 1, 2**40 under seed 42, then three draws of child 3; computed in Python integers
GOLDEN_KEYS = [-5575780348996920605, 5575820978563489410, -5902761843417226496]
GOLDEN_BITS = [1527661076796754290, 1804566719131325010, 4221752980427590468]
GOLDEN_UNIFORM = [9296748, 13301723, 14634736]
GOLDEN_INTEGERS = [194, 311, 743]


def signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def splitmix_finaliser(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & WORD
    return x ^ (x >> 31)


def folded(key: int, number: int) -> int:
    return splitmix_finaliser((splitmix_finaliser(key & WORD) + (number + 1) * 2 * (GOLDEN - (1 << 64))) & WORD)


def draws(count: int, seed: int = 0) -> Draws:
    return Draws(sample_keys(seed, torch.arange(count)))


def test_reference_gives_the_published_numbers() -> None:
    assert [splitmix_finaliser(1234567 + (i + 1) * GOLDEN & WORD) for i in range(5)] == PUBLISHED


def test_mix_is_splitmix64() -> None:
    states = torch.tensor([signed(1234567 + (i + 1) * GOLDEN & WORD) for i in range(5)])
    assert mix(states).tolist() == [signed(number) for number in PUBLISHED]
    numbers = [0, 1, WORD, 1 << 63]
    numbers += np.random.default_rng(0).integers(0, 1 << 64, size=500, dtype=np.uint64).tolist()
    found = mix(torch.tensor([signed(number) for number in numbers]))
    assert found.tolist() == [signed(splitmix_finaliser(number)) for number in numbers]


@pytest.mark.parametrize("number", [-1000, -2, -1, 0, 1, 2, 7, 10**6, 2**40])
def test_fold_is_arithmetic_modulo_two_to_the_64(number: int) -> None:
    keys = [0, 1, 12345, 1 << 62, WORD]
    found = fold(torch.tensor([signed(key) for key in keys]), number)
    assert found.tolist() == [signed(folded(key, number)) for key in keys]


def test_bits_follow_the_counter() -> None:
    key = 987654321
    stream = Draws(torch.tensor([key]))
    for call in (1, 2):
        base = folded(key, -1 - call)
        expected = [signed(splitmix_finaliser(base + (i + 1) * GOLDEN & WORD)) for i in range(6)]
        assert stream.bits(2, 3).flatten().tolist() == expected


def test_golden() -> None:
    """Changing any of these numbers changes every crop, view and mask of every recorded run."""
    keys = sample_keys(42, torch.tensor([0, 1, 2**40]))
    assert keys.tolist() == GOLDEN_KEYS
    stream = Draws(keys).child(3)
    assert stream.bits().tolist() == GOLDEN_BITS
    assert (stream.uniform() * 2**24).long().tolist() == GOLDEN_UNIFORM
    assert stream.integers(1000).tolist() == GOLDEN_INTEGERS


def test_keys_are_distinct_and_depend_on_seed_and_position() -> None:
    keys = torch.cat([sample_keys(seed, torch.arange(20000)) for seed in (-1, 0, 1, 2**62)])
    assert len(keys.unique()) == 80000
    assert sample_keys(5, torch.tensor([7, 3])).tolist() == sample_keys(5, torch.tensor([3, 7])).flip(0).tolist()


def test_row_depends_on_its_key_alone() -> None:
    keys = sample_keys(0, torch.arange(9))
    whole = Draws(keys).normal(3, 5)
    for chosen in ([4], [8, 0, 4]):
        assert torch.equal(Draws(keys[chosen]).normal(3, 5), whole[chosen])


@pytest.mark.parametrize(("rows", "columns"), [(1, 50000), (50000, 1), (200, 250)])
def test_uniform(rows: int, columns: int) -> None:
    values = draws(rows).uniform(columns, low=-2.0, high=3.0).flatten().numpy()
    assert scipy.stats.kstest(values, scipy.stats.uniform(-2, 5).cdf).pvalue > 1e-3
    assert values.min() >= -2
    assert values.max() < 3


def test_every_bit_is_fair() -> None:
    bits = draws(200).bits(250).flatten()
    for place in range(64):
        assert scipy.stats.binomtest(int(((bits >> place) & 1).sum()), len(bits)).pvalue > 1e-5


def test_normal() -> None:
    values = draws(200).normal(500).flatten().numpy()
    assert np.isfinite(values).all()
    assert scipy.stats.kstest(values, "norm").pvalue > 1e-3
    assert scipy.stats.kurtosis(values) == pytest.approx(0, abs=0.06)


@pytest.mark.parametrize("high", [1, 2, 3, 7, 100])
def test_integers_are_unbiased(high: int) -> None:
    counts = np.bincount(draws(300).integers(high, 200).flatten().numpy(), minlength=high)
    assert len(counts) == high
    assert high == 1 or scipy.stats.chisquare(counts).pvalue > 1e-3


def test_integers_reach_large_bounds() -> None:
    values = draws(300).integers(10**9, 200).flatten().double().numpy()
    assert scipy.stats.kstest(values, scipy.stats.uniform(0, 1e9).cdf).pvalue > 1e-3


def test_bernoulli() -> None:
    chosen = draws(100).bernoulli(0.2, 300)
    assert scipy.stats.binomtest(int(chosen.sum()), 30000, 0.2).pvalue > 1e-3
    assert not draws(1000).bernoulli(0.0).any()
    assert draws(1000).bernoulli(1.0).all()


def test_streams_are_independent() -> None:
    """Neighbouring keys, calls, children and grandchildren, and swapped ones, are pairwise uncorrelated."""
    stream = draws(4)
    streams = [*stream.uniform(20000), *stream.uniform(20000)]
    streams += [row for number in (0, 1, 2) for row in stream.child(number).uniform(20000)]
    streams += [row for a, b in ((0, 1), (1, 0)) for row in stream.child(a).child(b).uniform(20000)]
    streams += list(draws(4, seed=1).uniform(20000))
    correlation = torch.corrcoef(torch.stack(streams)).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / 20000**0.5
    across = draws(20000).uniform(2)
    assert abs(np.corrcoef(across[1:, 0], across[:-1, 0])[0, 1]) < 5 / 20000**0.5
    assert abs(np.corrcoef(across[:, 0], across[:, 1])[0, 1]) < 5 / 20000**0.5


def test_children_do_not_move_their_parent() -> None:
    first, second = draws(3), draws(3)
    second.child(0).uniform(4)
    assert torch.equal(first.uniform(4), second.uniform(4))
    assert not torch.equal(first.uniform(4), draws(3).uniform(4))


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_compiled_loops_draw_the_same_numbers(monkeypatch, kind: str) -> None:
    keys = torch.tensor([3, -7, 2**62])
    compiled = getattr(Draws(keys), kind)(40, 50)
    monkeypatch.setattr(random, "_LONG", 10**9)
    plain = getattr(Draws(keys), kind)(40, 50)
    assert torch.equal(compiled, plain)
    assert compiled.unique().numel() > 5000


def test_a_compiled_call_moves_the_counter_like_any_other() -> None:
    first, second = Draws(torch.tensor([5])), Draws(torch.tensor([5]))
    first.uniform(2000)
    second.uniform(3)
    assert torch.equal(first.uniform(3), second.uniform(3))
