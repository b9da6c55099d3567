"""Companions and false alarms counted by hand, and curves whose height is the AP."""

from __future__ import annotations

import numpy as np
import pytest

from msltrain.measures.metrics import compute_metrics
from msltrain.measures.predictions import Predictions
from msltrain.report.classcurves import MAX_POINTS, curve
from msltrain.report.cooccurrence import FEW_IMAGES, count_companions, count_false_alarms, leaning_pairs
from msltrain.report.heatmap import _runs


def make(target: list[list[int]], predicted: list[list[int]], ignored: list[list[int]] | None = None) -> Predictions:
    target_NK, shape = np.array(target, np.uint8), np.shape(target)
    return Predictions(
        keys=tuple(map(str, range(len(target)))),
        logit_NK=np.where(np.array(predicted) > 0, 1, -1).astype(np.float32),
        target_NK=target_NK,
        ignore_NK=np.zeros(shape, bool) if ignored is None else np.array(ignored, bool),
        classes=tuple("abcdefgh"[: shape[1]]),
    )


def test_companions_by_hand():
    found = count_companions(make([[1, 1, 0]] * 12 + [[1, 0, 0]] * 4 + [[0, 0, 1]] * 3, [[0, 0, 0]] * 19), range(3))
    assert found.num_present_K.tolist() == [16, 12, 3]
    assert found.num_both_KK.tolist() == [[16, 12, 0], [12, 12, 0], [0, 0, 3]]
    share_KK = found.share_KK
    assert share_KK[0, 1] == 0.75 and share_KK[1, 0] == 1 and share_KK[0, 2] == 0
    assert np.isnan(share_KK[2]).all(), f"a rate over fewer than {FEW_IMAGES} images"
    assert np.isnan(np.diagonal(share_KK)).all()


def test_false_alarms_by_hand():
    # 12 images with a alone, b wrongly seen in 9 of them; 20 with neither, b seen in 2; in 5 more b is ignored.
    target = [[1, 0]] * 12 + [[0, 0]] * 20 + [[1, 0]] * 5
    predicted = [[1, 1]] * 9 + [[1, 0]] * 3 + [[0, 1]] * 2 + [[0, 0]] * 18 + [[1, 1]] * 5
    ignored = [[0, 0]] * 32 + [[0, 1]] * 5
    found = count_false_alarms(make(target, predicted, ignored), range(2))
    assert (found.num_images_KK[0, 1], found.num_seen_KK[0, 1]) == (12, 9)
    assert (found.num_elsewhere_KK[0, 1], found.num_seen_elsewhere_KK[0, 1]) == (20, 2)
    assert found.rate_KK[0, 1] == 0.75 and found.rate_elsewhere_KK[0, 1] == 0.1
    assert found.num_images_KK[1, 0] == 0 and np.isnan(found.rate_KK[1, 0])
    assert leaning_pairs([found], 5) == [(0, 1)]


def test_an_ignored_class_is_not_there_for_its_companions():
    """Of 14 images with a and b, a counts in 12."""
    one = make([[1, 1]] * 14, [[1, 1]] * 14, [[0, 0]] * 12 + [[1, 0]] * 2)
    assert count_companions(one, range(2)).num_both_KK.tolist() == [[12, 12], [12, 14]]
    alarms = count_false_alarms(make([[1, 0]] * 14, [[1, 1]] * 14, [[0, 0]] * 12 + [[1, 0]] * 2), range(2))
    assert (alarms.num_images_KK[0, 1], alarms.num_seen_KK[0, 1]) == (12, 12)


def test_pairs_are_ranked_by_the_model_that_leans_most():
    target = [[1, 0, 0]] * 20 + [[0, 0, 0]] * 20
    none = count_false_alarms(make(target, [[1, 0, 0]] * 40), range(3))
    second = count_false_alarms(make(target, [[1, 1, 0]] * 10 + [[1, 0, 0]] * 30), range(3))
    third = count_false_alarms(make(target, [[1, 0, 1]] * 15 + [[1, 0, 0]] * 25), range(3))
    assert leaning_pairs([none], 5) == []
    assert leaning_pairs([none, second], 5) == [(0, 1)]
    assert leaning_pairs([second, third], 5) == [(0, 2), (0, 1)]
    assert leaning_pairs([third, second], 1) == [(0, 2)]


@pytest.mark.parametrize("num_images", [30, 3000])
def test_the_mean_height_of_a_curve_is_the_ap(num_images):
    rng = np.random.default_rng(num_images)
    predictions = make((rng.random((num_images, 2)) < 0.3).tolist(), np.zeros((num_images, 2)).tolist())
    noise_NK = rng.standard_normal((num_images, 2)) + predictions.target_NK
    object.__setattr__(predictions, "logit_NK", noise_NK.astype(np.float32))
    recall, precision = curve(predictions, 0)
    assert len(recall) == min(int(predictions.target_NK[:, 0].sum()), MAX_POINTS)
    assert (np.diff(recall) > 0).all() and recall[0] > 0 and recall[-1] <= 1
    expected = compute_metrics(predictions).classes[0].average_precision
    assert precision.mean() == pytest.approx(expected, abs=1e-9 if num_images == 30 else 0.005)


def test_neighbouring_cells_are_one_rectangle():
    cells = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]], bool)
    assert _runs(cells) == ["M0 0h2v1h-2z", "M3 0h1v1h-1z", "M1 2h3v1h-3z"]
