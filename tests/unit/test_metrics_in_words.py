"""What measures say of themselves, against counts by plain loops; how much is worth saying, and of which class."""

from __future__ import annotations

import numpy as np
import pytest

from msltrain.measures.asked_thresholds import AskedThresholds, read_thresholds
from msltrain.measures.metrics import Metrics, compute_metrics
from msltrain.measures.predictions import LargestObjects, Origin, Predictions
from msltrain.measures.spreadsheet import digits
from msltrain.measures.strata import strata_note


def measured(logit_NK: object, target_NK: object) -> Metrics:
    logits = np.asarray(logit_NK, np.float32)
    return compute_metrics(
        Predictions(
            keys=tuple(map(str, range(len(logits)))),
            logit_NK=logits,
            target_NK=np.asarray(target_NK, np.uint8),
            ignore_NK=np.zeros(logits.shape, bool),
            classes=tuple("abcdef"[: logits.shape[1]]),
        )
    )


@pytest.mark.parametrize(("num", "is_said"), [(9, True), (10, False)])
def test_ten_positives_are_enough(num: int, is_said: bool):
    target_NK = (np.arange(20) < num)[:, None]
    said = measured(np.zeros((20, 1)), target_NK).too_few()
    assert bool(said) == is_said
    if said:
        assert "every class in 9 or fewer" in said


def test_the_precision_of_a_class_that_is_not_there_is_none_of_cps():
    """``a`` is right once of twice; ``b`` has a positive and is never predicted; ``c`` is predicted and never there."""
    found = measured([[1, -1, 1], [1, -1, -1]], [[1, 1, 0], [0, 1, 0]])
    assert (found.CP, found.OP) == (0.25, 0.25)
    said = found.never_predicted()
    assert "CP is 50.00 % and not 25.00 %" in said and "OP is 33.33 % and not 25.00 %" in said
    assert "1 of the 3 predictions made is right" in said
    assert found.absent_classes == ("c",)


@pytest.mark.parametrize(("num", "is_said"), [(1000, True), (1990, False)])
def test_what_moves_by_less_than_a_rounding_is_not_said(num: int, is_said: bool):
    """One wrong prediction more among so many that are right: 0.1 points, or just below 0.05."""
    more = 11 if num == 1990 else 0
    said = measured([[1, -1]] * (num + more), [[1, 0]] * (num + more)).never_predicted()
    assert ("without such classes OP is 100.00 %" in said) == is_said


def test_the_class_that_order_moves_most_is_named_first_whichever_way():
    """Where equals are equal ``a`` falls from 1 to 1/2, ``c`` to 1/4; ``b``, whose positive is the last, stays."""
    logit_NK = np.zeros((4, 3))
    logit_NK[2:, 0] = -1
    target_NK = [[1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 1, 0]]
    found = measured(logit_NK, target_NK)
    said = found.decided_by_order()
    assert "(AP: c 25.0 and not 100.0, a 50.0 and not 100.0)" in said


def test_a_small_class_among_many_is_named_though_the_mean_is_the_same_number():
    num_classes = 1200
    logit_NK, target_NK = np.zeros((2, num_classes), np.float32), np.zeros((2, num_classes), np.uint8)
    logit_NK[0] = 1
    target_NK[0] = 1
    logit_NK[:, 7] = 0  # equal, the positive first: 1 as stored, 1/2 as equals
    found = compute_metrics(
        Predictions(
            keys=("x", "y"),
            logit_NK=logit_NK,
            target_NK=target_NK,
            ignore_NK=np.zeros_like(target_NK, bool),
            classes=tuple(f"class {k}" for k in range(num_classes)),
        )
    )
    assert found.mAP - found.mAP_by_kind["sklearn"] < 0.0005
    assert "(AP: class 7 50.0 and not 100.0)" in found.decided_by_order()


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ({}, {}, True),
        ({"reading": "a"}, {"reading": "b"}, False),
        ({"reading": "a"}, {"reading": ""}, True),
        ({"reading": ""}, {"reading": "b"}, True),
        ({"image_size": 224}, {"image_size": 448}, False),
        ({"image_size": 224}, {"image_size": 0}, True),
        ({"image_size": 0}, {"image_size": 448}, True),
        ({"checkpoint_sha256": "b"}, {}, False),
        ({"split": "val", "seed": 3, "hole_fraction": 0.5}, {"split": "test"}, True),
    ],
)
def test_two_origins_are_of_one_model_as_far_as_both_say(one: dict, other: dict, is_same: bool):
    known = {"checkpoint_sha256": "a", "image_size": 224, "reading": "a"}
    first, second = Origin(**{**known, **one}), Origin(**{**known, **other})
    assert first.is_of_same_model(second) is second.is_of_same_model(first) is is_same


