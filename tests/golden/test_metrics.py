"""The published measures against values worked out by hand, and against scikit-learn where the definitions agree."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

from msldata.errors import UserError
from msltrain.metrics import average_precision, compute_metrics, mean_average_precision
from msltrain.predictions import Predictions


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


def test_average_precision_by_hand():
    # Positives at ranks 1, 3 and 4: (1/1 + 2/3 + 3/4) / 3.
    value = average_precision(np.float32([4, 3, 2, 1, 0]), np.array([True, False, True, True, False]))
    assert value == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_equal_logits_keep_the_order_of_the_samples():
    logit_N = np.float32([0.5, 0.5])
    assert average_precision(logit_N, np.array([True, False])) == 1.0
    assert average_precision(logit_N, np.array([False, True])) == 0.5


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
    assert mean_average_precision(np.float32(LOGIT), np.array(TARGET), np.array(IGNORE)) == metrics.mAP


def test_ignored_pairs_count_nowhere():
    with_pair = compute_metrics(predictions([[3], [2], [1]], [[0], [1], [0]], [[1], [0], [0]]))
    without = compute_metrics(predictions([[2], [1]], [[1], [0]]))
    assert with_pair.summary() == without.summary()
    assert with_pair.mAP == 1.0
    # Counted as a negative, the same pair costs half the AP.
    assert compute_metrics(predictions([[3], [2], [1]], [[0], [1], [0]])).mAP == 0.5


def test_class_without_positives_is_left_out_and_named():
    metrics = compute_metrics(predictions([[1, 1], [-1, -1]], [[1, 0], [0, 0]]))
    assert metrics.absent_classes == ("b",)
    assert metrics.classes[1].average_precision is None
    assert metrics.classes[1].recall is None
    assert (metrics.mAP, metrics.CP, metrics.CR) == (1.0, 1.0, 1.0)
    assert metrics.summary()["OP"] == 0.5, "its false positive still counts overall"
    assert json.loads(metrics.to_json())["classes"][1]["average_precision"] is None


def test_nothing_right_is_zero_not_nan():
    metrics = compute_metrics(predictions([[-1], [1]], [[1], [0]]))
    assert (metrics.CF1, metrics.OF1, metrics.OP, metrics.OR) == (0.0, 0.0, 0.0, 0.0)


def test_ties_between_positives_and_negatives_are_counted():
    metrics = compute_metrics(predictions([[1], [1], [2], [2]], [[1], [0], [1], [1]]))
    assert metrics.classes[0].num_tied == 1


def test_no_positive_at_all_is_an_error():
    with pytest.raises(UserError, match="none of the classes has a positive"):
        mean_average_precision(np.zeros((3, 2), np.float32), np.zeros((3, 2)))


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
