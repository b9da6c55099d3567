"""Two models, and a series of them, on the same photographs: every number from those of each by the definition."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace

import numpy as np
import pytest

from msldata.errors import UserError
from msltrain.measures.bootstrap import compare, interval_around, resampled_mean_ap, resampled_rates, resampled_share
from msltrain.measures.metrics import RATES, SUMMARY, compute_metrics
from msltrain.measures.predictions import Origin, Predictions
from msltrain.measures.summary import measure, series_json

CLASSES = ("cat", "dog", "owl", "elk")


def predictions(seed: int, rule: str = "left out") -> Predictions:
    """Labels that are the same for every seed; the rarest class has two positives."""
    rng = np.random.default_rng(0)
    target_NK = rng.random((30, 4)) < (0.6, 0.4, 0.3, 0.05)
    target_NK[:2, 3] = True
    ignore_NK = rng.random((30, 4)) < 0.2
    rng = np.random.default_rng(seed)
    return Predictions(
        keys=tuple(map(str, range(30))),
        logit_NK=(rng.normal(size=(30, 4)) + target_NK).astype(np.float32),
        target_NK=target_NK.astype(np.uint8),
        ignore_NK=ignore_NK,
        classes=CLASSES,
        origin=Origin(ignored_in_rates=rule, dataset="birds"),
    )


def mixed_up(one: Predictions) -> Predictions:
    """The same with rows and columns in another order."""
    rng = np.random.default_rng(9)
    rows, columns = rng.permutation(30), rng.permutation(4)
    place = np.ix_(rows, columns)
    return replace(
        one,
        keys=tuple(one.keys[row] for row in rows),
        classes=tuple(one.classes[column] for column in columns),
        logit_NK=one.logit_NK[place],
        target_NK=one.target_NK[place],
        ignore_NK=one.ignore_NK[place],
    )


@pytest.mark.parametrize("rule", ["left out", "negative"])
def test_a_difference_is_the_second_less_the_first_in_every_resample(rule: str):
    one, other = predictions(1, rule), predictions(2, rule)
    found = compare(one, mixed_up(other))
    before, now = (compute_metrics(each).summary() for each in (one, other))
    assert {name: interval.value for name, interval in found.items()} == pytest.approx(
        {name: now[name] - before[name] for name in SUMMARY}
    )
    first_R, second_R = resampled_rates(one), resampled_rates(other)
    expected = {name: interval_around(found[name].value, second_R[name] - first_R[name]) for name in RATES}
    expected["mAP"] = interval_around(found["mAP"].value, resampled_mean_ap(other) - resampled_mean_ap(one))
    for name in SUMMARY:
        assert (found[name].low, found[name].high) == pytest.approx((expected[name].low, expected[name].high))
    back = compare(other, one)
    assert {name: -interval.high for name, interval in back.items()} == pytest.approx(
        {name: interval.low for name, interval in found.items()}
    )


def test_a_share_is_of_what_each_resample_holds():
    part_N, whole_N = np.array([1, 0, 2, 0]), np.array([2, 0, 2, 1])
    weights = np.random.default_rng(0).multinomial(4, np.full(4, 1 / 4), size=100)
    found = resampled_share(part_N, whole_N, num_resamples=100)
    assert found.tolist() == pytest.approx(
        [(drawn @ part_N) / max(drawn @ whole_N, 1) for drawn in weights.astype(float)]
    )


def test_the_json_of_a_series_has_the_spread_of_all_its_runs():
    measured = [measure(predictions(seed)) for seed in (1, 2, 3)]
    content = json.loads(series_json(measured, {}))
    assert len({one.metrics.mAP for one in measured}) == 3
    for name in SUMMARY:
        values = [getattr(one.metrics, name) for one in measured]
        spread = {"mean": statistics.fmean(values), "standard_deviation": statistics.stdev(values)}
        assert content["summary"][name] == pytest.approx(spread)
    assert [run["metrics"]["mAP"] for run in content["runs"]] == [one.metrics.mAP for one in measured]


@pytest.mark.parametrize("field", ["target_NK", "ignore_NK"])
def test_other_labels_of_the_same_images_are_refused(field: str):
    one, other = predictions(1), predictions(2)
    changed = getattr(other, field).copy()
    changed[4, 2] = not changed[4, 2]
    with pytest.raises(UserError, match="the two say other labels of the same images"):
        compare(one, mixed_up(replace(other, **{field: changed})))


def test_other_images_and_classes_are_named():
    one, other = predictions(1), predictions(2)
    keys = (*other.keys[:10], "b", "a", *other.keys[12:])
    with pytest.raises(UserError, match=r"different images \(30 and 30; only in one: 10\)$"):
        compare(one, replace(other, keys=keys))
    with pytest.raises(UserError, match=r"different classes \(4 and 4; only in one: ant\)$"):
        compare(one, replace(other, classes=("cat", "dog", "owl", "ant")))
