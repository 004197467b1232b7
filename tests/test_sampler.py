"""Order and crops as pure functions: permutations, the same at any world size, uniform where they should be."""

import tracemalloc
from collections import Counter
from itertools import islice, permutations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from ssl_med.data.sampler import GlobalOrder, Permutation, StepBatches, crop_corner, even_cycle, groups_of, mix
from ssl_med.errors import UserError
from ssl_med.ops import random


def test_mix_is_that_of_the_tensors():
    numbers = [0, 1, 5, 2**40 + 3, 2**63 - 1]
    expected = random.mix(torch.tensor(numbers)).numpy().view(np.uint64)
    assert [mix(number) for number in numbers] == expected.tolist()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 10, 16, 17, 255, 256, 257])
def test_permutations_are_bijective(count):
    for key in range(2):
        permutation = Permutation(count, 7, key)
        assert sorted(permutation(place) for place in range(count)) == list(range(count))


@pytest.mark.parametrize("count", [3, 4])
def test_all_permutations_are_equally_likely(count):
    shuffled = [Permutation(count, 1, key) for key in range(1200)]
    found = Counter(tuple(one(place) for place in range(count)) for one in shuffled)
    assert chisquare([found[one] for one in permutations(range(count))]).pvalue > 1e-3


def test_a_billion_images_take_no_memory():
    order, count = GlobalOrder(10**9, 3), 10**9
    positions = np.random.default_rng(0).integers(0, count, 600).tolist()
    tracemalloc.start()
    rows = [order(position) for position in positions]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000  # the answers; one bit an image were 125 MB
    assert len(set(rows)) == len(set(positions))
    assert 0 <= min(rows) <= max(rows) < count
    assert chisquare(np.bincount(np.array(rows) * 20 // count, minlength=20)).pvalue > 1e-3
    steps = np.diff([order(position) for position in range(600)]) % count  # neighbours are unrelated
    assert chisquare(np.bincount(steps * 20 // count, minlength=20)).pvalue > 1e-3


def test_neighbours_in_the_order_change_from_pass_to_pass():
    order = GlobalOrder(6, 0)
    pairs = Counter((order(6 * epoch), order(6 * epoch + 1)) for epoch in range(900))
    assert chisquare([pairs[pair] for pair in permutations(range(6), 2)]).pvalue > 1e-3


def test_crops_of_an_image_stay_in_their_window_and_are_spread_over_it():
    order = GlobalOrder(40, seed=1, crops=4, window=8)
    windows = [[order(position) for position in range(32 * n, 32 * n + 32)] for n in range(5)]
    assert all(set(Counter(rows).values()) == {4} for rows in windows)
    assert sorted(row for rows in windows for row in rows) == sorted(
        [*range(40)] * 4
    )  # one pass: every image opened once
    assert sum(len(set(rows[:8])) for rows in windows) > 5 * 5  # a batch of 8 mixes images
    assert windows != [[order(position) for position in range(32 * n, 32 * n + 32)] for n in range(5, 10)]


def test_visits_count_each_image_once_a_pass():
    order = GlobalOrder(5, seed=1, crops=3, window=2)
    visits = Counter(order.visit(position) for position in range(60))
    assert visits == dict.fromkeys(range(20), 3)


@pytest.mark.parametrize(
    ("weights", "cycle"),
    [([1.0], [0]), ([1, 2], [1, 0, 1]), ([2, 4], [1, 0, 1]), ([0.5, 0.5], [0, 1]), ([3, 1], [0, 0, 1, 0])],
)
def test_cycles_are_as_even_as_can_be(weights, cycle):
    assert even_cycle(weights) == cycle


def test_shares_follow_the_weights_at_every_time():
    cycle = even_cycle([0.2, 0.5, 0.3])
    running = np.cumsum([[group == one for group in range(3)] for one in cycle * 3], 0)
    expected = np.arange(1, len(running) + 1)[:, None] * [0.2, 0.5, 0.3]
    assert np.abs(running - expected).max() < 1.5
    assert even_cycle([1, 1e-9]).count(1) == 1


def test_weights_choose_groups_whatever_their_size():
    values = np.array(["CT"] * 30 + ["MR"] * 3, object)
    groups = groups_of(values, {"CT": 1, "MR": 2}, "modality")
    order = GlobalOrder(groups, seed=4, weights=[1, 2])
    rows = [order(position) for position in range(64 * 15)]
    assert Counter(str(values[row]) for row in rows) == {"MR": 640, "CT": 320}
    assert set(Counter(rows).values()) <= {10, 11, 213, 214}
    assert sorted(Counter(rows)) == list(range(33))
    again = GlobalOrder(groups, 4, [1, 2])
    assert [again(position) for position in (700, 3, 64)] == [rows[position] for position in (700, 3, 64)]


def test_weights_must_name_what_is_there():
    for weights in ({"CT": 1.0}, {"CT": 1.0, "MR": 1.0, "US": 1.0}, {"CT": 1.0, "MR": 0.0}):
        with pytest.raises(UserError, match="every modality of the training images: 'CT', 'MR'"):
            groups_of(["CT", "MR", "CT"], weights, "modality")


def test_the_next_row_takes_the_place_of_a_damaged_one():
    order = GlobalOrder(7, 2)
    for position in range(14):
        attempts = [order(position, attempt) for attempt in range(7)]
        assert sorted(attempts) == list(range(7))
        if position % 7 < 6:
            assert attempts[1] == order(position + 1)


def test_the_global_order_is_the_same_at_world_sizes_up_to_1024():
    for world in (1, 2, 3, 5, 7, 8, 12, 100, 1024):
        ranks = [list(islice(StepBatches(2 * world, 1, rank, world), 2)) for rank in range(world)]
        together = [position for step in range(2) for rank in ranks for position in rank[step]]
        assert together == list(range(2 * world, 6 * world))


def test_every_pass_is_a_permutation_and_no_two_are_alike():
    order = GlobalOrder(13, seed=5)
    passes = [tuple(order(13 * epoch + place) for place in range(13)) for epoch in range(6)]
    assert all(sorted(one) == list(range(13)) for one in passes)
    assert len(set(passes)) == 6


def test_a_position_means_the_same_in_any_order_of_asking():
    positions = [100, 3, 57, 4, 99, 3]
    fresh = [GlobalOrder(13, 5)(position) for position in positions]
    order = GlobalOrder(13, 5)
    assert [order(position) for position in positions] == fresh
    assert fresh != [GlobalOrder(13, 6)(position) for position in positions]


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("start", [0, 1, 17])
def test_the_global_order_is_the_same_at_any_world_size_and_start(world, start):
    ranks = [list(islice(StepBatches(8, start, rank, world), 5)) for rank in range(world)]
    together = [[position for rank in ranks for position in rank[step]] for step in range(5)]
    assert together == [list(range(8 * step, 8 * step + 8)) for step in range(start, start + 5)]


def test_an_uneven_share_is_refused():
    with pytest.raises(UserError, match="10 does not divide over 4"):
        StepBatches(10, world_size=4)


def test_iterating_again_begins_again():
    batches = StepBatches(2, 3)
    assert next(iter(batches)) == next(iter(batches)) == [6, 7]


def test_corners_are_uniform():
    rng = np.random.default_rng(0)
    corners = np.array([crop_corner(rng, [12, 9], [8, 4]) for _ in range(6000)])
    counts = np.zeros((5, 6))
    np.add.at(counts, (corners[:, 0], corners[:, 1]), 1)
    assert counts.sum() == 6000
    assert chisquare(counts.ravel()).pvalue > 1e-4


def test_corners_around_a_voxel_are_uniform_among_the_crops_that_hold_it():
    rng = np.random.default_rng(0)
    found = np.array([crop_corner(rng, [12], [5], [2])[0] for _ in range(3000)])
    assert set(found) == {0, 1, 2}  # corners 0 to 7 fit, 0 to 2 hold voxel 2
    assert chisquare(np.bincount(found)).pvalue > 1e-4


def test_around_is_always_inside_and_the_crop_in_the_image():
    rng = np.random.default_rng(1)
    for _ in range(2000):
        space = [int(n) for n in rng.integers(1, 20, 3)]
        crop = [int(n) for n in rng.integers(1, 20, 3)]
        voxel = [int(rng.integers(n)) for n in space]
        for corner, size, length, place in zip(crop_corner(rng, space, crop, voxel), space, crop, voxel, strict=True):
            assert 0 <= corner <= max(size - length, 0)
            assert corner <= place < corner + length
