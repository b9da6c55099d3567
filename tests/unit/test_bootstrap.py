"""Bootstrap intervals of all measures, against drawing the images one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from msltrain.measures.bootstrap import resampled_mean_ap, resampled_rates, summary_intervals
from msltrain.measures.metrics import RATES, SUMMARY, compute_metrics
from msltrain.measures.predictions import Origin, Predictions


@pytest.fixture
def predictions() -> Predictions:
    rng = np.random.default_rng(3)
    shape = (40, 4)
    target_NK = (rng.random(shape) < 0.4).astype(np.uint8)
    return Predictions(
        keys=tuple(f"{n:03d}" for n in range(40)),
        logit_NK=(rng.standard_normal(shape) + 2 * target_NK - 1).astype(np.float32),
        target_NK=target_NK,
        ignore_NK=(rng.random(shape) < 0.1) & (target_NK == 0),
        classes=tuple("abcd"),
    )


@pytest.mark.parametrize("rule", ["left out", "negative"])
def test_resampled_measures_are_those_of_the_drawn_images(predictions, rule):
    predictions = replace(predictions, origin=Origin(ignored_in_rates=rule))
    rates = resampled_rates(predictions, num_resamples=3, seed=5)
    mean_ap_R = resampled_mean_ap(predictions, num_resamples=3, seed=5)
    weight_RN = np.random.default_rng(5).multinomial(40, np.full(40, 1 / 40), size=3)
    for r, weight_N in enumerate(weight_RN):
        drawn_N = np.repeat(np.arange(40), weight_N)
        drawn = replace(
            predictions,
            keys=tuple(map(str, range(40))),
            logit_NK=predictions.logit_NK[drawn_N],
            target_NK=predictions.target_NK[drawn_N],
            ignore_NK=predictions.ignore_NK[drawn_N],
        )
        metrics = compute_metrics(drawn)
        for name in RATES:
            assert rates[name][r] == pytest.approx(getattr(metrics, name)), name
        # Equal images rank side by side; the weighted AP takes them as one step of the list.
        assert mean_ap_R[r] == pytest.approx(metrics.mAP, abs=0.02)


def test_few_positives_and_few_flags_are_counted_in_another_way_and_alike(predictions, monkeypatch):
    rare = replace(predictions, target_NK=predictions.target_NK * (np.arange(40) % 3 == 0)[:, None].astype(np.uint8))
    found = []
    for few, density in ((0, 0.0), (100, 1.0)):
        monkeypatch.setattr("msltrain.measures.bootstrap._FEW", few)
        monkeypatch.setattr("msltrain.measures.bootstrap._SPARSE", density)
        found.append((resampled_mean_ap(rare), resampled_rates(rare)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-12)
    for name in RATES:
        np.testing.assert_allclose(found[0][1][name], found[1][1][name], rtol=1e-12)


def test_every_measure_has_an_interval_around_it(predictions):
    intervals = summary_intervals(predictions, num_resamples=200)
    assert tuple(intervals) == SUMMARY
    for name, value in compute_metrics(predictions).summary().items():
        assert intervals[name].value == value
        assert intervals[name].low < value < intervals[name].high
        assert intervals[name].high - intervals[name].low < 0.5


def test_no_interval_leaves_the_values_that_its_measure_can_take(predictions):
    """Near 0 and 1 the spread is lopsided: moved to the measured value, an end of it would lie outside."""
    clearest_NK = (10 * predictions.target_NK - 5.0).astype(np.float32)
    clearest_NK[0] = -clearest_NK[0]
    for logit_NK in (clearest_NK, -clearest_NK):
        for interval in summary_intervals(replace(predictions, logit_NK=logit_NK), num_resamples=200).values():
            assert 0 <= interval.low <= interval.value <= interval.high <= 1
