"""The published measures by hand, and against scikit-learn and torchmetrics where the definitions agree."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

from msldata.errors import UserError
from msltrain.measures.average_precision import AP_KINDS, average_precision, rank_positives
from msltrain.measures.metrics import checked_arrays, compute_metrics, mean_average_precision
from msltrain.measures.predictions import Origin, Predictions
from msltrain.measures.summary import mean_and_deviation
from msltrain.measures.thresholds import require_other_samples, threshold_origin, tune_thresholds

ARRAYS = ("logit_NK", "target_NK", "ignore_NK")


def predictions(logit, target, ignore=None) -> Predictions:
    logit_NK = np.asarray(logit, dtype=np.float32)
    num_samples, num_classes = logit_NK.shape
    return Predictions(
        keys=tuple(f"{n:06d}" for n in range(num_samples)),
        logit_NK=logit_NK,
        target_NK=np.asarray(target, dtype=np.uint8),
        ignore_NK=np.zeros(logit_NK.shape, bool) if ignore is None else np.asarray(ignore, dtype=bool),
        classes=tuple("abcdefghij"[:num_classes]),
    )


def test_figures_of_few_photographs_say_so():
    """Where half of the classes have fewer than ten positives; a class without any does not count."""
    target_NK = np.zeros((20, 3))
    target_NK[:9, 0] = target_NK[:, 1] = 1
    few = compute_metrics(predictions(np.zeros((20, 2)), target_NK[:, [0, 2]])).too_few()
    assert few.startswith("only 20 photographs, and every class in 9 or fewer")
    target_NK[9:, 1] = 0
    target_NK[:6, 2] = 1
    some = np.concatenate([target_NK, np.ones((20, 1))], axis=1)  # 9, 9, 6 and 20
    assert "and 3 of the 4 classes in 9 or fewer" in compute_metrics(predictions(np.zeros((20, 4)), some)).too_few()
    target_NK[:, 1], target_NK[:, 2] = 1, 0
    assert compute_metrics(predictions(np.zeros((20, 3)), target_NK)).too_few() == ""  # 9 and 20


def test_what_a_class_that_is_never_predicted_does_to_precision_is_said():
    """Three predictions, two of them right, and two classes without one: OP is 2 / 5."""
    logit_NK = [[1, -1, -1], [1, -1, -1], [1, -1, -1]]
    found = compute_metrics(predictions(logit_NK, [[1, 0, 1], [1, 1, 0], [0, 1, 1]]))
    assert pytest.approx(2 / 5) == found.OP
    said = "in OP as one wrong prediction, in CP as none right: here b, c; 2 of the 3 predictions made are right"
    assert said in found.never_predicted()
    assert (
        "without such classes OP is 66.67 % and not 40.00 %, CP is 66.67 % and not 22.22 %" in found.never_predicted()
    )
    everything = compute_metrics(predictions(np.ones((3, 3)), np.eye(3)))
    assert everything.never_predicted() == ""
    nothing = compute_metrics(predictions(-np.ones((3, 3)), np.eye(3)))
    assert "here a, b, c; nothing at all is predicted" in nothing.never_predicted()


def test_a_class_that_is_never_predicted_changes_op_where_it_has_no_positive_too():
    found = compute_metrics(predictions([[1, -1]] * 3, [[1, 0]] * 3))
    assert (found.OP, found.CP) == (0.75, 1.0)
    assert found.never_predicted().endswith("are right: without such classes OP is 100.00 % and not 75.00 %")
    many = compute_metrics(predictions([[1, -1]] * 3000, [[1, 0]] * 3000))
    assert many.never_predicted().endswith("3,000 of the 3,000 predictions made are right")  # 99.97 %


def test_an_map_that_the_order_of_the_samples_decides_says_so():
    """A network that says the same of every image gets 100 % where the positives are stored first."""
    target_NK = np.zeros((100, 1))
    target_NK[:10] = 1
    expected = average_precision_score(target_NK[:, 0], np.zeros(100))
    for rows_NK, published in ((target_NK, 1.0), (target_NK[::-1], np.mean(np.arange(1, 11) / np.arange(91, 101)))):
        found = compute_metrics(predictions(np.zeros((100, 1)), rows_NK))
        assert (found.mAP, found.mAP_by_kind["sklearn"]) == pytest.approx((published, expected))
        said = f"10 positives share their logit with a negative.* mAP is 10.00 % and not {100 * published:.2f} %"
        assert re.search(said, found.decided_by_order())
        zeros = np.zeros((100, 1), np.float32)
        assert mean_average_precision(zeros, rows_NK, kind="sklearn") == pytest.approx(expected)


def test_a_class_that_the_order_decides_is_named_where_it_does_not_move_the_mean():
    logit_NK = [[1, 1], [1, 1], [0, 0]]
    found = compute_metrics(predictions(logit_NK, [[1, 0], [0, 1], [0, 1]]))
    # a: 1 as stored, 1/2 as equals; b: (1/2 + 2/3) / 2 either way.
    assert "(AP: a 50.0 and not 100.0)" in found.decided_by_order()
    many_NK = np.arange(4000, dtype=np.float32)[:, None]
    target_NK = np.ones((4000, 1))
    target_NK[:2] = [[1], [0]]
    many_NK[:2] = 0  # the last rank of 4,000
    found = compute_metrics(predictions(many_NK, target_NK))
    assert found.num_tied == 1 and found.decided_by_order() == ""
    assert compute_metrics(predictions([[2], [1]], [[0], [1]])).decided_by_order() == ""


def test_average_precision_by_hand():
    # Positives at ranks 1, 3 and 4: (1/1 + 2/3 + 3/4) / 3.
    value = average_precision(np.float32([4, 3, 2, 1, 0]), np.array([True, False, True, True, False]))
    assert value == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_equal_logits_keep_the_order_of_the_samples():
    logit_N = np.float32([0.5, 0.5])
    assert average_precision(logit_N, np.array([True, False])) == 1.0
    assert average_precision(logit_N, np.array([False, True])) == 0.5


@settings(deadline=None, max_examples=100)
@given(data=st.data(), num_samples=st.integers(1, 120))
def test_many_equal_logits_keep_the_order_of_the_samples_too(data, num_samples):
    """Against a plain loop. Numpy's default sort is stable up to 16 values, and no longer beyond."""
    target_N = data.draw(hnp.arrays(np.bool_, num_samples))
    logit_N = data.draw(hnp.arrays(np.int8, num_samples, elements=st.integers(0, 2))).astype(np.float32)
    precisions, hits = [], 0
    for rank, n in enumerate(sorted(range(num_samples), key=lambda n: -logit_N[n]), start=1):
        if target_N[n]:
            hits += 1
            precisions.append(hits / rank)
    expected = sum(precisions) / len(precisions) if precisions else None
    assert average_precision(logit_N, target_N) == (expected if expected is None else pytest.approx(expected))