@pytest.mark.parametrize(
    ("more", "is_plain"),
    [
        ({}, True),
        ({"keep_masks": ("a",)}, False),
        ({"test_time": "flip"}, False),
        ({"keep_masks": ("a",), "test_time": "flip"}, False),
    ],
)
def test_a_plain_view_is_neither_masked_nor_a_mean(more: dict, is_plain: bool):
    assert Origin(**more).is_of_plain_views is is_plain


def test_scores_of_large_logits_are_as_exact_as_double_precision():
    logit_NK = np.float32([[-100, -20, 0, 20, 100]])
    found = Predictions(
        keys=("x",),
        logit_NK=logit_NK,
        target_NK=np.zeros((1, 5), np.uint8),
        ignore_NK=np.zeros((1, 5), bool),
        classes=tuple("abcde"),
    )
    expected = [3.7200759760208356e-44, 2.0611536181902037e-09, 0.5, 0.9999999979388463, 1.0]
    assert found.score_NK.dtype == np.float64 and found.score_NK[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_a_threshold_of_zero_is_one_that_was_asked_for():
    tuned_K = np.array([0.4, 0.6])
    found_K, origin = read_thresholds(["0", "Wolf=0"]).over(tuned_K, "tuned", ("Fuchs", "Wolf"))
    assert found_K.tolist() == [0, 0] and origin == "0, as asked; Wolf 0, as asked"
    assert AskedThresholds(1.0).over(tuned_K, "tuned", ("Fuchs", "Wolf"))[0].tolist() == [1, 1]


def test_percent_is_guessed_up_to_a_hundred():
    for value, meant in ((100, "did you mean 1[?]"), (2.5, "did you mean 0.025[?]"), (101, "between 0 and 1$")):
        with pytest.raises(Exception, match=meant):
            AskedThresholds(value)


def test_a_score_of_zero_has_its_digits():
    assert [digits(value) for value in (0.0, None, 0.25, 1.0)] == ["0.000000", "", "0.250000", "1.000000"]
    assert digits(0.5, decimal_comma=True) == "0,500000"


@pytest.mark.parametrize(("separated", "said"), [(None, "boxes"), ([0, 0], "segments"), ([1, 0], "segments")])
def test_what_counts_as_covered_is_what_the_segments_say_where_there_are_any(separated: list[int] | None, said: str):
    """Also where none of them is in several parts."""
    flag_NK = np.full((2, 1), -1, np.int8)
    objects = LargestObjects.of_arrays(
        area_NK=np.ones((2, 1), np.float32),
        truncated_NK=flag_NK,
        occluded_NK=flag_NK,
        crowd_NK=flag_NK,
        covered_NK=np.float32([[0.5], [0.0]]),
        separated_NK=None if separated is None else np.array(separated, np.int8)[:, None],
    )
    one = Predictions(
        keys=("x", "y"),
        logit_NK=np.zeros((2, 1), np.float32),
        target_NK=np.ones((2, 1), np.uint8),
        ignore_NK=np.zeros((2, 1), bool),
        classes=("a",),
        objects=objects,
    )
    note = strata_note(one)
    assert ("under smaller boxes" in note) == (said == "boxes") and ("convex hull" in note) == (said == "segments")
