"""Order and crops as pure functions: permutations, the same at any world size, uniform where they should be."""

from itertools import islice

import numpy as np
import pytest
from scipy.stats import chisquare

from ssl_med.data.sampler import GlobalOrder, StepBatches, crop_corner
from ssl_med.errors import UserError


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
