"""Which masks make which subset: limits, draws, slices by file number; without a file being written."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from msldata.contract.keepmask import HOLE_BLACK, HOLE_WHITE, hole_fraction_histogram
from msldata.errors import UserError
from msldata.masks.hole_fraction import MeasuredMask, reach_fraction
from msldata.masks.subsets import BUCKETS, Choice, MaskSample, choose_official, choose_seeded


def sample(name: str, num_white: int) -> MaskSample:
    """A mask of 10 × 100 pixels, the first ``num_white`` of which are white."""
    gray_HW = np.zeros(1000, np.uint8)
    gray_HW[:num_white] = 255
    return MaskSample(name, f"{name}.png", MeasuredMask.of_gray(name, gray_HW.reshape(10, 100)))


def chosen(samples: list[MaskSample], polarity: str = HOLE_WHITE, **options) -> Choice:
    return choose_seeded(
        samples, polarity, **{"threshold": 0.5, "per_subset": 0, "seed": 0, "buckets": True, **options}
    )


def keys(choice: Choice) -> dict[str, list[str]]:
    return {subset.name: [sample.key for sample in subset.samples] for subset in choice.subsets}


def test_limits_belong_to_the_side_that_the_definition_says():
    """Exactly nothing is in no bucket, exactly 10 % in the first, exactly 50 % is low and exactly 60 % in the last."""
    whites = [0, 1, 100, 101, 200, 300, 400, 500, 501, 600, 601, 1000]
    choice = chosen([sample(f"{white:04d}", white) for white in whites])
    assert keys(choice) == {
        "high": ["0501", "0600", "0601", "1000"],
        "low": ["0000", "0001", "0100", "0101", "0200", "0300", "0400", "0500"],
        "holes-00-10": ["0001", "0100"],
        "holes-10-20": ["0101", "0200"],
        "holes-20-30": ["0300"],
        "holes-30-40": ["0400"],
        "holes-40-50": ["0500"],
        "holes-50-60": ["0501", "0600"],
    }
    assert choice.left_out == ()
    assert choice.notes == ("3 masks are in none of the buckets: they hide nothing, or more than 60 % of an image",)
    assert [subset.counts for subset in choice.subsets[:3]] == [
        {"available": 4},
        {"available": 8},
        {"available": 2, "also_in_high_or_low": 2},
    ]
    assert dict(choice.subsets[2].options) == {
        "threshold": 0.5,
        "polarity": HOLE_WHITE,
        "per_subset": 0,
        "seed": 0,
        "hole_fraction_above": 0.0,
        "hole_fraction_up_to": 0.1,
    }
    assert BUCKETS["holes-50-60"] == (0.5, 0.6) and len(BUCKETS) == 6


def test_the_other_polarity_measures_the_other_colour():
    samples = [sample("little", 100), sample("half", 500), sample("much", 900)]
    assert keys(chosen(samples, HOLE_BLACK, buckets=False)) == {"high": ["little"], "low": ["half", "much"]}
    assert keys(chosen(samples, HOLE_WHITE, buckets=False)) == {"high": ["much"], "low": ["half", "little"]}
    assert keys(chosen(samples, HOLE_WHITE, buckets=False, threshold=0.1)) == {
        "high": ["half", "much"],
        "low": ["little"],
    }


def test_a_draw_is_a_function_of_seed_and_name_and_is_stored_in_the_order_of_names():
    samples = [sample(f"{number:03d}", 800) for number in range(30)]

    def lot(name: str, seed: int) -> bytes:
        return hashlib.sha256(f"{seed}/{name}.png".encode()).digest()

    for seed in (0, 7):
        expected = sorted(sorted((one.key for one in samples), key=lambda name: lot(name, seed))[:5])
        for order in (samples, samples[::-1]):
            choice = chosen(order, per_subset=5, seed=seed, buckets=False)
            assert keys(choice)["high"] == expected
        assert choice.subsets[0].counts == {"available": 30}
        assert choice.subsets[0].options["seed"] == seed


def test_a_bucket_takes_masks_that_no_other_subset_drew_first():
    samples = [sample(f"{number:03d}", 250) for number in range(10)]
    choice = chosen(samples, per_subset=6)
    low, bucket = keys(choice)["low"], keys(choice)["holes-20-30"]
    assert len(low) == len(bucket) == 6 and set(bucket) > {one.key for one in samples} - set(low)
    assert choice.subsets[2].counts == {"available": 10, "also_in_high_or_low": 2}
    assert choice.left_out == ("holes-00-10", "holes-10-20", "holes-30-40", "holes-40-50", "holes-50-60")
    assert choice.notes[0] == "holes-00-10: left out, no mask of this hole fraction in the source"
    assert len(choice.notes) == 5, "no mask lies outside of the buckets"


def official(names: str, per_subset: int = 0) -> Choice:
    return choose_official([sample(name, 1) for name in names.split()], HOLE_WHITE, per_subset=per_subset)


EDGES = "00000 00999 01000 09999 10000 10999 11000 11999"


def test_official_slices_by_number():
    choice = official(EDGES)
    assert keys(choice) == {"high": ["11000", "11999"], "low": ["00000", "00999"], "heldout": ["10000", "10999"]}
    assert keys(official(EDGES, 1)) == {"high": ["11000"], "low": ["00000"], "heldout": ["10000"]}
    assert keys(official("11999 11000 00999 00000 10999 10000")) == keys(choice), "in the order of their numbers"
    assert choice.notes[0] == "high: 2 of the 1,000 files 11000–11999 are in the source"
    assert choice.subsets[0].counts == {"available": 2, "files_in_slice": 1000}
    assert choice.subsets[0].options == {"order": "official", "polarity": HOLE_WHITE, "per_subset": 0}
    assert choice.left_out == ()


@pytest.mark.parametrize("name", ["1234", "000001", "abcde", "12000", "٠٠٠٠١", "0123x"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match=f"named 00000 to 11999; '{name}.png' is not one of them"):
        official(f"{EDGES} {name}")


def test_a_slice_without_a_file_and_a_number_twice_are_refused():
    with pytest.raises(UserError, match="none of the files 10000–10999, which make 'heldout', is in the source"):
        official("00000 11000 01000")
    twice = [sample("00000", 1), MaskSample("a_00000", "a/00000.png", sample("x", 1).mask)]
    with pytest.raises(UserError, match=r"00000\.png and a/00000\.png have one number"):
        choose_official(twice, HOLE_WHITE, per_subset=0)


def test_histogram_bins_hold_their_upper_edge():
    counts = hole_fraction_histogram([0, 0.1, 0.1001, 0.5, 0.5001, 0.9, 0.95, 1.0])
    assert counts == {
        "0.0-0.1": 2,
        "0.1-0.2": 1,
        "0.2-0.3": 0,
        "0.3-0.4": 0,
        "0.4-0.5": 1,
        "0.5-0.6": 1,
        "0.6-0.7": 0,
        "0.7-0.8": 0,
        "0.8-0.9": 1,
        "0.9-1.0": 2,
    }


@pytest.mark.parametrize("target", [0.1, 0.6])
def test_a_mask_with_moved_holes_still_says_what_its_file_was(target):
    gray_HW = np.zeros((20, 30), np.uint8)
    gray_HW[5:15, 10:20] = 255
    mask = MeasuredMask.of_gray("a", gray_HW, size=10)
    moved = mask.reach(HOLE_WHITE, target)
    assert moved.hole_fraction(HOLE_WHITE) == target
    assert (moved.source_width, moved.source_height) == (30, 20)
    assert moved.source_hole_fraction(HOLE_WHITE) == 100 / 600 and moved.clue == mask.clue


def test_a_mask_is_high_or_low_by_what_is_stored_of_it():
    gray_HW = np.zeros((20, 20), np.uint8)
    gray_HW[:, 8:12] = 255
    mask = MeasuredMask.of_gray("a", gray_HW)
    moved = MaskSample("a", "a.png", mask.reach(HOLE_WHITE, 0.7))
    assert keys(chosen([moved], buckets=False)) == {"high": ["a"], "low": []}
    assert keys(chosen([MaskSample("a", "a.png", mask)], buckets=False)) == {"high": [], "low": ["a"]}


def test_a_hole_that_grows_fills_its_notches_first():
    square_HW = np.zeros((9, 9), bool)
    square_HW[3:6, 3:6] = True
    notched_HW = square_HW.copy()
    notched_HW[3, 4] = False
    assert np.array_equal(reach_fraction(notched_HW, 9 / 81), square_HW)
    assert np.array_equal(reach_fraction(~notched_HW, 72 / 81), ~square_HW)  # and so does what is visible