def test_a_hundred_equal_logits_keep_the_order_of_the_samples():
    target_N = np.arange(100) % 3 == 1
    expected = np.mean([hit / (3 * hit - 1) for hit in range(1, 34)])
    assert average_precision(np.zeros(100, np.float32), target_N) == pytest.approx(expected)
    both = compute_metrics(predictions(np.zeros((100, 1)), target_N[:, None]))
    assert both.mAP == pytest.approx(expected)


def test_the_four_kinds_of_average_precision_by_hand():
    # Ranks 1 … 7; positives at 1, 3, 4 and 7: precisions 1, 2/3, 3/4, 4/7, the envelope 1, 3/4, 3/4, 4/7. Recalls 1/4,
    # 1/2, 3/4, 1: recall 0 to 0.2 is first met at the first positive, 0.3 to 0.5 at the second, 0.6 and 0.7 at the
    # third, 0.8 to 1 at the last. The positive at rank 4 shares its logit with the negative at rank 5.
    logit_N = np.float32([9, 8, 7, 5, 5, 3, 2])
    values = rank_positives(logit_N, np.array([True, False, True, True, False, False, True])).average_precisions()
    assert values == pytest.approx(
        {
            "msl": (1 + 2 / 3 + 3 / 4 + 4 / 7) / 4,
            "sklearn": (1 + 2 / 3 + 3 / 5 + 4 / 7) / 4,
            "interpolated": (1 + 3 / 4 + 3 / 4 + 4 / 7) / 4,
            "voc11": (3 * 1 + 3 * 3 / 4 + 2 * 3 / 4 + 3 * 4 / 7) / 11,
        }
    )


