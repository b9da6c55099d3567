"""Generated masks: hole fractions, borders, determinism, shapes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from msldata.contract.maskgenerator import (
    MAX_HOLE_FRACTION,
    MIN_HOLE_FRACTION,
    MIN_SIZE,
    generate_hole_mask,
    target_hole_fraction,
)


def touches_border(hole: np.ndarray) -> bool:
    return bool(hole[0].any() or hole[-1].any() or hole[:, 0].any() or hole[:, -1].any())


@pytest.mark.parametrize(("size", "count"), [(512, 24), (128, 60), (MIN_SIZE, 60), (33, 20)])
def test_each_mask_meets_its_hole_fraction(size, count):
    for index in range(count):
        hole = generate_hole_mask(3, index, size)
        assert hole.shape == (size, size)
        assert hole.dtype == np.uint8
        assert set(np.unique(hole)) <= {0, 1}
        assert abs(hole.mean() - target_hole_fraction(3, index)) <= 0.02, index


def test_half_of_the_masks_never_touch_the_border_and_most_others_do():
    masks = [generate_hole_mask(0, index, 128) for index in range(100)]
    assert not any(touches_border(hole) for hole in masks[0::2])
    assert sum(touches_border(hole) for hole in masks[1::2]) > 40


@pytest.mark.parametrize("count", [20, 37, 100, 3000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hole_fractions_spread_evenly_over_the_range(count, seed):
    targets = np.sort([target_hole_fraction(seed, index) for index in range(count)])
    assert targets[0] >= MIN_HOLE_FRACTION
    assert targets[-1] < MAX_HOLE_FRACTION
    width = (MAX_HOLE_FRACTION - MIN_HOLE_FRACTION) / count
    edges = np.concatenate([[MIN_HOLE_FRACTION], targets, [MAX_HOLE_FRACTION]])
    assert np.diff(edges).max() < 2.7 * width
    # The masks that keep clear of the border cover the range as well.
    evens = [target_hole_fraction(seed, index) for index in range(0, count, 2)]
    assert min(evens) < 0.2
    assert max(evens) > 0.6


def test_a_third_of_the_masks_are_high():
    high = sum(target_hole_fraction(0, index) > 0.5 for index in range(3000))
    assert 1000 <= high <= 1030


def test_masks_differ_by_seed_and_index():
    masks = [generate_hole_mask(seed, index, 64).tobytes() for seed in (0, 1) for index in range(30)]
    assert len(set(masks)) == len(masks)


def test_masks_never_change():
    # Written down once: users' keep-mask shards, and results that name their fingerprint, depend on it.
    digest = hashlib.sha256()
    for index in range(20):
        digest.update(np.packbits(generate_hole_mask(0, index, 96)).tobytes())
    assert digest.hexdigest() == "baa61f0a58dcfc29472c4236966decc7cf32f04966fd39b8a687c8ea49397339"


def test_holes_are_large_connected_pieces_not_noise():
    # A pixel of noise has a neighbour of its own kind with the chance p; strokes have nearly always.
    for index in range(20):
        hole = generate_hole_mask(1, index, 128)
        same = (hole[1:] == hole[:-1]).mean()
        assert same > 0.8, index