def test_eleven_point_recalls_are_exact():
    # Ten positives, a negative after the third: recall 0.3 is reached by the third positive, whose precision is 1.
    target_N = np.array([True] * 3 + [False] + [True] * 7)
    value = average_precision(-np.arange(11, dtype=np.float32), target_N, "voc11")
    assert value == pytest.approx((4 * 1 + 7 * 10 / 11) / 11)


# Four samples, three classes. Worked out by hand:
#   a: predicted on samples 0, 1 (logit 0 counts); positives 0, 2. Order 0, 1, 2, 3: AP = (1 + 2/3) / 2 = 5/6.
#      precision 1/2, recall 1/2.
#   b: never predicted; positives 0, 1. Order 1, 2, 0, 3: AP = (1 + 2/3) / 2 = 5/6. One prediction:
#      precision 0/1, recall 0/2.
#   c: predicted on all four; positive 3; sample 1 ignored. Order 0, 2, 3: AP = 1/3. precision 1/3, recall 1/1.
LOGIT = [[2.0, -3.0, 4.0], [0.0, -1.0, 3.0], [-1.0, -2.0, 2.0], [-2.0, -4.0, 1.0]]
TARGET = [[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]
IGNORE = [[0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_published_measures_by_hand():
    metrics = compute_metrics(predictions(LOGIT, TARGET, IGNORE))

    class_precision, class_recall = (1 / 2 + 0 + 1 / 3) / 3, (1 / 2 + 0 + 1) / 3
    # 2 correct of 2 + 1 (never predicted counts once) + 3 predictions; 5 positives.
    overall_precision, overall_recall = 2 / 6, 2 / 5
    assert metrics.summary() == pytest.approx(
        {
            "mAP": (5 / 6 + 5 / 6 + 1 / 3) / 3,
            "CP": class_precision,
            "CR": class_recall,
            "CF1": 2 * class_precision * class_recall / (class_precision + class_recall),
            "OP": overall_precision,
            "OR": overall_recall,
            "OF1": 2 * overall_precision * overall_recall / (overall_precision + overall_recall),
        }
    )
    assert metrics.num_samples == 4
    assert metrics.absent_classes == ()
    assert [row.num_ignored for row in metrics.classes] == [0, 0, 1]
    assert [row.num_predicted for row in metrics.classes] == [2, 0, 3]
    assert [row.num_correct for row in metrics.classes] == [1, 0, 1]
    assert [row.precision for row in metrics.classes] == [1 / 2, 0, 1 / 3]
    assert [row.recall for row in metrics.classes] == [1 / 2, 0, 1]
    assert [row.average_precision for row in metrics.classes] == pytest.approx([5 / 6, 5 / 6, 1 / 3])
    assert mean_average_precision(np.float32(LOGIT), np.array(TARGET), np.array(IGNORE)) == metrics.mAP


@pytest.mark.parametrize("block", [1, 7, 10, 1000])
def test_measures_do_not_depend_on_how_many_logits_are_looked_at_together(monkeypatch: pytest.MonkeyPatch, block: int):
    """23 images of 3 classes; some pairs are ignored, and some logits are equal."""
    rng = np.random.default_rng(0)
    logit_NK = rng.integers(-4, 5, (23, 3)) / 2
    one = predictions(logit_NK, rng.random((23, 3)) < 0.4, rng.random((23, 3)) < 0.2)
    expected = compute_metrics(one, np.array([0.5, -0.5, 1.0]))
    for module in ("metrics", "average_precision"):
        monkeypatch.setattr(f"msltrain.measures.{module}._BLOCK", block)
    assert compute_metrics(one, np.array([0.5, -0.5, 1.0])) == expected
    assert expected.num_tied and sum(row.num_ignored for row in expected.classes) > 4


def test_the_spread_of_a_series_is_that_of_a_sample():
    assert mean_and_deviation([0.2, 0.4, 0.9]) == (pytest.approx(0.5), pytest.approx((0.26 / 2) ** 0.5))
    assert mean_and_deviation([0.3]) == (0.3, 0.0)


def test_ignored_pairs_count_nowhere():
    with_pair = compute_metrics(predictions([[3], [2], [1]], [[0], [1], [0]], [[1], [0], [0]]))
    without = compute_metrics(predictions([[2], [1]], [[1], [0]]))
    assert with_pair.summary() == without.summary()
    assert with_pair.mAP == 1.0
    # Counted as a negative, the same pair costs half the AP.
    assert compute_metrics(predictions([[3], [2], [1]], [[0], [1], [0]])).mAP == 0.5


@pytest.mark.parametrize("rule", ["left out", "negative"])
def test_an_ignored_pair_is_no_positive_whatever_its_target_says(rule):
    """Two of three images show a, and one of them does not count: at 0.5 nothing that counts is missed."""
    logit, ignore = [[2, -1], [-0.5, 3], [-4, 1]], [[0, 0], [0, 0], [1, 0]]
    said, unsaid = (
        replace(predictions(logit, [[1, 0], [0, 1], [a, 1]], ignore), origin=Origin(ignored_in_rates=rule))
        for a in (1, 0)
    )
    metrics = compute_metrics(said, np.zeros(2))
    assert metrics == compute_metrics(unsaid, np.zeros(2))
    assert (metrics.CR, metrics.OR, metrics.top3.OR, metrics.tuned.CR) == (1, 1, 1, 1)
    assert [row.num_positive for row in metrics.classes] == [1, 2]
    gone = compute_metrics(predictions([[1, 1], [2, -1]], [[1, 1], [0, 1]], [[1, 0], [0, 0]]))
    assert gone.absent_classes == ("a",) and gone.CR == 0.5
    assert mean_average_precision(np.float32(logit), said.target_NK, said.ignore_NK) == metrics.mAP


def test_measuring_changes_nothing_that_it_is_given():
    """The targets are looked at as they lie: a positive that is ignored is left out of a copy."""
    found = predictions([[1, 2], [3, -4], [5, 6]], [[1, 1], [0, 1], [1, 0]], [[0, 1], [0, 0], [1, 0]])
    before = {name: getattr(found, name).copy() for name in ARRAYS}
    compute_metrics(found)
    mean_average_precision(found.logit_NK, found.target_NK, found.ignore_NK)
    for name in ARRAYS:
        assert np.array_equal(getattr(found, name), before[name]), name


def test_unspecified_attributes_are_negatives_in_the_rates_and_left_out_of_the_ranking():
    wider = predictions([[3], [2], [1]], [[0], [1], [0]], [[1], [0], [0]])
    wider = replace(wider, origin=Origin(ignored_in_rates="negative"))
    metrics = compute_metrics(wider)
    assert (metrics.mAP, metrics.OP, metrics.OR) == (1.0, 1 / 3, 1.0)
    assert compute_metrics(replace(wider, origin=Origin())).OP == 1 / 2


def test_top_three_by_hand():
    # The first image's fourth class is positive and above 0.5 but not among its three highest. Of equal logits the
    # first class counts. The ignored pair of the second image takes no place, so its fourth class is among the three.
    metrics = compute_metrics(
        predictions(
            [[4, 3, 2, 1], [4, 2, 2, 2], [-1, 1, -2, -3]],
            [[1, 0, 0, 1], [0, 1, 1, 1], [0, 1, 0, 0]],
            [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]],
        )
    )
    # Predicted among three: a: 1 (1 correct); b: 3 (2); c: 2 (1); d: 1 (1). Positives 1, 2, 1, 2.
    assert pytest.approx((1 + 2 / 3 + 1 / 2 + 1) / 4) == metrics.top3.CP
    assert metrics.top3.CR == (1 + 1 + 1 + 1 / 2) / 4
    assert (metrics.top3.OP, metrics.top3.OR) == (5 / 7, 5 / 6)
    assert metrics.OR == 1.0
    tied = compute_metrics(predictions([[2, 2, 2, 2]], [[1, 1, 1, 1]]))
    assert (tied.top3.OR, tied.top3.CR) == (3 / 4, 3 / 4)


def test_class_without_positives_is_left_out_and_named():
    metrics = compute_metrics(predictions([[1, 1], [-1, -1]], [[1, 0], [0, 0]]))
    assert metrics.absent_classes == ("b",)
    assert (metrics.classes[0].precision, metrics.classes[0].recall) == (1.0, 1.0), "predicted once, rightly"
    assert metrics.classes[1].average_precision is None
    assert metrics.classes[1].recall is None
    assert (metrics.mAP, metrics.CP, metrics.CR) == (1.0, 1.0, 1.0)
    assert metrics.summary()["OP"] == 0.5, "its false positive still counts overall"
    assert json.loads(metrics.to_json())["classes"][1]["average_precision"] is None


def test_the_json_is_for_people_too():
    text = replace(compute_metrics(predictions([[1], [-1]], [[1], [0]])), absent_classes=("größe",)).to_json()
    assert text.startswith('{\n  "num_samples": 2,\n') and '"größe"' in text and text.endswith("}\n")


def test_nothing_right_is_zero_not_nan():
    metrics = compute_metrics(predictions([[-1], [1]], [[1], [0]]))
    assert (metrics.CF1, metrics.OF1, metrics.OP, metrics.OR) == (0.0, 0.0, 0.0, 0.0)


def test_ties_between_positives_and_negatives_are_counted():
    metrics = compute_metrics(predictions([[1], [1], [2], [2]], [[1], [0], [1], [1]]))
    assert metrics.classes[0].num_tied == metrics.num_tied == 1
    metrics = compute_metrics(predictions([[1], [1], [1], [0]], [[0], [1], [1], [1]]))  # the negative comes first
    assert metrics.num_tied == 2


@pytest.mark.parametrize("num_samples", [3, 0])
def test_no_positive_at_all_is_an_error(num_samples):
    with pytest.raises(UserError, match=r"^none of the classes has a positive among these samples, so no precision"):
        mean_average_precision(np.zeros((num_samples, 2), np.float32), np.zeros((num_samples, 2)))


def test_arrays_of_other_shapes_are_an_error():
    row = np.zeros((2, 2), np.float32)
    for logit, target, ignore in ((row, np.ones((2, 3)), None), (row, row, np.zeros((3, 2))), (row[0], row[0], None)):
        with pytest.raises(ValueError, match="shapes differ"):
            mean_average_precision(logit, target, ignore)


def test_any_number_above_zero_is_a_positive():
    for target in (np.array([[0, 2]], np.uint8), np.array([[0, 1]], np.uint8), np.array([[0.0, 0.4]])):
        found = checked_arrays(np.zeros((1, 2)), target, None)[1]
        assert found.dtype == bool and found.view(np.uint8).tolist() == [[0, 1]]


def test_nan_logits_are_an_error():
    logit_NK = np.float32([[1, np.nan], [0, 1]])
    with pytest.raises(UserError, match="1 of 4 logits are NaN"):
        mean_average_precision(logit_NK, np.ones((2, 2)))


def test_half_precision_sigmoids_would_tie():
    # Logits 9 and 9.01 have the same float16 sigmoid; ranked as float32 logits they stay apart.
    logit_NK = np.float32([[9.0], [9.01]])
    target_NK = np.array([[0], [1]])
    sigmoid_NK = (1 / (1 + np.exp(-logit_NK))).astype(np.float16)
    assert mean_average_precision(logit_NK, target_NK) == 1.0
    assert mean_average_precision(sigmoid_NK, target_NK) == 0.5


@settings(deadline=None, max_examples=100)
@given(data=st.data(), num_samples=st.integers(2, 60), num_classes=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_equals_scikit_learn_when_scores_are_unique(data, num_samples, num_classes, seed):
    target_NK = data.draw(hnp.arrays(np.bool_, (num_samples, num_classes)))
    ignore_NK = data.draw(hnp.arrays(np.bool_, (num_samples, num_classes)))
    target_NK[0], ignore_NK[0] = True, False
    rng = np.random.default_rng(seed)
    logit_NK = np.stack([rng.permutation(num_samples) for _ in range(num_classes)], axis=1).astype(np.float32) - 7
    kept_NK = ~ignore_NK
    expected = [
        average_precision_score(target_NK[kept_NK[:, k], k], logit_NK[kept_NK[:, k], k]) for k in range(num_classes)
    ]
    metrics = compute_metrics(predictions(logit_NK, target_NK, ignore_NK))
    assert [row.average_precision for row in metrics.classes] == pytest.approx(expected)
    assert metrics.mAP == pytest.approx(np.mean(expected))


@settings(deadline=None, max_examples=100)
@given(data=st.data(), num_samples=st.integers(1, 40))
def test_kinds_against_scikit_learn_with_ties(data, num_samples):
    target_N = data.draw(hnp.arrays(np.bool_, num_samples))
    logit_N = data.draw(hnp.arrays(np.int8, num_samples, elements=st.integers(-3, 3))).astype(np.float32)
    values = rank_positives(logit_N, target_N).average_precisions()
    if not target_N.any():
        assert values == dict.fromkeys(AP_KINDS)
        return
    assert values["sklearn"] == pytest.approx(average_precision_score(target_N, logit_N))
    assert values["msl"] is not None and values["interpolated"] is not None
    assert values["msl"] <= values["interpolated"] + 1e-12
    if len(set(logit_N)) == num_samples:
        assert values["msl"] == pytest.approx(values["sklearn"])


@settings(deadline=None, max_examples=30)
@given(data=st.data(), num_samples=st.integers(1, 30), num_classes=st.integers(2, 5))
def test_rates_and_ap_against_torchmetrics(data, num_samples, num_classes):
    import torch
    from torchmetrics.functional import classification

    shape = (num_samples, num_classes)
    target_NK = data.draw(hnp.arrays(np.bool_, shape))
    logit_NK = data.draw(hnp.arrays(np.int8, shape, elements=st.integers(-4, 4))).astype(np.float32) + 0.5
    target_NK[0], logit_NK[0] = True, 4.5  # every class has a positive and is predicted: there the definitions agree
    metrics = compute_metrics(predictions(logit_NK, target_NK))
    score_NK, truth_NK = torch.tensor(logit_NK).sigmoid(), torch.tensor(target_NK).long()
    for ours, function, average in (
        (metrics.CP, classification.multilabel_precision, "macro"),
        (metrics.CR, classification.multilabel_recall, "macro"),
        (metrics.OP, classification.multilabel_precision, "micro"),
        (metrics.OR, classification.multilabel_recall, "micro"),
        (metrics.OF1, classification.multilabel_f1_score, "micro"),
        (metrics.mAP_by_kind["sklearn"], classification.multilabel_average_precision, "macro"),
    ):
        assert ours == pytest.approx(float(function(score_NK, truth_NK, num_classes, average=average)), abs=1e-5)


def test_thresholds_are_where_f1_is_highest():
    # a by rank, + − + −: F1 is 2/3, 1/2, 4/5, 2/3, so behind the third. b: F1 of the one at 3 is 2/4, of those at 3, 2
    # and 2 (which can only be predicted together) 4/6, of all 6/7: from the lowest logit on. c has no positive.
    validation = predictions(
        [[4, 3, 1], [3, 2, 1], [1, 2, 1], [-1, -5, 1]], [[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]]
    )
    threshold_K = tune_thresholds(validation, 1)
    assert threshold_K.tolist() == [0.0, -5.0, 0.0]
    ignored = replace(validation, ignore_NK=np.array([[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]], bool))
    # a without its second positive: the first alone is perfect. b: {3}: 2/3, {3, 2, 2}: 4/5.
    assert tune_thresholds(ignored, 1).tolist() == [3.5, 2.0, 0.0]


@settings(deadline=None, max_examples=200)
@given(data=st.data(), num_samples=st.integers(1, 25))
def test_no_other_threshold_has_a_higher_f1(data, num_samples):
    target_NK = data.draw(hnp.arrays(np.bool_, (num_samples, 1)))
    target_NK[0] = True
    logit_NK = data.draw(hnp.arrays(np.int8, (num_samples, 1), elements=st.integers(-4, 4))).astype(np.float32)
    validation = predictions(logit_NK, target_NK)

    def f1(threshold: float) -> float:
        metrics = compute_metrics(validation, np.array([threshold]))
        assert metrics.tuned is not None
        return metrics.tuned.CF1

    assert f1(tune_thresholds(validation, 1)[0]) == pytest.approx(max(f1(value) for value in np.arange(-4.5, 5)))


def test_tuned_rates_stand_beside_those_at_one_half():
    metrics = compute_metrics(predictions([[-1], [-2]], [[1], [0]]), np.array([-1.5]))
    assert metrics.CF1 == 0.0
    assert metrics.tuned is not None and metrics.tuned.CF1 == 1.0
    assert metrics.thresholds == pytest.approx([1 / (1 + np.exp(1.5))])


def test_tuned_rates_leave_ignored_pairs_out():
    """At the threshold 1: a, hit; b, ignored; c, wrong; d, missed. The ignored pair is predicted and counts nowhere."""
    these = predictions([[3], [2], [1], [0.5]], [[1], [0], [0], [1]], [[0], [1], [0], [0]])
    tuned = compute_metrics(these, np.array([1.0])).tuned
    assert tuned is not None
    assert (tuned.CP, tuned.CR, tuned.OP, tuned.OR) == (1 / 2, 1 / 2, 1 / 2, 1 / 2)
    as_negative = replace(these, origin=Origin(ignored_in_rates="negative"))
    tuned = compute_metrics(as_negative, np.array([1.0])).tuned
    assert tuned is not None
    assert (tuned.CP, tuned.OR) == (1 / 3, 1 / 2)


def test_a_threshold_never_parts_equal_logits():
    """F1 were best after the first of three equal logits; as all three come together, it is best before them."""
    logit_N = [[5.0], [4.0], [4.0], [4.0], [3.0], [2.0]]
    target_N = [[1], [1], [0], [0], [0], [0]]
    assert tune_thresholds(predictions(logit_N, target_N), min_positives=1).tolist() == [4.5]
    # With one more positive below, taking all three is best, and the threshold lies below the last of them.
    assert tune_thresholds(predictions(logit_N, [[1], [1], [1], [0], [0], [0]]), min_positives=1).tolist() == [3.5]


def test_rare_classes_keep_one_half_and_are_named():
    """Ten positives are enough, nine are too few; an ignored pair is none, and a class without any keeps 0.5 too."""
    logit_NK = np.arange(20.0)[:, None].repeat(5, axis=1) - 25
    target_NK = np.zeros((20, 5), int)
    target_NK[10:, 0] = target_NK[11:, 1] = target_NK[10:, 2] = target_NK[:1, 3] = 1
    ignore_NK = np.zeros((20, 5), bool)
    ignore_NK[19, 2] = True
    these = predictions(logit_NK, target_NK, ignore_NK)
    assert tune_thresholds(these).tolist() == [-15.5, 0, 0, 0, 0]
    origin = "one per class, tuned on val (20 photographs)"
    assert threshold_origin(these, "val") == f"{origin}; 0.5 for b, c, d and 1 more, shown fewer than 10 times there"
    three = replace(these, classes=tuple("abcd"), **{name: getattr(these, name)[:, :4] for name in ARRAYS})
    assert threshold_origin(three, "val") == f"{origin}; 0.5 for b, c, d, shown fewer than 10 times there"
    one = replace(these, classes=("a",), **{name: getattr(these, name)[:, :1] for name in ARRAYS})
    assert threshold_origin(one, "val") == origin
    of_val = replace(one, origin=Origin(split="val"))
    assert threshold_origin(of_val) == "one per class, tuned on 20 photographs of val"
    rest = replace(these, classes=tuple("bcde"), **{name: getattr(these, name)[:, 1:] for name in ARRAYS})
    assert threshold_origin(rest, "val") == "0.5 for every class, too few photographs to tune them on (val)"


def test_a_class_without_a_positive_keeps_one_half_whatever_is_asked_for():
    assert tune_thresholds(predictions([[3], [1]], [[0], [0]]), min_positives=0).tolist() == [0.0]
    assert tune_thresholds(predictions([[3], [1]], [[1], [0]]), min_positives=0).tolist() == [2.0]


def test_equal_best_thresholds_take_the_highest():
    # F1 after 1: 2/3; after 2: 1/2; after 3: 2/5; after 4: 2·2/(4 + 2) = 2/3, as high as the first.
    assert tune_thresholds(predictions([[8], [6], [4], [2]], [[1], [0], [0], [1]]), 1).tolist() == [7.0]


def test_thresholds_must_come_from_the_same_model_and_other_samples():
    one = predictions([[1], [2]], [[1], [0]])
    with pytest.raises(UserError, match="2 samples are in both"):
        require_other_samples(one, one)
    other = replace(one, keys=("x", "y"))
    require_other_samples(other, one)
    with pytest.raises(UserError, match="other weights"):
        require_other_samples(replace(other, origin=Origin(checkpoint_sha256="f")), one)
    with pytest.raises(UserError, match="same model"):
        require_other_samples(replace(other, classes=("z",)), one)


def test_coco_sized_evaluation_takes_under_two_seconds():
    rng = np.random.default_rng(0)
    shape = (40_137, 80)
    big = Predictions(
        keys=("k",) * shape[0],
        logit_NK=rng.standard_normal(shape, dtype=np.float32),
        target_NK=(rng.random(shape) < 0.03).astype(np.uint8),
        ignore_NK=np.zeros(shape, bool),
        classes=tuple(f"class {k}" for k in range(shape[1])),
    )
    start = time.process_time()
    compute_metrics(big)
    assert time.process_time() - start < 2
